"""Whether memory stays flat over many restarts: `mv2v stability` in a process of its own, watched as it runs.

python -m benchmarks.soak [--data DIR] [--rows N --eval N] [--preset fast] [--restarts 1000] [--chunk 20] [--json FILE]

The first tenth of the restarts, in which everything is compiled, is what the rest is compared with.
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

from benchmarks.common import add_data_options, load_split, print_environment, print_requirement, write_json
from mv2v_jax import PRESETS

_MOST_GROWTH = 0.05


def resident_bytes(process: int) -> int | None:
    """Resident memory of another process, from Linux's /proc; none where it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(found[0].split()[1]) * 1024 if found else None


def watch(command: list[str], chunks: Path) -> list[tuple[int, int]]:
    """Run a command; the most resident memory seen while each number of files was in a folder."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen: dict[int, int] = {}
    while process.poll() is None:
        resident = resident_bytes(process.pid)
        if resident is not None:
            done = len(list(chunks.glob("restarts-*.safetensors")))
            seen[done] = max(seen.get(done, 0), resident)
        time.sleep(0.2)
    _, error = process.communicate()
    if process.returncode not in (0, 3):
        raise SystemExit(f"mv2v stability ended with {process.returncode}: {error[-2000:]}")
    return sorted(seen.items())


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Read the arguments, run, print how memory went; returns the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_options(parser)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="fast")
    parser.add_argument("--restarts", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=20, help="restarts a file")
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in ("x", "y"):
            np.save(folder / f"{side}.npy", getattr(split, side))
        study = folder / "study"
        plan = ["--restarts", str(options.restarts), "--chunk", str(options.chunk), "--bootstraps", "0"]
        command = [sys.executable, "-m", "mv2v_jax", "stability", str(folder / "x.npy"), str(folder / "y.npy")]
        started = time.perf_counter()
        seen = watch(
            [
                *command,
                "-o",
                str(study),
                "--preset",
                options.preset,
                *plan,
                "--sizes",
                str(len(split.x) // 2),
                "--no-plots",
            ],
            study / "chunks",
        )
        seconds = time.perf_counter() - started
        facts = json.loads((study / "stability.json").read_text())
    # While the last file is there all restarts are compared, which takes memory of its own.
    while_searching = [resident for done, resident in seen if 0 < done < seen[-1][0]]
    tenth = max(1, len(while_searching) // 10)
    early, late = max(while_searching[:tenth]), max(while_searching[tenth:])
    growth = late / early - 1
    for done, resident in seen[:: max(1, len(seen) // 10)]:
        print(f"{done * options.chunk:6d} restarts: {resident / 2**20:.0f} MiB")
    sizes = f"{early / 2**20:.0f} MiB early, at most {late / 2**20:.0f} later"
    text = f"{options.restarts:,} restarts, {seconds:.0f} s: {sizes}"
    verdict = print_requirement(f"{text}: {growth:+.1%} (at most {_MOST_GROWTH:.0%})", growth <= _MOST_GROWTH)
    print(f"peak while comparing all of them: {seen[-1][1] / 2**20:.0f} MiB; basins: {len(facts['basins'])}")
    record = {"environment": environment, "data": data, "resident": seen, "seconds": seconds, "requirement": verdict}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
