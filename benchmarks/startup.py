"""From the start of a process to its map: without a cache of compiled functions, filling one, and with it.

python -m benchmarks.startup [--preset fast] [--json FILE]

Runs ``mv2v align`` on the bundled set, each time in a process of its own, as a person would; the option
``--compilation-cache`` names a fresh folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import add_json_option, print_environment, print_requirement, print_table, write_json
from mv2v_jax import PRESETS
from mv2v_jax.data.demo import load_demo_data

# What is compiled anew with a cache may take this part of what it takes without.
MOST_COMPILED_AGAIN = 0.3


def time_process(folder: Path, preset: str, cache: list[str]) -> dict[str, float]:
    """Seconds of one process as seen from outside, and those it says it spent compiling and fitting."""
    command = [sys.executable, "-m", "mv2v_jax", *cache, "align", "x.npy", "y.npy", "-o", "map.safetensors"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--preset", preset, "--accept", "--json"], cwd=folder, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"mv2v ended with {done.returncode}: {done.stderr[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    return {"process": seconds, "compile": said["compile_seconds"], "fit": said["seconds"]}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Read the arguments, run the processes, print the table; returns the times of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--preset", choices=PRESETS, default="fast")
    parser.add_argument("--rows", type=int, help="use the first rows of the bundled set only (default: all)")
    options = parser.parse_args(arguments)
    environment = print_environment()
    data = load_demo_data()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in "xy":
            np.save(folder / f"{side}.npy", getattr(data, side)[: options.rows])
        cache = ["--compilation-cache", str(folder / "cache")]
        found = {
            "without a cache": time_process(folder, options.preset, []),
            "filling a cache": time_process(folder, options.preset, cache),
            "with the cache": time_process(folder, options.preset, cache),
        }
        size = sum(file.stat().st_size for file in (folder / "cache").iterdir())
    columns = ["process", "start to map, s", "compiling, s", "fitting, s"]
    rows = [[kind, *(f"{times[part]:.1f}" for part in ("process", "compile", "fit"))] for kind, times in found.items()]
    print_table(f"mv2v align, {options.preset} preset, bundled set; cache of {size / 2**20:.1f} MiB", columns, rows)
    share = found["with the cache"]["compile"] / found["without a cache"]["compile"]
    text = f"compiling with the cache at most {MOST_COMPILED_AGAIN:g} of that without: {share:.2f}"
    verdict: dict[str, Any] = print_requirement(text, share <= MOST_COMPILED_AGAIN)
    record = {"environment": environment, "times": found, "cache_bytes": size, "requirement": verdict}
    write_json(options.json, record)
    return found


if __name__ == "__main__":
    main()
