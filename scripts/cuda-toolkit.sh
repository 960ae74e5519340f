#!/bin/sh
# A complete CUDA 13 toolkit from PyPI's wheels, in a folder of your choice, for a machine without one. No GPU, driver
# or root is needed: what it makes compiles and links the `cuda` feature. About 2 GB.
#
#   scripts/cuda-toolkit.sh DIR             # once
#   . DIR/env.sh                            # in each shell that builds
#   cargo build --release --features cuda   # or: just build-cuda DIR
set -eu

if [ $# -ne 1 ]; then
    echo "usage: scripts/cuda-toolkit.sh DIR (the folder to make; needs python3 with venv)" >&2
    exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)

python3 -m venv "$dir/venv"
# One command: installed one after another into one folder, later wheels would skip what earlier ones made.
"$dir/venv/bin/pip" install --quiet --no-deps --disable-pip-version-check \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 \
    nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-curand==10.4.0.35 nvidia-cublas==13.0.2.14 \
    nvidia-nccl-cu13==2.27.7
site=$("$dir/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cuda=$site/nvidia/cu13
[ -x "$cuda/bin/nvcc" ] || { echo "$cuda/bin/nvcc is missing: the wheels' layout has changed" >&2; exit 1; }

# The linker asks for names without versions, and for lib64.
ln -sfn lib "$cuda/lib64"
nccl=$site/nvidia/nccl
[ -d "$nccl/lib" ] && cp -sf "$nccl"/lib/libnccl* "$cuda/lib/" && cp -sf "$nccl"/include/nccl*.h "$cuda/include/"
for library in "$cuda"/lib/lib*.so.*; do
    plain=${library%%.so.*}.so
    [ -e "$plain" ] || ln -s "$(basename "$library")" "$plain"
done

# The driver's library comes with the driver. To link without one, an empty stand-in with every function of cuda.h,
# under the names that cuda.h gives its newer versions too.
stubs=$cuda/lib/stubs
mkdir -p "$stubs"
"$dir/venv/bin/python" - "$cuda/include/cuda.h" > "$stubs/libcuda.c" <<'PYTHON'
import re, sys
text = open(sys.argv[1]).read()
names = set(re.findall(r"\b(cu[A-Z]\w+)\s*\(", text))
names |= {new for _, new in re.findall(r"#\s*define\s+(cu[A-Z]\w+)\s+(cu[A-Z]\w+)", text)}
print("\n".join(f"int {name}(void) {{ return 100; }}" for name in sorted(names)))
PYTHON
cc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so" "$stubs/libcuda.c"
ln -sf libcuda.so "$stubs/libcuda.so.1"

cat > "$dir/env.sh" <<ENV
# Made by scripts/cuda-toolkit.sh
export CUDA_HOME="$cuda" CUDA_PATH="$cuda" CUDA_ROOT="$cuda" CUDA_TOOLKIT_ROOT_DIR="$cuda"
export PATH="$cuda/bin:\$PATH"
# No nvidia-smi is asked for the GPU's generation: 90 is Hopper, 80 Ampere, 89 Ada, 100 Blackwell.
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}"
# For the linker; RUSTFLAGS would take the place of those in .cargo/config.toml.
export LIBRARY_PATH="$cuda/lib:$stubs\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
ENV
"$cuda/bin/nvcc" --version | tail -2
echo "Ready: . $dir/env.sh && cargo build --release --features cuda"
echo "To run: LD_LIBRARY_PATH=$cuda/lib, beside the driver's own libcuda.so.1"
