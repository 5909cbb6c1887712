#!/usr/bin/env bash
# Fails, naming the files, if a source is not formatted as .clang-format says; --fix formats them.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=(--dry-run --Werror)
[ "${1:-}" = --fix ] && mode=(-i)
git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format "${mode[@]}"
