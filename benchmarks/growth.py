"""How do time and peak memory of a fit grow with rows, dimensions, restarts and clusters?

    python -m benchmarks.growth [--rows 10000,3000,...] [--dimensions 256,128,...] [--restarts 2,1,...]
        [--clusters 30,100,...] [--presets fast] [--dtype float16] [--folder FOLDER] [--json FILE]

The first value of every list is where the others are measured: one thing varies at a time. Rows are synthetic, with a
planted map (`benchmarks.planted`). They are written to files, which are deleted afterwards; each fit reads
memory-mapped files in its own process, stage by stage as the command line does. The exponents are those of the powers
that fit best.
"""

import argparse
import dataclasses
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
    write_json,
)
from benchmarks.planted import draw_pairs, plant, write_side
from mv2v_jax import Config
from mv2v_jax.cli.options import DEFAULT_RESTARTS
from mv2v_jax.evaluation import metrics
from mv2v_jax.runs.compiled import align_with_progress

_NUM_EVAL = 2_000
_SEED = 0
_GIB = 2**30
# What varies, as an option of the command line: the value at which the others are measured, then its other values.
VARIED = {
    "rows": [10_000, 3_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000],
    "dimensions": [256, 128, 768, 1_536, 4_096],
    "restarts": [DEFAULT_RESTARTS, 1, 4, 16, 64, 256],
    "clusters": [30, 100, 300, 1_000],
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one fit is measured at: rows and dimensions of both spaces, restarts, and clusters per anchor set."""

    rows: int
    dimensions: int
    restarts: int
    clusters: int
    preset: str


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def fit_files(folder: Path, setting: Setting) -> dict[str, float]:
    """One fit of the files in ``folder`` in this process: seconds, memory, scores."""
    before = peak_bytes()
    x, y = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy")
    config = Config.preset(setting.preset).replace(anchors={"num_clusters": setting.clusters})
    found = align_with_progress(jax.random.key(_SEED), x, y, config, lambda *_: None, setting.restarts)
    peak = peak_bytes()
    x_eval, y_eval = draw_pairs(plant(_SEED, x.shape[1]), _SEED, _NUM_EVAL)
    scores = metrics.evaluate(found.result.best.map, x_eval, y_eval)
    return {
        "compile_seconds": found.compile_seconds,
        "steady_seconds": found.seconds,
        "peak_bytes": peak,
        "peak_bytes_before": before,
        "input_bytes": x.nbytes + y.nbytes,
        "top1": float(scores.top1),
        "foscttm": float(scores.foscttm),
    }


def _fit_in_child(folder: Path, setting: Setting) -> dict[str, float]:
    values = json.dumps(dataclasses.asdict(setting))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", "--child", str(folder), values], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"the fit ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def exponent(values: list[int], measured: list[float]) -> float:
    """Slope of the logarithms: 1 if what was measured grows in proportion to the values."""
    return float(np.polyfit(np.log(values), np.log(measured), 1)[0])


def settings(varied: dict[str, list[int]], presets: list[str]) -> list[tuple[str, Setting]]:
    """What varies and the setting, of all fits."""
    base = {name: values[0] for name, values in varied.items()}
    found = []
    for preset in presets:
        for name, values in varied.items():
            for value in sorted(set(values)):
                found.append((name, Setting(**{**base, name: value}, preset=preset)))
    return found


def measure(wanted: list[tuple[str, Setting]], dtype: str, folder: Path) -> list[dict[str, Any]]:
    """Fit every setting once; only the files of one size exist at a time."""
    measured: dict[Setting, dict[str, float]] = {}
    written = None
    for _, setting in sorted(wanted, key=lambda each: (each[1].rows, each[1].dimensions)):
        if setting in measured:
            continue
        if written != (setting.rows, setting.dimensions):
            written = (setting.rows, setting.dimensions)
            spaces = plant(_SEED, setting.dimensions)
            for side, name in enumerate("xy"):
                write_side(folder / f"{name}.npy", spaces, _SEED, setting.rows, side, dtype)
        measured[setting] = _fit_in_child(folder, setting)
        print(f"{setting}: {measured[setting]['steady_seconds']:.1f} s", flush=True)
    return [{"varied": name, **dataclasses.asdict(setting), **measured[setting]} for name, setting in wanted]


def show(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print one table per preset, and the exponents; returns the exponents."""
    exponents = []
    for preset in dict.fromkeys(run["preset"] for run in runs):
        of_preset = [run for run in runs if run["preset"] == preset]
        rows = [
            [
                run["varied"],
                f"{run[run['varied']]:,}",
                f"{run['compile_seconds']:.1f}",
                f"{run['steady_seconds']:.1f}",
                f"{run['input_bytes'] / _GIB:.2f}",
                f"{run['peak_bytes'] / _GIB:.2f}",
                f"{run['top1']:.3f}",
                f"{run['foscttm']:.5f}",
            ]
            for run in of_preset
        ]
        columns = ["what varies", "value", "compile s", "steady s", "inputs GiB", "peak GiB", "top-1", "FOSCTTM"]
        print_table(f"{preset}, one thing at a time", columns, rows)
        for name in dict.fromkeys(run["varied"] for run in of_preset):
            found = [run for run in of_preset if run["varied"] == name]
            if len(found) > 1:
                values = [run[name] for run in found]
                powers = {
                    "seconds": exponent(values, [run["steady_seconds"] for run in found]),
                    "memory": exponent(values, [run["peak_bytes"] for run in found]),
                }
                print(f"steady seconds grow as {name}^{powers['seconds']:.2f}, peak memory as ^{powers['memory']:.2f}")
                exponents.append({"preset": preset, "varied": name, **powers})
    return exponents


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fit and print the tables; returns the figures."""
    parser = make_parser(__doc__)
    for name, values in VARIED.items():
        listed = ",".join(map(str, values))
        parser.add_argument(
            f"--{name}", type=read_counts, default=values, metavar="N,...", help=f"{name} (default: {listed})"
        )
    add_preset_option(parser, ["fast"])
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="dtype of the files (default: float16)"
    )
    parser.add_argument("--folder", type=Path, help="folder for the files (default: a temporary folder)")
    add_json_option(parser)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        folder, values = options.child
        found = fit_files(Path(folder), Setting(**json.loads(values)))
        print(json.dumps(found))
        return found
    environment = print_environment()
    wanted = settings({name: getattr(options, name) for name in VARIED}, options.presets)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = measure(wanted, options.dtype, Path(folder))
    record = {"environment": environment, "runs": runs, "exponents": show(runs)}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
