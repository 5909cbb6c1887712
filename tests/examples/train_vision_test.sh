#!/usr/bin/env bash
# train_vision on images made here: it learns them, resumes bit for bit, and names what is wrong with its files.
source "$(dirname "$0")/common.sh"

data=$work/data
mkdir "$data"
make_images 400 "$data/train-images-idx3-ubyte" "$data/train-labels-idx1-ubyte"
make_images 100 "$data/t10k-images-idx3-ubyte" "$data/t10k-labels-idx1-ubyte"

train=("$bin/train_vision" --width 4 --batch 20 --steps 120 --warmup 5 --lr 2e-2 --eval-interval 0 --checkpoint-interval 60 --crop 1 --quiet)
"${train[@]}" --data "$data" --output "$work/whole" >"$work/whole.log"
accuracy=$(awk '$1 == "val_accuracy" { print $2 }' "$work/whole.log")
awk -v a="$accuracy" 'BEGIN { exit !(a > 0.9) }' || fail "accuracy '$accuracy' after training, expected more than 0.9: $(cat "$work/whole.log")"

mkdir -p "$work/cut/checkpoints"
cp -r "$work/whole/checkpoints/step-00000060" "$work/cut/checkpoints/"
"${train[@]}" --data "$data" --output "$work/cut" --resume >"$work/cut.log"
for file in model.safetensors optimizer.safetensors; do
  cmp "$work/whole/checkpoints/step-00000120/$file" "$work/cut/checkpoints/step-00000120/$file" || fail "$file differs after a resume"
done

expect_error "$work/none" "${train[@]}" --data "$work/none" --output "$work/o1"
truncate -s -1 "$data/train-images-idx3-ubyte"
expect_error "train-images-idx3-ubyte" "${train[@]}" --data "$data" --output "$work/o2"
echo "passed: accuracy $accuracy"
