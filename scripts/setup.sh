#!/usr/bin/env bash
# Installs the packages that Ergon builds with (Debian, Ubuntu). Does nothing, and needs no rights, when they are there.
set -euo pipefail

packages=(
  g++ cmake ninja-build
  libeigen3-dev libcli11-dev libspdlog-dev nlohmann-json3-dev libxxhash-dev zlib1g-dev
  libgtest-dev
  clang libclang-rt-dev clang-format   # fuzzing and the format check
  bible-kjv-text bible-kjv                # the quick start's text
  dataset-fashion-mnist                   # the vision example's images
)
missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed'; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "setup: run as root, or install sudo: missing ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
