"""What do `mv2v align` and `mv2v apply` cost on rows that do not fit into memory? Both commands on folders of shards.

    python -m benchmarks.larger_than_memory [--rows 10000000] [--dimensions 256] [--shards 40] [--apply-rows 20000000]
        [--preset default] [--folder FOLDER] [--json FILE]

Rows are synthetic, with a planted map (`benchmarks.planted`), in float16. The map is applied to the shards of the
source, repeated under other names. Every command runs in its own process, and the operating system reports its peak
resident memory. The files take 2 bytes per number, 30 GB in all, and are deleted afterwards.
"""

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

from benchmarks.common import add_json_option, make_parser, print_environment, print_table, write_json
from benchmarks.planted import draw_pairs, plant, write_shards
from mv2v_jax import apply, load_map, open_rows
from mv2v_jax.config import PRESETS
from mv2v_jax.evaluation import metrics

_NUM_EVAL = 2_000
_SEED = 0
_GIB = 2**30


def run_command(*arguments: str | Path) -> dict[str, Any]:
    """Run ``mv2v`` in its own process: its output, its seconds and its peak resident bytes."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "mv2v_jax", "--compilation-cache", "", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        # The usage of this child; that of all children would keep the peak of the largest one.
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
    """Write both sides, in two processes; returns their means."""
    spaces = plant(_SEED, d)
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=fresh) as processes:
        written = [
            processes.submit(write_shards, folder / name, spaces, _SEED, num_rows, num_shards, side, "float16")
            for side, name in enumerate("xy")
        ]
        return [side.result() for side in written]


def measure_align(folder: Path, preset: str, means: list[np.ndarray]) -> dict[str, Any]:
    """Align both folders: times, memory, quality on planted pairs, and the error of the means."""
    map_file = folder / "map.safetensors"
    done = run_command("align", folder / "x", folder / "y", "-o", map_file, "--preset", preset, "--accept", "--json")
    facts = json.loads(done.pop("printed").splitlines()[-1])
    linear_map, _ = load_map(map_file)
    scores = metrics.evaluate(linear_map, *draw_pairs(plant(_SEED, means[0].size), _SEED, _NUM_EVAL))
    errors = [
        float(np.abs(np.asarray(centering.mean, np.float64) - mean).max())
        for centering, mean in zip((linear_map.source, linear_map.target), means, strict=True)
    ]
    kept = ("n", "m", "d_x", "d_y", "preset", "verdict", "confidence", "seconds", "compile_seconds")
    quality = {"top1": float(scores.top1), "foscttm": float(scores.foscttm), "mean_error": max(errors)}
    return {**{name: facts[name] for name in kept}, **done, **quality}


def measure_apply(folder: Path, num_rows: int) -> dict[str, Any]:
    """Apply the map to at least ``num_rows`` rows in repeated shards: speed, memory, and the largest error of a row."""
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


def show(align: dict[str, Any], applied: dict[str, Any]) -> None:
    """Print both tables."""
    gib = 2 * align["d_x"] * align["n"] / _GIB
    columns = ["rows per space", "GiB per space", "wall s", "fit s", "compile s", "peak GiB"]
    row = [f"{align['n']:,}", f"{gib:.2f}"]
    row += [f"{align[name]:.1f}" for name in ("wall_seconds", "seconds", "compile_seconds")]
    row += [f"{align['peak_bytes'] / _GIB:.2f}", f"{align['top1']:.3f}", f"{align['foscttm']:.5f}", align["verdict"]]
    print_table(
        f"align, {align['preset']}, {align['d_x']} dimensions, float16",
        [*columns, "top-1", "FOSCTTM", "verdict", "error of the means"],
        [[*row, f"{align['mean_error']:.1e}"]],
    )
    row = [f"{applied['rows']:,}", f"{applied['wall_seconds']:.1f}", f"{applied['rows_per_second']:,.0f}"]
    print_table(
        "apply (errors against mapping the same rows in memory; float16 rounds numbers near 1 by up to 4.9e-4)",
        ["rows", "wall s", "rows/s", "peak GiB", "largest error"],
        [[*row, f"{applied['peak_bytes'] / _GIB:.2f}", f"{applied['largest_error']:.1e}"]],
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Write, align, apply and print the tables; returns the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows per space (default: 10,000,000)")
    parser.add_argument("--dimensions", type=int, default=256, help="dimensions of both spaces (default: 256)")
    parser.add_argument("--shards", type=int, default=40, help="files per space (default: 40)")
    parser.add_argument(
        "--apply-rows", type=int, default=20_000_000, help="minimum number of rows to map (default: 20,000,000)"
    )
    parser.add_argument("--preset", choices=PRESETS, default="default", help="preset to fit (default: default)")
    parser.add_argument("--folder", type=Path, help="folder for the files (default: a temporary folder)")
    add_json_option(parser)
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
    show(align, applied)
    record = {"environment": environment, "align": align, "apply": applied}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
