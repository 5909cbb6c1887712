#!/usr/bin/env bash
# The trainer programs on device cuda: they train, the losses are the CPU's, a resumed run ends bit for bit alike, and
# what was trained on the device generates text on either.
source "$(dirname "$0")/../common.sh"

make_text "$work/text.txt"
gpt=("$bin/train_gpt" --data "$work/text.txt" --layers 1 --heads 2 --width 32 --context 16 --batch 2 --steps 6
     --warmup 2 --log-interval 1 --eval-interval 0 --eval-batches 1 --checkpoint-interval 3 --sample-tokens 4)
"${gpt[@]}" --device cuda --output "$work/cuda" >"$work/cuda.log"
grep -q "device cuda:0 (" "$work/cuda.log" || fail "the start says nothing of the device: $(cat "$work/cuda.log")"
"${gpt[@]}" --device cpu --output "$work/cpu" >"$work/cpu.log"
losses() { sed -n 's/^step .* | loss \([0-9.]*\) .*/\1/p' "$1"; }
paste <(losses "$work/cuda.log") <(losses "$work/cpu.log") | awk '
  { d = $1 - $2; if (d < 0) d = -d; if (!(d <= 0.001)) bad = 1; n++ } END { exit bad || n != 6 }' ||
  fail "losses differ: $(paste <(losses "$work/cuda.log") <(losses "$work/cpu.log"))"

mkdir -p "$work/cut/checkpoints"
cp -r "$work/cuda/checkpoints/step-00000003" "$work/cut/checkpoints/"
"${gpt[@]}" --device cuda --output "$work/cut" --resume >"$work/cut.log"
for file in model.safetensors optimizer.safetensors; do
  cmp "$work/cuda/checkpoints/step-00000006/$file" "$work/cut/checkpoints/step-00000006/$file" || fail "$file differs after a resume"
done

for device in cuda cpu; do
  "$bin/generate" --model "$work/cuda" --device "$device" --tokens 4 --temperature 0 --prompt "the quick" >"$work/$device.txt"
done
cmp "$work/cuda.txt" "$work/cpu.txt" || fail "generated text differs between devices"

data=$work/data
mkdir "$data"
make_images 40 "$data/train-images-idx3-ubyte" "$data/train-labels-idx1-ubyte"
make_images 10 "$data/t10k-images-idx3-ubyte" "$data/t10k-labels-idx1-ubyte"
"$bin/train_vision" --data "$data" --device cuda --width 4 --batch 4 --steps 3 --warmup 1 --log-interval 1 --eval-interval 0 \
  --output "$work/vision" >"$work/vision.log"
grep -q "val_accuracy" "$work/vision.log" || fail "no evaluation: $(cat "$work/vision.log")"

expect_error "device cuda:77 is not available" "${gpt[@]}" --device cuda:77 --output "$work/o1"
echo "passed"
