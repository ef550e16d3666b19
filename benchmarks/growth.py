"""How do time and peak memory of a fit grow with the number of rows?

    python -m benchmarks.growth [--sizes 3000,10000,30000,100000,300000] [--dimensions 256,768] [--presets fast,default]
        [--dtype float32] [--folder FOLDER] [--json FILE]

Rows are synthetic, with a planted map (`benchmarks.planted`). They are written to files, which are deleted afterwards;
each fit reads memory-mapped files in its own process. The exponents are those of the powers of n that fit best.
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
    make_parser,
    print_environment,
    print_table,
    read_counts,
    seconds_of,
    write_json,
)
from benchmarks.planted import draw_pairs, plant, write_side
from mv2v_jax import Config, align
from mv2v_jax.evaluation import metrics

_NUM_EVAL = 2_000
_SEED = 0
_GIB = 2**30


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fit_files(folder: Path, preset: str) -> dict[str, float]:
    """One fit of the files in ``folder`` in this process: seconds of the first and second call, memory, scores."""
    before = peak_bytes()
    x, y = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy")
    key, config = jax.random.key(_SEED), Config.preset(preset)
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
    """Slope of the logarithms: 1 if the values grow in proportion to the sizes."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measure(
    sizes: list[int], dimensions: list[int], presets: list[str], dtype: str, folder: Path
) -> list[dict[str, Any]]:
    """Fit every size with every preset; only the files of one size exist at a time."""
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
    """Print one table per preset and dimension, and the exponents; returns the exponents."""
    exponents = []
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
        columns = ["rows per space", "first call s", "steady s", "inputs GiB", "peak GiB", "top-1", "FOSCTTM"]
        print_table(f"{preset}, {d} dimensions", columns, rows)
        if len(found) > 1:
            sizes = [run["rows"] for run in found]
            seconds = exponent(sizes, [run["steady_seconds"] for run in found])
            memory = exponent(sizes, [run["peak_bytes"] for run in found])
            print(f"steady seconds grow as n^{seconds:.2f}, peak memory as n^{memory:.2f}")
            exponents.append({"preset": preset, "dimensions": d, "seconds": seconds, "memory": memory})
    return exponents


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit and print the tables; returns the figures."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--sizes",
        type=read_counts,
        default=[3_000, 10_000, 30_000, 100_000, 300_000],
        metavar="N,...",
        help="numbers of rows per space",
    )
    parser.add_argument(
        "--dimensions", type=read_counts, default=[256, 768], metavar="D,...", help="dimensions of both spaces"
    )
    add_preset_option(parser, ["fast", "default"])
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float32", help="dtype of the files (default: float32)"
    )
    parser.add_argument("--folder", type=Path, help="folder for the files (default: a temporary folder)")
    add_json_option(parser)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        found = fit_files(options.child, options.presets[0])
        print(json.dumps(found))
        return found
    environment = print_environment()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = measure(options.sizes, options.dimensions, options.presets, options.dtype, Path(folder))
    record = {"environment": environment, "runs": runs, "exponents": show(runs)}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
