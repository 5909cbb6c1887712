#!/usr/bin/env bash
# generate writes text, and nothing else, to standard output; how fast it came to standard error.
source "$(dirname "$0")/common.sh"
make_text "$work/text.txt"
"$bin/train_gpt" --data "$work/text.txt" --output "$work/run" --layers 1 --width 16 --context 16 --batch 2 --steps 2 \
  --eval-batches 1 --sample-tokens 0 --quiet >/dev/null

for tokens in 0 1 20; do
  "$bin/generate" --model "$work/run" --prompt "the quick" --tokens "$tokens" >"$work/out.txt" 2>"$work/speed.txt"
  [ "$(head -c 9 "$work/out.txt")" = "the quick" ] || fail "no prompt: $(cat "$work/out.txt")"
  [ "$(wc -c <"$work/out.txt")" -eq $((9 + tokens + 1)) ] || fail "expected $tokens bytes of text: $(cat "$work/out.txt")"
  [ "$(wc -l <"$work/speed.txt")" -eq 1 ] || fail "expected one line: $(cat "$work/speed.txt")"
done
grep -qE ': 20 tokens in [0-9]+\.[0-9]{2} s: the first after [0-9]+\.[0-9]{2} s, then [0-9]+\.[0-9] tokens/s$' "$work/speed.txt" ||
  fail "no speed: $(cat "$work/speed.txt")"
echo "passed"
