#!/usr/bin/env bash
# train_vision on images made here: it learns them, resumes bit for bit, and names what is wrong with its files.
source "$(dirname "$0")/common.sh"
export LC_ALL=C

# idx FILE DIMS: the header of an IDX file of bytes, sizes as four-byte big-endian numbers.
header() {
  printf "\\000\\000\\010\\$(printf %03o $#)"
  for size in "$@"; do printf "\\000\\000\\$(printf %03o $((size / 256)))\\$(printf %03o $((size % 256)))"; done
}
# make_images COUNT IMAGES LABELS: image i is of class i % 10, a bright bar at a height that tells the class.
make_images() {
  {
    header "$1" 28 28
    awk -v n="$1" 'BEGIN { srand(1); for (i = 0; i < n; ++i) for (y = 0; y < 28; ++y) for (x = 0; x < 28; ++x) {
      bar = y >= 2 * (i % 10) + 2 && y < 2 * (i % 10) + 5; printf "%c", bar ? 100 + int(rand() * 20) : 1 + int(rand() * 40) } }'
  } >"$2"
  { header "$1"; for ((i = 0; i < $1; ++i)); do printf "\\$(printf %03o $((i % 10)))"; done; } >"$3"
}
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
