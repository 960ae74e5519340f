"""What a sweep over β saves: an 8-point sweep with one empty cache beside eight single runs, each with an empty cache.

    python3 benches/sweep.py                                          # builds a release; minutes on an idle machine
    python3 benches/sweep.py --steps 4 --program target/debug/ppd --no-record

Both run experiments/beta.toml, shortened, on the desk. The reference's errors follow from pair and visit alone, so the
sweep evaluates the reference once where the single runs do so eight times. Wall time is that of the whole commands;
seconds of training and the denoiser's evaluations are the records'. Ends with 3 where one of them is more than 0.75 of the
single runs'. What was measured is appended to benches/results/<machine>.csv with both commands.
"""

import argparse
import datetime
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
from side_by_side import ROOT, append, machine, output

BETAS = [0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0]
NEEDED = 0.75
NAMES = ["wall time", "seconds of training", "evaluations in training", "evaluations"]


def built():
    command = ["cargo", "build", "--release", "--locked", "--bin", "ppd", "--message-format", "json"]
    lines = map(json.loads, output(command).splitlines())
    return next(line["executable"] for line in lines if line.get("executable"))


def arguments(options, betas, folder):
    """One run over these β; its records and its cache lie in `folder`."""
    axes = f'sweep.axes={{"objective.beta"={betas},"train.learning_rate"=[1e-4]}}'
    settings = [axes, f"train.steps={options.steps}", f"train.warmup_steps={min(50, options.steps)}",
                f"data.num_prompts={options.prompts}"]
    sets = [word for setting in settings for word in ("--set", setting)]
    places = [word for name in ("results", "figures", "cache") for word in (f"--{name}", f"{folder}/{name}")]
    return ["sweep", "beta", "--quiet", "--device", "cpu", "--threads", str(options.threads), *sets, *places]


def counted(folder):
    """What the records of a folder hold: seconds of training, evaluations in training, and all evaluations."""
    headers = [json.loads(path.read_text()) for path in pathlib.Path(folder, "results").rglob("header.json")]
    if not headers or any(header["finished"] is None for header in headers):
        raise SystemExit(f"{folder}: a record is missing or not complete")
    train = sum(header["counts"].get("train_evaluations", 0) for header in headers)
    sampled = sum(header["counts"]["sample_evaluations"] for header in headers)
    return [sum(header["seconds"].get("train", 0.0) for header in headers), train, train + sampled]


def measure(program, options, runs):
    """What NAMES names, summed over a run for each list of β, each with folders of its own."""
    total = [0.0, 0.0, 0, 0]
    for betas in runs:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            output([program, *arguments(options, betas, folder)])
            wall = time.monotonic() - begun
            total = [sum(pair) for pair in zip(total, [wall, *counted(folder)])]
    return total


def record(measured, runs, options, version):
    commit = output(["git", "rev-parse", "--short", "HEAD"]).strip()
    dirty = "+" if output(["git", "status", "--porcelain", "--untracked-files=no"]).strip() else ""
    rows = []
    for kind, (wall, seconds, train, evaluations) in measured.items():
        shape = {"runs": len(runs[kind]), "betas": len(BETAS), "steps": options.steps, "prompts": options.prompts,
                 "threads": options.threads, "device": "cpu", "train_seconds": round(seconds, 3),
                 "train_evaluations": train, "evaluations": evaluations}
        rows.append({
            "date": datetime.date.today().isoformat(), "commit": commit + dirty, "machine": machine(), "bench": kind,
            "program": "ppd", "version": version, "median_s": f"{wall:.6g}", "min_s": f"{wall:.6g}",
            "max_s": f"{wall:.6g}", "repetitions": 1, "peak_bytes": None, "shape": json.dumps(shape),
            "command": shlex.join(["ppd", *arguments(options, runs[kind][0], "EMPTY")]),
        })
    slug = "-".join("".join(c if c.isalnum() else " " for c in machine().lower()).split())
    append(ROOT / f"benches/results/{slug}.csv", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="optimiser steps of each training [150]")
    parser.add_argument("--prompts", type=int, default=1, help="validation prompts that are sampled [1]")
    parser.add_argument("--threads", type=int, default=2, help="worker threads [2]")
    parser.add_argument("--program", help="a ppd that is built already [a release is built]")
    parser.add_argument("--no-record", action="store_true", help="do not append to benches/results")
    options = parser.parse_args()
    program = str(pathlib.Path(options.program).resolve()) if options.program else built()
    runs = {"sweep": [BETAS], "single-runs": [[beta] for beta in BETAS]}
    measured = {}
    for kind, of_kind in runs.items():
        said = shlex.join(["ppd", *arguments(options, of_kind[0], "EMPTY")])
        print(f"{kind}: {len(of_kind)} × {said}", flush=True)
        measured[kind] = measure(program, options, of_kind)
        wall, seconds, train, evaluations = measured[kind]
        print(f"  {wall:.1f} s, {seconds:.1f} s of them training; {train} evaluations in training, {evaluations} in all")
    ratios = [together / apart for together, apart in zip(*measured.values())]
    for name, ratio in zip(NAMES, ratios):
        print(f"{name}: {ratio:.3f} of the single runs' (needed: at most {NEEDED})")
    if not options.no_record:
        record(measured, runs, options, output([program, "--version"]).split()[-1])
    return 0 if all(ratio <= NEEDED for ratio in ratios) else 3


if __name__ == "__main__":
    sys.exit(main())
