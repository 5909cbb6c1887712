# Sourced by the tests of the trainer programs. Arguments: the folder of the programs, a scratch folder.
set -euo pipefail
bin=$1
work=$2
rm -rf "$work"
mkdir -p "$work"

fail() { echo "FAILED: $*" >&2; exit 1; }

# A text of ~40 kB with some structure to learn.
make_text() {
  awk 'BEGIN { srand(3); split("the quick brown fox jumps over a lazy dog while rain falls on old stone walls", w, " ");
       for (i = 0; i < 1200; ++i) { line = ""; for (k = 0; k < 6; ++k) line = line w[1 + int(rand() * 16)] " "; print line } }' >"$1"
}

# expect_error TEXT command...: the command fails, prints one line with TEXT on standard error, and nothing else there.
expect_error() {
  local text=$1 status=0
  shift
  "$@" >"$work/stdout" 2>"$work/stderr" || status=$?
  [ "$status" -ne 0 ] || fail "no error from: $*"
  [ "$status" -lt 128 ] || fail "killed by a signal: $*"
  grep -qF -- "$text" "$work/stderr" || fail "expected '$text' from: $*; got: $(cat "$work/stderr")"
  [ "$(wc -l <"$work/stderr")" -eq 1 ] || fail "more than one line from: $*; got: $(cat "$work/stderr")"
}
