#!/bin/sh
# Checks and times the program on a GPU, in under ten minutes: the operations on the GPU (values and gradients held against
# their formulas in double precision), Stage C and PPD steps of a small configuration on it (held against torch's numbers,
# and every adapter gradient against the CPU's), then a PPD step of the full-size Stage C beside PyTorch's. Ends with 1 where
# that is less than 1.2 times as fast or takes more memory.
#
#   benches/gpu.sh pack DIR [TOOLKIT]   # where cargo is: builds tests and bench for CUDA into DIR, stripped; with the
#                                       # toolkit of scripts/cuda-toolkit.sh in TOOLKIT, or the system's
#   benches/gpu.sh run DIR [PYTHON]     # where the GPU is, in a copy of this repository; needs no cargo, but a Python with
#                                       # diffusers and a PyTorch for CUDA 13, whose libraries serve both
#
# PPD_RESULTS names a folder for the measurements, in place of benches/results.
set -eu

if [ $# -lt 2 ] || { [ "$1" != pack ] && [ "$1" != run ]; }; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
verb=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
if [ "$verb" = pack ] && [ -n "${3:-}" ]; then
    . "$3/env.sh"
fi
cd "$(dirname "$0")/.."

if [ "$verb" = pack ]; then
    cargo test --profile "${PPD_PROFILE:-release}" --locked --features "${PPD_FEATURES:-cuda}" --no-run \
        --lib --test suite --bench ppd --message-format json-render-diagnostics > "$dir/built.json"
    python3 - "$dir" <<'PYTHON'
import json, pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1])
wanted = {("lib", "ppd"): "nn", ("test", "suite"): "suite", ("bench", "ppd"): "bench"}
for line in map(json.loads, (folder / "built.json").read_text().splitlines()):
    target = line.get("target", {})
    name = wanted.get((target.get("kind", [""])[0], target.get("name")))
    if name and line.get("executable"):
        shutil.copy(line["executable"], folder / name)
PYTHON
    rm "$dir/built.json"
    strip "$dir/nn" "$dir/suite" "$dir/bench"
    git describe --always --dirty=+ --exclude '*' > "$dir/commit"
    ls -l "$dir"
    exit
fi

python=${3:-python3}
# Beside torch from PyPI lie the libraries that this build asks for too: cuBLAS, cuRAND, the runtime.
libraries=$("$python" -c 'import glob, sysconfig
print(":".join(glob.glob(sysconfig.get_path("purelib") + "/nvidia/*/lib")))')
export LD_LIBRARY_PATH="$libraries:${LD_LIBRARY_PATH:-}"
# Where the suite finds its fixtures: cargo, which says so elsewhere, may not be here.
export CARGO_MANIFEST_DIR="$PWD" PPD_TEST_GPU=1
"$dir/nn" nn::
"$dir/suite" ppd_step:: stage_c::
"$python" benches/side_by_side.py full-step full-step-cached --program "$dir/bench" --commit "$(cat "$dir/commit")" \
    --rounds 1 --reps 3 --least-ratio 1.2 --most-memory 1 --results "${PPD_RESULTS:-benches/results}"
