#!/usr/bin/env bash
# Ctrl-C: a checkpoint, a clean exit, and a resumed run that ends like an undisturbed one.
source "$(dirname "$0")/common.sh"
make_text "$work/text.txt"
# A plain command, so that $! is the program itself.
train=(env OMP_NUM_THREADS=1 "$bin/train_gpt" --data "$work/text.txt" --layers 2 --heads 2 --width 32 --context 32 \
  --batch 4 --steps 2000 --eval-interval 0 --eval-batches 2 --checkpoint-interval 0 --sample-tokens 0)
"${train[@]}" --output "$work/whole" >/dev/null
"${train[@]}" --output "$work/cut" >"$work/cut.log" &
pid=$!
until grep -q '^step ' "$work/cut.log"; do
  kill -0 "$pid" || fail "ended before it could be interrupted: $(cat "$work/cut.log")"
  sleep 0.01
done
kill -INT "$pid"
wait "$pid" || fail "exit code $? after Ctrl-C: $(cat "$work/cut.log")"
grep -q 'Interrupted at step' "$work/cut.log" || fail "not interrupted: $(cat "$work/cut.log")"
[ -s "$work/cut/loss.svg" ] || fail "no plot"
"${train[@]}" --output "$work/cut" --resume >/dev/null
cmp "$work/whole/checkpoints/step-00002000/model.safetensors" "$work/cut/checkpoints/step-00002000/model.safetensors"
echo "passed"
