#!/usr/bin/env bash
# For a machine with an NVIDIA GPU: builds the cuda preset for it, runs every test on it, and measures: GEMM TFLOP/s
# against cuBLASLt for a table of shapes, elementwise GB/s against a copy on the device. Under 10 minutes on 8 cores.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then
  echo "gpu_check: no NVIDIA GPU found (nvidia-smi --list-gpus); without one, scripts/test.sh runs the kernels on the simulated GPU" >&2
  exit 1
fi
./scripts/setup.sh
cmake --preset cuda -DCMAKE_CUDA_ARCHITECTURES=native
cmake --build --preset cuda --parallel "$(nproc)"
ctest --preset cuda

echo "== Measured on $(nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader | head -1), $(date +%F) =="
./build/cuda/bench/gemm_cuda_bench
./build/cuda/bench/elementwise_cuda_bench
