#!/bin/sh
# Checks and times the program on a GPU, in under ten minutes: the operations' tests (values and gradients on the GPU held
# against their formulas in double precision, and against the CPU), then a PPD step of the full-size Stage C beside
# PyTorch's. Needs a build for the GPU (scripts/build-cuda.sh) and a Python with benches/torch/requirements.txt.
#
#   benches/gpu.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
cargo test --release --locked --features cuda --lib nn::
"$python" benches/side_by_side.py full-step full-step-cached --features cuda --rounds 1 --reps 3
