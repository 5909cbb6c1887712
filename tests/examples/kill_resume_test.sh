#!/usr/bin/env bash
# kill -9 at random moments, twenty times: resuming ends with the very bytes of an undisturbed run.
source "$(dirname "$0")/common.sh"
make_text "$work/text.txt"

# A plain command, so that $! is the program itself.
train=(env OMP_NUM_THREADS=1 "$bin/train_gpt" --data "$work/text.txt" --layers 2 --heads 2 --width 32 --context 32 \
  --batch 4 --dropout 0.1 --steps 600 --log-interval 20 --eval-interval 100 --eval-batches 2 --checkpoint-interval 20 \
  --keep-checkpoints 2 --sample-tokens 0)

"${train[@]}" --output "$work/whole" >"$work/whole.log"

kills=0
seed=42
while [ "$kills" -lt 20 ]; do
  "${train[@]}" --output "$work/cut" --resume >"$work/cut.log" 2>&1 &
  pid=$!
  seed=$(((seed * 1103515245 + 12345) % 2147483648))
  sleep "0.$(printf '%03d' $((50 + seed / 65536 % 700)))"
  if ! kill -9 "$pid" 2>/dev/null; then
    wait "$pid" || fail "the resumed run failed: $(cat "$work/cut.log")"
    # Done before it could be killed: start over, so that all twenty kills hit a running program.
    rm -rf "$work/cut"
    continue
  fi
  wait "$pid" 2>/dev/null || true
  kills=$((kills + 1))
done
"${train[@]}" --output "$work/cut" --resume >"$work/cut.log"

last=checkpoints/step-00000600
for file in model.safetensors optimizer.safetensors; do
  cmp "$work/whole/$last/$file" "$work/cut/$last/$file" || fail "$file differs after $kills kills"
done
losses() { sed 's/,"tokens_per_second":[^,}]*//; s/"tokens_per_second":[^,}]*,//' "$1/metrics.jsonl"; }
[ "$(losses "$work/whole")" = "$(losses "$work/cut")" ] || fail "metrics.jsonl differs after $kills kills"
ls "$work/cut/checkpoints" | grep -q tmp && fail "temporary folders are left over: $(ls "$work/cut/checkpoints")"
echo "passed: $kills kills"
