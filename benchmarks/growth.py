"""Time and peak memory of a fit as rows grow, each size in a process of its own that reads memory-mapped files.

python -m benchmarks.growth [--sizes 3000,10000,30000,100000,300000] [--dimensions 256,768] [--presets fast,default]
    [--dtype float32] [--folder DIR] [--json FILE]

Rows are synthetic, with a planted map (`benchmarks.planted`), drawn to files that are deleted afterwards. The exponent
is that of the power of n that fits best.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import (
    add_json_option,
    add_preset_option,
    print_environment,
    print_requirement,
    print_table,
    read_counts,
    seconds_of,
    write_json,
)
from benchmarks.planted import draw_pairs, plant, write_side
from mv2v_jax import PRESETS, align
from mv2v_jax.evaluation import metrics

_NUM_EVAL = 2_000
_SEED = 0
_GIB = 2**30
MOST_SECONDS_EXPONENT = 1.0
# What the largest fits may take: (rows, dimensions) -> GiB.
MOST_GIB = {(300_000, 768): 6.0, (1_000_000, 256): 24.0}


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fit_files(folder: Path, preset: str) -> dict[str, float]:
    """One fit of the files in ``folder`` in this process: seconds of the first and second call, memory, scores."""
    before = peak_bytes()
    x, y = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy")
    key, config = jax.random.key(_SEED), PRESETS[preset]()
    _, first = seconds_of(align, key, x, y, config)
    result, steady = seconds_of(align, key, x, y, config)
    peak = peak_bytes()
    x_eval, y_eval = draw_pairs(plant(_SEED, x.shape[1]), _SEED, _NUM_EVAL)
    scores = metrics.evaluate(result.map, x_eval, y_eval)
    return {
        "first_seconds": first,
        "steady_seconds": steady,
        "peak_bytes": peak,
        "peak_bytes_before": before,
        "input_bytes": x.nbytes + y.nbytes,
        "top1": float(scores.top1),
        "foscttm": float(scores.foscttm),
    }


def _fit_in_child(folder: Path, preset: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.growth", "--child", str(folder), "--presets", preset]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the fit ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the logarithms: 1 where values grow as the sizes do."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measure(
    sizes: list[int], dimensions: list[int], presets: list[str], dtype: str, folder: Path
) -> list[dict[str, Any]]:
    """Fit every size under every preset; the files of one size are there at a time."""
    runs = []
    for d in dimensions:
        for n in sizes:
            spaces = plant(_SEED, d)
            paths = [folder / f"{name}.npy" for name in "xy"]
            for side, path in enumerate(paths):
                write_side(path, spaces, _SEED, n, side, dtype)
            for preset in presets:
                run = {"rows": n, "dimensions": d, "preset": preset, **_fit_in_child(folder, preset)}
                print(f"{preset}, {n:,} x {d}: {run['steady_seconds']:.1f} s", flush=True)
                runs.append(run)
            for path in paths:
                path.unlink()
    return runs


def show(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print a table a preset and dimension, and the requirements; returns these."""
    verdicts = []
    for preset, d in dict.fromkeys((run["preset"], run["dimensions"]) for run in runs):
        found = [run for run in runs if (run["preset"], run["dimensions"]) == (preset, d)]
        rows = [
            [
                f"{run['rows']:,}",
                f"{run['first_seconds']:.1f}",
                f"{run['steady_seconds']:.1f}",
                f"{run['input_bytes'] / _GIB:.2f}",
                f"{run['peak_bytes'] / _GIB:.2f}",
                f"{run['top1']:.3f}",
                f"{run['foscttm']:.5f}",
            ]
            for run in found
        ]
        columns = ["rows a side", "first call s", "steady s", "inputs GiB", "peak GiB", "top-1", "FOSCTTM"]
        print_table(f"{preset}, {d} dimensions", columns, rows)
        if len(found) > 1:
            sizes = [run["rows"] for run in found]
            seconds = exponent(sizes, [run["steady_seconds"] for run in found])
            memory = exponent(sizes, [run["peak_bytes"] for run in found])
            text = f"{preset}, {d} dimensions: steady seconds grow as n^{seconds:.2f}, peak memory as n^{memory:.2f}"
            passed = seconds <= MOST_SECONDS_EXPONENT and memory <= 1 if preset == "fast" else None
            verdicts.append(print_requirement(text, passed))
    for run in runs:
        most = MOST_GIB.get((run["rows"], run["dimensions"]))
        if most is not None:
            peak = run["peak_bytes"] / _GIB
            text = f"{run['preset']}: {run['rows']:,} x {run['dimensions']} in {most:g} GiB: {peak:.2f}"
            verdicts.append(print_requirement(text, peak <= most))
    return verdicts


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the arguments, fit, print the tables; returns the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--sizes", type=read_counts, default=[3_000, 10_000, 30_000, 100_000, 300_000], metavar="N,...")
    parser.add_argument("--dimensions", type=read_counts, default=[256, 768], metavar="D,...")
    add_preset_option(parser, ["fast", "default"])
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float32", help="of the files")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(fit_files(options.child, options.presets[0])))
        return []
    environment = print_environment()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = measure(options.sizes, options.dimensions, options.presets, options.dtype, Path(folder))
    verdicts = show(runs)
    write_json(options.json, {"environment": environment, "runs": runs, "requirements": verdicts})
    return runs


if __name__ == "__main__":
    main()
