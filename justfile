# One line per verb, no logic: every line is a `ppd` or cargo command that works without `just` too.

ppd := "cargo run --release --quiet --"

# All verbs
default:
    @just --list

# Run a study and render it: just reproduce table1 --seeds 5
reproduce STUDY *ARGS:
    {{ppd}} reproduce {{STUDY}} {{ARGS}}

# Run a study that varies one method over a grid: just sweep beta
sweep STUDY *ARGS:
    {{ppd}} sweep {{STUDY}} {{ARGS}}

# Tables and figures again, from records alone
report *ARGS:
    {{ppd}} report {{ARGS}}

# Train one of the desk's own models: just pretrain denoiser
pretrain MODEL *ARGS:
    {{ppd}} pretrain {{MODEL}} {{ARGS}}

# Make, score or show the desk's preference pairs
data *ARGS:
    {{ppd}} data {{ARGS}}

# Measure beside PyTorch: just bench step sample (needs a Python with benches/torch/requirements.txt)
bench *ARGS:
    python3 benches/side_by_side.py {{ARGS}}

# Build for NVIDIA GPUs, with the system's CUDA toolkit or one that is made in DIR: just build-cuda ~/cuda
build-cuda DIR="":
    scripts/build-cuda.sh {{DIR}}

# What this machine has, and what is missing
doctor:
    {{ppd}} doctor

# The suite
test:
    cargo test

# What takes minutes: simulations, kills, faults
soak:
    cargo test --test soak

# What CI runs
ci:
    .ci/run
