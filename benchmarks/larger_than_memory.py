"""The command line on rows that memory does not hold: an alignment and an application, from folders of shards.

python -m benchmarks.larger_than_memory [--rows 10000000] [--dimensions 256] [--shards 40] [--apply-rows 20000000]
    [--preset default] [--folder DIR] [--json FILE]

Rows are synthetic, with a planted map (`benchmarks.planted`), in float16. What is applied is the source's shards as
often as it takes, under other names. Every command is a process of its own, whose peak resident memory the kernel
tells. The files, 2 bytes a number, are deleted afterwards.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.common import add_json_option, print_environment, print_requirement, print_table, write_json
from benchmarks.planted import draw_pairs, plant, write_shards
from mv2v_jax import PRESETS, apply
from mv2v_jax.data.map_file import load_map
from mv2v_jax.data.npy_rows import open_rows
from mv2v_jax.evaluation import metrics

_NUM_EVAL = 2_000
_SEED = 0
_GIB = 2**30
MOST_ALIGN_GIB = 4.0
MOST_APPLY_GIB = 1.0
MOST_MEAN_ERROR = 1e-6


def run_command(*arguments: str | Path) -> dict[str, Any]:
    """Run ``mv2v`` in a process of its own: what it printed, its seconds and its peak resident bytes."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "mv2v_jax", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        # Not the peak of all children, which the largest so far would keep.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (out, err):
            stream.seek(0)
        if process.returncode:
            raise SystemExit(f"mv2v {arguments[0]} ended with {process.returncode}: {err.read()[-2000:]}")
        printed = out.read()
    peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    return {"printed": printed, "wall_seconds": time.perf_counter() - started, "peak_bytes": peak}


def write_sides(folder: Path, num_rows: int, d: int, num_shards: int) -> list[np.ndarray]:
    """Both sides, side by side; their means."""
    spaces = plant(_SEED, d)
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=fresh) as processes:
        written = [
            processes.submit(write_shards, folder / name, spaces, _SEED, num_rows, num_shards, side, "float16")
            for side, name in enumerate("xy")
        ]
        return [side.result() for side in written]


def measure_align(folder: Path, preset: str, means: list[np.ndarray]) -> dict[str, Any]:
    """Align both folders: times, memory, quality against planted pairs, and how far the means are off."""
    map_file = folder / "map.safetensors"
    done = run_command("align", folder / "x", folder / "y", "-o", map_file, "--preset", preset, "--accept", "--json")
    facts = json.loads(done.pop("printed"))
    linear_map, _ = load_map(map_file)
    scores = metrics.evaluate(linear_map, *draw_pairs(plant(_SEED, means[0].size), _SEED, _NUM_EVAL))
    errors = [
        float(np.abs(np.asarray(found, np.float64) - mean).max())
        for found, mean in zip((linear_map.mean_x, linear_map.mean_y), means, strict=True)
    ]
    kept = ("n", "m", "d_x", "d_y", "preset", "verdict", "confidence", "seconds", "compile_seconds")
    quality = {"top1": float(scores.top1), "foscttm": float(scores.foscttm), "mean_error": max(errors)}
    return {**{name: facts[name] for name in kept}, **done, **quality}


def measure_apply(folder: Path, num_rows: int) -> dict[str, Any]:
    """Apply the map to shards of the source, as often as it takes: speed, memory, and whether rows are right."""
    shards = sorted((folder / "x").iterdir())
    many = folder / "many"
    many.mkdir()
    linked = 0
    while linked < num_rows:
        number = len(list(many.iterdir()))
        shard = shards[number % len(shards)]
        (many / f"part-{number:06d}.npy").hardlink_to(shard)
        linked += len(open_rows(shard))
    output = folder / "mapped.npy"
    done = run_command("apply", folder / "map.safetensors", many, "-o", output, "--accept")
    rows, mapped = open_rows(many), open_rows(output)
    places = np.sort(np.random.default_rng(_SEED).choice(len(rows), min(4_096, len(rows)), replace=False))
    linear_map, _ = load_map(folder / "map.safetensors")
    expected = np.asarray(apply(linear_map, jnp.asarray(rows[places])), np.float32)
    error = np.abs(expected - mapped[places].astype(np.float32)).max()
    return {
        "rows": len(rows),
        "wall_seconds": done["wall_seconds"],
        "rows_per_second": len(rows) / done["wall_seconds"],
        "peak_bytes": done["peak_bytes"],
        "largest_error": float(error),
        "printed": done["printed"].strip(),
    }


def show(align: dict[str, Any], applied: dict[str, Any]) -> list[dict[str, Any]]:
    """Print both tables and the requirements; returns these."""
    gib = 2 * align["d_x"] * align["n"] / _GIB
    columns = ["rows a side", "GiB a side", "wall s", "fit s", "compile s", "peak GiB", "top-1", "FOSCTTM", "verdict"]
    row = [f"{align['n']:,}", f"{gib:.2f}"]
    row += [f"{align[name]:.1f}" for name in ("wall_seconds", "seconds", "compile_seconds")]
    row += [f"{align['peak_bytes'] / _GIB:.2f}", f"{align['top1']:.3f}", f"{align['foscttm']:.5f}", align["verdict"]]
    print_table(f"align, {align['preset']}, {align['d_x']} dimensions, float16", columns, [row])
    row = [f"{applied['rows']:,}", f"{applied['wall_seconds']:.1f}", f"{applied['rows_per_second']:,.0f}"]
    print_table("apply", ["rows", "wall s", "rows/s", "peak GiB"], [[*row, f"{applied['peak_bytes'] / _GIB:.2f}"]])
    peaks = align["peak_bytes"] / _GIB, applied["peak_bytes"] / _GIB
    return [
        print_requirement(f"align under {MOST_ALIGN_GIB:g} GiB resident: {peaks[0]:.2f}", peaks[0] < MOST_ALIGN_GIB),
        print_requirement(f"apply under {MOST_APPLY_GIB:g} GiB resident: {peaks[1]:.2f}", peaks[1] < MOST_APPLY_GIB),
        print_requirement(
            f"means right to {MOST_MEAN_ERROR:g}: {align['mean_error']:.1e}", align["mean_error"] <= MOST_MEAN_ERROR
        ),
        # Of float16, near 1.
        print_requirement(
            f"rows mapped as in memory: off by {applied['largest_error']:.1e}", applied["largest_error"] <= 2**-10
        ),
    ]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, write, align, apply, print; returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows a side")
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--shards", type=int, default=40, help="files a side")
    parser.add_argument("--apply-rows", type=int, default=20_000_000, help="rows to apply the map to, at least")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    options = parser.parse_args(arguments)
    environment = print_environment()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        started = time.perf_counter()
        means = write_sides(folder, options.rows, options.dimensions, options.shards)
        print(f"written in {time.perf_counter() - started:.1f} s", flush=True)
        align = measure_align(folder, options.preset, means)
        print(f"aligned in {align['wall_seconds']:.1f} s", flush=True)
        applied = measure_apply(folder, options.apply_rows)
    requirements = show(align, applied)
    record = {"environment": environment, "align": align, "apply": applied, "requirements": requirements}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
