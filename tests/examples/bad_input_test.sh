#!/usr/bin/env bash
# Bad input to the trainer programs: one line that names the thing, a non-zero exit code, nothing lost.
source "$(dirname "$0")/common.sh"
make_text "$work/text.txt"
train=("$bin/train_gpt" --layers 1 --width 16 --context 16 --batch 2 --steps 4 --eval-batches 1 --sample-tokens 0 --quiet)

: >"$work/empty.txt"
printf 'short' >"$work/short.txt"
mkdir "$work/folder"
expect_error "$work/missing.txt" "${train[@]}" --data "$work/missing.txt" --output "$work/o1"
expect_error "$work/empty.txt" "${train[@]}" --data "$work/empty.txt" --output "$work/o2"
expect_error "tokens" "${train[@]}" --data "$work/short.txt" --output "$work/o3"
expect_error "$work/folder" "${train[@]}" --data "$work/folder" --output "$work/o4"
expect_error "/proc/none" "${train[@]}" --data "$work/text.txt" --output /proc/none
expect_error "n_embd 16 must be a multiple of n_head 3" "${train[@]}" --data "$work/text.txt" --output "$work/o5" --heads 3
printf 'heads = "many"\n' >"$work/bad.toml"
expect_error "heads" "${train[@]}" --data "$work/text.txt" --output "$work/o6" --config "$work/bad.toml"
printf 'no_such_key = 1\n' >"$work/unknown.toml"
expect_error "$work/unknown.toml: unknown option 'no_such_key'" "${train[@]}" --data "$work/text.txt" --output "$work/o7" --config "$work/unknown.toml"
expect_error "unknown option '--dta'" "${train[@]}" --dta "$work/text.txt" --output "$work/o7"
expect_error "is nan" "${train[@]}" --data "$work/text.txt" --output "$work/o8" --lr nan
expect_error "is " "${train[@]}" --data "$work/text.txt" --output "$work/o9" --lr 1e30 --clip 0

# A finished run is not overwritten, and a damaged checkpoint is noticed.
"${train[@]}" --data "$work/text.txt" --output "$work/run" >/dev/null
before=$(md5sum "$work"/run/checkpoints/*/model.safetensors)
expect_error "pass --resume" "${train[@]}" --data "$work/text.txt" --output "$work/run"
expect_error "heads was" "${train[@]}" --data "$work/text.txt" --output "$work/run" --resume --heads 2
[ "$before" = "$(md5sum "$work"/run/checkpoints/*/model.safetensors)" ] || fail "a refused run changed the checkpoint"
expect_error "$work/none" "$bin/generate" --model "$work/none" --prompt x
truncate -s -1 "$work"/run/checkpoints/step-00000004/model.safetensors
expect_error "model.safetensors" "$bin/generate" --model "$work/run/checkpoints/step-00000004" --prompt x
expect_error "no other checkpoint" "${train[@]}" --data "$work/text.txt" --output "$work/run" --resume
echo "passed"
