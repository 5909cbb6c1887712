#!/usr/bin/env bash
# Installs the packages, builds Ergon and trains a small GPT on the King James Bible, in a few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/setup.sh
cmake --preset cpu
cmake --build --preset cpu --target train_gpt generate

out=out/quickstart
text=$out/bible.txt
mkdir -p "$out"
# The package's program prints "Gen1:1 In the beginning ..." with -f; only the words are kept.
bible -f "gen1:1-rev22:21" | sed 's/^[A-Za-z0-9 ]*[0-9]*:[0-9]* //' >"$text.part"
[ "$(wc -c <"$text.part")" -gt 1000000 ] || { echo "quickstart: no text from the package bible-kjv" >&2; exit 1; }
mv "$text.part" "$text"

rm -rf "$out/run"
build/cpu/bin/train_gpt --data "$text" --output "$out/run" \
  --layers 4 --heads 4 --width 128 --context 64 --batch 12 --steps 2000 \
  --lr 2e-3 --min-lr 1e-4 --warmup 100 --eval-interval 500 --eval-batches 40 --log-interval 100 \
  --sample "And the LORD said"

echo
echo "Loss plot:       $out/run/loss.svg"
echo "More text:       build/cpu/bin/generate --model $out/run --prompt 'In the beginning'"
echo "Longer training: build/cpu/bin/train_gpt --help"
