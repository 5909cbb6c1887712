#!/usr/bin/env bash
# Installs the packages, builds everything and runs every test: format, CPU build, sanitizers, fuzzing.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/setup.sh
./scripts/check_format.sh

cmake --preset cpu
cmake --build --preset cpu
cmake --preset asan
cmake --build --preset asan

./scripts/fuzz.sh 60
ctest --preset asan
ctest --preset cpu
