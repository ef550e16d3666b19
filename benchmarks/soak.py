"""Does memory stay flat over many restarts? `mv2v stability` in its own process, watched while it runs.

    python -m benchmarks.soak [--data FOLDER] [--rows N --eval N] [--preset fast] [--restarts 1000] [--chunk 20]
        [--json FILE]

Everything is compiled during the first tenth of the restarts; the memory of the others is compared with that of these.
Needs /proc, that is Linux.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import add_data_options, load_split, make_parser, print_environment, write_json
from mv2v_jax.config import PRESETS


def resident_bytes(process: int) -> int | None:
    """Resident memory of another process, from /proc; ``None`` if the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    found = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(found[0].split()[1]) * 1024 if found else None


def watch(command: list[str], chunks: Path) -> list[tuple[int, int]]:
    """Run a command; returns its maximum resident memory for each number of files in the folder ``chunks``."""
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
    """Run the study and print its memory over time; returns the figures."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument("--preset", choices=PRESETS, default="fast", help="preset of the study (default: fast)")
    parser.add_argument("--restarts", type=int, default=1000, help="number of restarts (default: 1,000)")
    parser.add_argument("--chunk", type=int, default=20, help="number of restarts per file (default: 20)")
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side in ("x", "y"):
            np.save(folder / f"{side}.npy", getattr(split, side))
        study = folder / "study"
        command = [sys.executable, "-m", "mv2v_jax", "stability", str(folder / "x.npy"), str(folder / "y.npy")]
        command += ["-o", str(study), "--preset", options.preset, "--no-plots", "--bootstraps", "0"]
        command += ["--restarts", str(options.restarts), "--chunk", str(options.chunk)]
        command += ["--sizes", str(len(split.x) // 2)]
        started = time.perf_counter()
        seen = watch(command, study / "chunks")
        seconds = time.perf_counter() - started
        facts = json.loads((study / "stability.json").read_text())
    # All restarts are compared once the last file is there, which takes additional memory.
    while_searching = [resident for done, resident in seen if 0 < done < seen[-1][0]]
    tenth = max(1, len(while_searching) // 10)
    early, late = max(while_searching[:tenth]), max(while_searching[tenth:])
    for done, resident in seen[:: max(1, len(seen) // 10)]:
        print(f"{done * options.chunk:6d} restarts: {resident / 2**20:.0f} MiB")
    print(
        f"{options.restarts:,} restarts, {seconds:.0f} s; maximum memory: {early / 2**20:.0f} MiB in the first tenth, "
        f"{late / 2**20:.0f} MiB later ({late / early - 1:+.1%}), {seen[-1][1] / 2**20:.0f} MiB while all of them are "
        f"compared; basins: {len(facts['basins'])}"
    )
    record = {"environment": environment, "data": data, "resident": seen, "seconds": seconds}
    record |= {"early_bytes": early, "late_bytes": late}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
