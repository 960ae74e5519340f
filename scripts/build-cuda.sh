#!/bin/sh
# Builds the program for NVIDIA GPUs with the toolkit in DIR, which is made there first where it is not; without DIR,
# with the system's own.
#
#   scripts/build-cuda.sh [DIR]
set -eu
if [ -n "${1:-}" ]; then
    mkdir -p "$1"
    toolkit=$(cd "$1" && pwd)
fi
cd "$(dirname "$0")/.."
if [ -n "${toolkit:-}" ]; then
    [ -f "$toolkit/env.sh" ] || scripts/cuda-toolkit.sh "$toolkit"
    . "$toolkit/env.sh"
elif ! command -v nvcc > /dev/null; then
    echo "no nvcc on PATH; name a folder to make a toolkit in: scripts/build-cuda.sh DIR" >&2
    exit 1
fi
cargo build --release --locked --features "${PPD_FEATURES:-cuda}"
