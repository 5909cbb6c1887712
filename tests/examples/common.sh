# Sourced by the tests of the trainer programs. Arguments: the folder of the programs, a scratch folder.
set -euo pipefail
export LC_ALL=C
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

# header SIZE...: the header of an IDX file of bytes, sizes as four-byte big-endian numbers.
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
