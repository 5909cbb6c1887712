#!/usr/bin/env bash
# Builds the libFuzzer targets (clang, AddressSanitizer, UndefinedBehaviorSanitizer) and runs each for a while,
# two at a time. Fails if one finds a crash, a leak, a hang or memory beyond the limit; the input that did it is
# kept in build/fuzz/artifacts.
#   scripts/fuzz.sh [seconds per target, default 60] [target ...]
set -euo pipefail
cd "$(dirname "$0")/.."

export seconds=${1:-60}
shift || true
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "fuzz: '$seconds' is not a number of seconds" >&2; exit 2; }

cmake --preset fuzz >/dev/null
cmake --build --preset fuzz
export out=$PWD/build/fuzz
mkdir -p "$out/artifacts" "$out/logs"

run_target() {
  name=$1
  corpus=$out/corpus/$name
  mkdir -p "$corpus"
  options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1
           -artifact_prefix="$out/artifacts/$name-")
  [ -f "tests/fuzz/$name.dict" ] && options+=(-dict="tests/fuzz/$name.dict")
  log=$out/logs/$name.log
  if "$out/bin/${name}_fuzz" "${options[@]}" "$corpus" "tests/fuzz/corpus/$name" >"$log" 2>&1; then
    echo "fuzz: $name: $(sed -n 's/stat::number_of_executed_units: *//p' "$log") inputs, nothing found"
  else
    echo "fuzz: $name: FAILED, see $log" >&2
    grep -E "ERROR|SUMMARY|runtime error|Test unit written" "$log" >&2 || tail -n 5 "$log" >&2
    return 1
  fi
}
export -f run_target

if [ $# -eq 0 ]; then
  for binary in "$out"/bin/*_fuzz; do
    name=$(basename "$binary" _fuzz)
    if [ -f "tests/fuzz/${name}_fuzz.cpp" ]; then set -- "$@" "$name"; fi
  done
fi
printf '%s\n' "$@" | xargs -P 2 -I{} bash -c 'run_target "$1"' run {}
echo "fuzz: $# targets, $seconds s each: clean"
