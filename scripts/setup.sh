#!/usr/bin/env bash
# Installs the packages that Ergon builds with (Debian, Ubuntu). Does nothing, and needs no rights, when they are there.
# With a CUDA compiler that comes without nvdisasm, also fetches that into build/tools, for a test of machine code.
set -euo pipefail
cd "$(dirname "$0")/.."

nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
nvdisasm=build/tools/nvidia/cu13/bin/nvdisasm
fetch_nvdisasm() {
  if [ ! -x "$nvcc" ] || command -v nvdisasm >/dev/null || [ -x "$(dirname "$nvcc")/nvdisasm" ] || [ -x "$nvdisasm" ]; then
    return
  fi
  echo "setup: fetching nvdisasm"
  mkdir -p build/tools
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest build/tools 'nvidia-cuda-nvdisasm==13.*'; then
    echo "setup: nvdisasm could not be fetched: the test of machine code will be skipped" >&2
    return
  fi
  python3 -m zipfile -e build/tools/nvidia_cuda_nvdisasm-*.whl build/tools
  chmod +x "$nvdisasm"
}

packages=(
  g++ cmake ninja-build
  libeigen3-dev libcli11-dev libspdlog-dev nlohmann-json3-dev libxxhash-dev zlib1g-dev
  libgtest-dev
  ccache                                  # scripts/test.sh: presets share compiled files
  clang libclang-rt-dev clang-format   # fuzzing and the format check
  bible-kjv-text bible-kjv                # the quick start's text
  dataset-fashion-mnist                   # the vision example's images
)
if [ -x "$nvcc" ]; then packages+=(python3-pip); fi  # nvdisasm
missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed'; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  fetch_nvdisasm
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "setup: run as root, or install sudo: missing ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fetch_nvdisasm
