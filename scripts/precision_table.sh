#!/usr/bin/env bash
# Trains nanoGPT's CPU recipe on a text and the ResNet on Fashion-MNIST, each in fp32, bf16 and fp16 from three seeds, and
# prints a table of the final validation losses. Fails if a mean is more than 1 % above that of fp32.
#   scripts/precision_table.sh TEXT [STEPS_OF_THE_TEXT STEPS_OF_THE_IMAGES]
# Runs that are finished already, in $OUT (out/precision), are not made again.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] && [ -f "$1" ] || { echo "usage: $0 TEXT [STEPS_OF_THE_TEXT STEPS_OF_THE_IMAGES]; tinyshakespeare.txt is nanoGPT's text" >&2; exit 2; }
text=$1 text_steps=${2:-2000} image_steps=${3:-1200}
out=${OUT:-out/precision}
bin=${BIN:-build/cpu/bin}
mkdir -p "$out"

run() {  # NAME command...: the command's output goes to NAME.log, and from there its val_loss into NAME.loss
  local name=$1
  shift
  [ -s "$out/$name.loss" ] && return
  rm -rf "${out:?}/$name"
  "$@" --output "$out/$name" >"$out/$name.log"
  awk '$1 == "val_loss" { print $2 }' "$out/$name.log" >"$out/$name.loss.part"
  mv "$out/$name.loss.part" "$out/$name.loss"
}

for seed in 1337 1 2; do
  for precision in fp32 bf16 fp16; do
    run "text-$text_steps-$precision-$seed" "$bin/train_gpt" --data "$text" --layers 4 --heads 4 --width 128 --context 64 --batch 12 \
      --steps "$text_steps" --lr 1e-3 --min-lr 1e-4 --warmup 100 --eval-interval 0 --eval-batches 145 --sample-tokens 0 \
      --checkpoint-interval 0 --quiet --precision "$precision" --seed "$seed"
    run "images-$image_steps-$precision-$seed" "$bin/train_vision" --steps "$image_steps" --eval-interval 0 --checkpoint-interval 0 --quiet \
      --precision "$precision" --seed "$seed"
  done
done

status=0
echo "| task | precision | final validation loss, seeds 1337, 1, 2 | mean | to fp32 |"
echo "|---|---|---|---|---|"
for task in "text-$text_steps" "images-$image_steps"; do
  for precision in fp32 bf16 fp16; do
    cat "$out/$task-$precision-1337.loss" "$out/$task-$precision-1.loss" "$out/$task-$precision-2.loss" |
      awk -v task="${task%-*}" -v precision=$precision -v base_file="$out/$task.mean" '
        { list = list (NR > 1 ? ", " : "") $1; sum += $1 }
        END {
          mean = sum / NR
          if (precision == "fp32") { base = mean; print mean >base_file } else getline base <base_file
          change = 100 * (mean / base - 1)
          printf "| %s | %s | %s | %.4f | %+.2f %% |\n", task, precision, list, mean, change
          exit !(NR == 3 && change <= 1)
        }' || status=1
  done
done
[ "$status" -eq 0 ] || echo "a mean is more than 1 % above fp32's, or a run is missing" >&2
exit "$status"
