#!/usr/bin/env bash
# Installs the packages, builds everything and runs every test: format, CPU build, sanitizers, fuzzing and, where there
# is a CUDA compiler, the tests on the simulated GPU and a build for GPUs (scripts/gpu_check.sh runs that one's tests).
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/setup.sh
./scripts/check_format.sh

# The presets cpu, simgpu and cuda have most C++ files in common: each is compiled once.
export CMAKE_CXX_COMPILER_LAUNCHER=ccache

cmake --preset cpu
cmake --build --preset cpu
cmake --preset asan
cmake --build --preset asan

./scripts/fuzz.sh 60
ctest --preset asan
if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  cmake --preset simgpu
  cmake --build --preset simgpu
  ctest --preset simgpu
  cmake --preset cuda
  cmake --build --preset cuda --target ergon train_gpt train_vision generate
else
  echo "test: LEFT OUT: the tests on the simulated GPU and the build for GPUs; they need nvcc, of the CUDA Toolkit 13 or later"
fi
ctest --preset cpu
