"""Runs the measurements of `benches/ppd` and their PyTorch twins in turn, on one machine, and prints the ratios.

    python -m venv VENV && VENV/bin/pip install -r benches/torch/requirements.txt
    VENV/bin/python benches/side_by_side.py                  # all; just bench does the same
    VENV/bin/python benches/side_by_side.py step sample --rounds 5

Each round starts every measurement in a process of its own, ours and then theirs, so that what else the machine does
strikes both. A ratio is printed only where shapes, dtype, threads and device agree and both computed the same numbers.
Every measurement is appended to benches/results/<machine>.csv with the command that made it.
"""

import argparse
import csv
import datetime
import json
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TWIN = [sys.executable, str(ROOT / "benches/torch/twin.py")]

# Ours, theirs, and the relative difference that the numbers they computed may have. A stored reference is compared with
# PyTorch's ordinary step too, which computes it each time.
ROWS = [
    ("step", "step", 1e-4),
    ("step-cached", "step-cached", 1e-4),
    ("step-cached", "step", 1e-4),
    ("sample", "sample", 1e-3),
    # Pillow's bytes may differ by one here and there.
    ("preprocess", "preprocess", 1e-4),
    ("encode", "encode", 1e-4),
    ("linear", "linear", 1e-4),
    ("pointwise-conv", "pointwise-conv", 1e-4),
    ("depthwise-conv", "depthwise-conv", 1e-4),
    ("layer-norm", "layer-norm", 1e-4),
    ("grn", "grn", 1e-4),
    ("gelu", "gelu", 1e-4),
    ("gelu-grn", "gelu-grn", 1e-4),
    ("modulate", "modulate", 1e-4),
    ("attention", "attention", 1e-4),
    ("squared-error", "squared-error", 1e-4),
    ("bca", "bca", 1e-9),
    ("bca-parallel", "bca", 1e-9),
    # On a GPU, and only where asked for by name: random weights, so there are no numbers to agree.
    ("full-step", "full-step", 0.0),
    ("full-step-cached", "full-step-cached", 0.0),
    ("full-step-cached", "full-step", 0.0),
]
NOTHING = 1e-9
# What may differ all the same, and why; printed below the table.
EXCEPTIONS = {("bca-parallel", "bca"): {"threads": "scipy's bootstrap computes on one"}}
NEED_INPUTS = {"step", "step-cached", "sample", "encode"}

# Of a full-size step: how many forward passes its work is worth (the reference's, the policy's, and the way back, which
# computes no gradient of a frozen weight). `full-rate`, ours alone, is what the card gives to matrices.
PASSES = {"full-step": 3, "full-step-cached": 2}
RATE = "full-rate"
# Pick-a-Pic v2's training pairs (Kirstain et al. 2023).
EPOCH_PAIRS = 851_293


def output(command):
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{shlex.join(map(str, command))} failed with {done.returncode}")
    return done.stdout


def built(features):
    """Builds our side and returns the program, so that cargo's own time is not in the way."""
    command = ["cargo", "bench", "--locked", "--bench", "ppd", "--no-run", "--message-format", "json"]
    lines = output(command + (["--features", features] if features else []))
    for line in map(json.loads, lines.splitlines()):
        if line.get("target", {}).get("name") == "ppd" and "bench" in line["target"]["kind"]:
            return [line["executable"]]
    raise SystemExit("cargo built no bench named ppd")


def machine(device="cpu"):
    """The name of what computed: the processor's, or the first GPU's."""
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
        return output(query).strip()
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return name


def why_not_comparable(ours, theirs, tolerance, excepted=()):
    """What differs between two measurements, or None; `excepted` names what of their shapes may."""
    keys = sorted((ours["shape"].keys() | theirs["shape"].keys()) - set(excepted))
    for key in keys:
        left, right = ours["shape"].get(key), theirs["shape"].get(key)
        if left != right:
            return f"{key} is {left} here and {right} there"
    if len(ours["check"]) != len(theirs["check"]):
        return "they computed different things"
    for left, right in zip(ours["check"], theirs["check"]):
        # The gradient of a normed row's sum of squares is nothing but rounding.
        if not abs(left - right) <= max(tolerance * abs(right), NOTHING):
            return f"results differ: {left:.8g} here, {right:.8g} there"
    return None


def summary(runs):
    seconds = [second for run in runs for second in run["seconds"]]
    return statistics.median(seconds), min(seconds), max(seconds)


def milliseconds(median, low, high):
    return f"{1e3 * median:.4g} ms ({1e3 * low:.4g}–{1e3 * high:.4g})"


def append(path, rows):
    fields = ["date", "commit", "machine", "bench", "program", "version", "median_s", "min_s", "max_s", "repetitions",
              "peak_bytes", "shape", "command"]
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def versions(scipy):
    from importlib.metadata import version

    manifest = (ROOT / "Cargo.toml").read_text().splitlines()
    ours = next(line.split('"')[1] for line in manifest if line.startswith("version"))
    return {"ppd": ours, "torch": version("torch"), "scipy": version("scipy") if scipy else ""}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="measurements of ours, all where none is named")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side, in turn")
    parser.add_argument("--reps", type=int, default=5, help="repetitions in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a full-size step")
    parser.add_argument("--micro-batch", type=int, default=4, help="pairs of each of its micro-batches")
    parser.add_argument("--features", help="cargo features of our side, such as cuda")
    parser.add_argument("--program", help="our side, built already, where there is no cargo")
    parser.add_argument("--no-record", action="store_true", help="do not append to benches/results")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "benches/results", help="append there instead")
    parser.add_argument("--commit", help="that of the program, where there is no repository")
    parser.add_argument("--least-ratio", type=float, help="exit with 1 where a ratio is smaller")
    parser.add_argument("--most-memory", type=float, help="exit with 1 where our peak memory is more of the twin's")
    arguments = parser.parse_args()
    known = {ours for ours, _, _ in ROWS}
    for name in arguments.names:
        if name not in known:
            raise SystemExit(f"unknown measurement {name!r}; known: {', '.join(sorted(known))}")
    return arguments


def options(name, arguments):
    """What both sides are told of a measurement, but for the folder of its inputs."""
    own = ["--threads", str(arguments.threads)]
    if name.startswith("full-"):
        own = ["--pairs", str(arguments.pairs), "--micro-batch", str(arguments.micro_batch)]
    return ["--reps", str(arguments.reps), *own]


def measure(rows, arguments):
    """What each process printed, by program and measurement, in the order of the rounds."""
    wanted = {("ppd", ours) for ours, _, _ in rows} | {("torch", theirs) for _, theirs, _ in rows}
    if any(ours in PASSES for ours, _, _ in rows):
        wanted.add(("ppd", RATE))
    commands = {"ppd": [arguments.program] if arguments.program else built(arguments.features), "torch": TWIN}
    runs = {key: [] for key in wanted}
    with tempfile.TemporaryDirectory() as folder:
        if any(name in NEED_INPUTS for _, name in wanted):
            output([*TWIN, "--export", folder])
        for turn in range(arguments.rounds):
            for program, name in sorted(wanted, key=lambda key: (key[1], key[0])):
                print(f"round {turn + 1} of {arguments.rounds}: {name}, {program}", file=sys.stderr)
                inputs = ["--inputs", folder] if name in NEED_INPUTS else []
                command = [*commands[program], name, *options(name, arguments), *inputs]
                runs[program, name].append(json.loads(output(command)))
    return runs


def peak(runs):
    """The most memory of any run, or None where the system does not tell."""
    return max((run["peak_bytes"] for run in runs if run["peak_bytes"]), default=None)


def memory_share(left, right):
    """Our peak memory over theirs, or None where a system does not tell."""
    return peak(left) / peak(right) if peak(left) and peak(right) else None


def line(ours, theirs, left, right):
    """The cells of one comparison."""
    mine, other = summary(left), summary(right)
    each = sorted(summary([r])[0] / summary([l])[0] for l, r in zip(left, right))
    memory = memory_share(left, right)
    ratio = f"{other[0] / mine[0]:.2f} ({each[0]:.2f}–{each[-1]:.2f})"
    return [ours, theirs, milliseconds(*mine), milliseconds(*other), ratio, f"{memory:.2f}" if memory else "–"]


def shortcomings(left, right, arguments):
    """What was asked of a comparison and does not hold."""
    found, ratio, memory = [], summary(right)[0] / summary(left)[0], memory_share(left, right)
    if arguments.least_ratio is not None and ratio < arguments.least_ratio:
        found.append(f"the ratio is {ratio:.3g}, to be at least {arguments.least_ratio:g}")
    if arguments.most_memory is not None and (memory is None or memory > arguments.most_memory):
        held = "unknown" if memory is None else f"{memory:.3g} of the twin's"
        found.append(f"the peak memory is {held}, to be at most {arguments.most_memory:g}")
    return found


def print_table(rows, runs, arguments):
    """Prints the ratios; answers how many were refused or fall short of what was asked."""
    computers = sorted({machine(run[0]["shape"]["device"]) for run in runs.values()})
    counted = f"median (fastest–slowest) of {arguments.rounds} × {arguments.reps}"
    print(f"{', '.join(computers)}; {arguments.threads} threads; {counted}.\n")
    print("| here | PyTorch / scipy | ppd | PyTorch / scipy | ratio | peak memory |")
    print("| :-- | :-- | --: | --: | --: | --: |")
    failed, notes = 0, []
    for ours, theirs, tolerance in rows:
        left, right = runs["ppd", ours], runs["torch", theirs]
        excepted = EXCEPTIONS.get((ours, theirs), {})
        reasons = [why_not_comparable(*round, tolerance, excepted) for round in zip(left, right)]
        reason = next(filter(None, reasons), None)
        cells = [ours, theirs, "–", "–", f"not comparable: {reason}", "–"] if reason else line(ours, theirs, left, right)
        print("|", " | ".join(cells), "|")
        for key, why in excepted.items():
            values = [side[0]["shape"].get(key) for side in (left, right)]
            notes.append(f"{ours}: {key} is {values[0]} here and {values[1]} there, as {why}.")
        short = [] if reason else shortcomings(left, right, arguments)
        notes += [f"{ours} beside {theirs}: {what}." for what in short]
        failed += bool(reason or short)
    print("\nRatio: their median over ours (of each round: least–greatest). Peak memory: ours over theirs, whole process.")
    print("\n".join(notes))
    return failed


def print_full_size(runs):
    """What the full-size steps mean: images a second, the share of the card's matrix rate, an epoch's hours."""
    steps = [key for key in sorted(runs) if key[1] in PASSES]
    if not steps:
        return
    [rate] = {run["shape"]["flops"] for run in runs["ppd", RATE]}
    rate /= summary(runs["ppd", RATE])[0]
    print(f"\nA bf16 matrix product of {runs['ppd', RATE][0]['shape']['product']} runs at {rate / 1e12:.0f} TFLOP/s here.\n")
    print(f"| | images/s | share of that rate | hours for {EPOCH_PAIRS:,} pairs | peak memory |")
    print("| :-- | --: | --: | --: | --: |")
    for program, name in steps:
        measured = runs[program, name]
        seconds, shape = summary(measured)[0], measured[0]["shape"]
        pairs = shape["latent"][0]
        share = 2 * pairs * PASSES[name] * shape["forward_flops"] / seconds / rate
        hours, memory = EPOCH_PAIRS / pairs * seconds / 3600, peak(measured)
        held = f"{memory / 1e9:.1f} GB" if memory else "–"
        print(f"| {name}, {program} | {2 * pairs / seconds:.2f} | {share:.0%} | {hours:.1f} | {held} |")


def record(runs, arguments):
    """Appends every measurement, with the command that made it, to this machine's file."""
    shown = {"ppd": "cargo bench --bench ppd --", "torch": "python benches/torch/twin.py"}
    commit = arguments.commit
    if commit is None:
        commit = output(["git", "rev-parse", "--short", "HEAD"]).strip()
        commit += "+" if output(["git", "status", "--porcelain", "--untracked-files=no"]).strip() else ""
    version = versions(any(name.startswith("bca") for _, name in runs))
    tables = {}
    for (program, name), measured in sorted(runs.items()):
        median, low, high = summary(measured)
        library = "scipy" if program == "torch" and name.startswith("bca") else program
        inputs = ["--inputs", "DIR"] if name in NEED_INPUTS else []
        computer = machine(measured[0]["shape"]["device"])
        tables.setdefault(computer, []).append({
            "date": datetime.date.today().isoformat(), "commit": commit, "machine": computer,
            "bench": name, "program": library, "version": version[library], "median_s": f"{median:.6g}",
            "min_s": f"{low:.6g}", "max_s": f"{high:.6g}", "repetitions": arguments.rounds * arguments.reps,
            "peak_bytes": peak(measured), "shape": json.dumps(measured[0]["shape"]),
            "command": f"{shown[program]} {shlex.join([name, *options(name, arguments), *inputs])}",
        })
    for computer, table in tables.items():
        slug = "-".join("".join(c if c.isalnum() else " " for c in computer.lower()).split())
        append(arguments.results / f"{slug}.csv", table)


def main():
    arguments = parsed()
    names = arguments.names or [ours for ours, _, _ in ROWS if not ours.startswith("full-")]
    rows = [row for row in ROWS if row[0] in names]
    runs = measure(rows, arguments)
    failed = print_table(rows, runs, arguments)
    print_full_size(runs)
    if not arguments.no_record:
        record(runs, arguments)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
