"""How long does a process take from its start to its map? Without a compilation cache, filling one, and with it.

    python -m benchmarks.startup [--preset fast] [--rows N] [--json FILE]

Runs ``mv2v align`` on the bundled rows, each time in a new process, as a user would. The option
``--compilation-cache`` of ``mv2v`` names no folder, and then an empty one.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import add_json_option, make_parser, print_environment, print_table, write_json
from mv2v_jax import load_demo_data
from mv2v_jax.config import PRESETS


def time_process(folder: Path, preset: str, cache: str) -> dict[str, float]:
    """Seconds of one process as measured from outside, and the seconds of compiling and fitting that it reports."""
    command = [
        sys.executable,
        "-m",
        "mv2v_jax",
        "--compilation-cache",
        cache,
        "align",
        "x.npy",
        "y.npy",
        "-o",
        "map.safetensors",
    ]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--preset", preset, "--accept", "--json"], cwd=folder, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"mv2v ended with {done.returncode}: {done.stderr[-2000:]}")
    reported = json.loads(done.stdout.splitlines()[-1])
    return {"process": seconds, "compile": reported["compile_seconds"], "fit": reported["seconds"]}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the processes and print the table; returns the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="fast", help="preset to fit (default: fast)")
    parser.add_argument("--rows", type=int, help="number of bundled rows per space to use (default: all)")
    add_json_option(parser)
    options = parser.parse_args(arguments)
    environment = print_environment()
    data = load_demo_data()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in "xy":
            np.save(folder / f"{side}.npy", getattr(data, side)[: options.rows])
        cache = str(folder / "cache")
        found = {
            "without a cache": time_process(folder, options.preset, ""),
            "filling a cache": time_process(folder, options.preset, cache),
            "with the cache": time_process(folder, options.preset, cache),
        }
        size = sum(file.stat().st_size for file in (folder / "cache").iterdir())
    without = found["without a cache"]["compile"]
    columns = ["process", "start to map, s", "compiling, s", "of that without a cache", "fitting, s"]
    rows = [
        [
            kind,
            f"{times['process']:.1f}",
            f"{times['compile']:.1f}",
            f"{times['compile'] / without:.2f}",
            f"{times['fit']:.1f}",
        ]
        for kind, times in found.items()
    ]
    print_table(f"mv2v align, {options.preset} preset, bundled rows; cache of {size / 2**20:.1f} MiB", columns, rows)
    record = {"environment": environment, "times": found, "cache_bytes": size}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
