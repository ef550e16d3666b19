"""How the tests of the command line run it: as a user does, in a process of its own, on a pipe or on a terminal."""

import contextlib
import os
import pty
import subprocess
import sys

import numpy as np
import safetensors.numpy

SMALL = [
    *("--anchors-num-sets", "12", "--anchors-num-clusters", "12", "--anchors-rows", "300", "--anchors-num-starts", "4"),
    *("--anchors-search-steps", "20", "--anchors-kept-sets", "6"),
    *("--relative-rows", "200", "--relative-num-neighbors", "5"),
    # Compiled and, on noise, tried for nothing.
    *("--components-num-runs", "0"),
    *("--annealing-steps", "10", "--annealing-rows", "150", "--settling-steps", "2", "--settling-rows", "200"),
    # The map is a rotation, so that the right one is known.
    *("--whitening-power", "0", "--whitening-reliability-power", "0", "--polishing-steps", "0"),
]

# Most of a small fit's time is compiling, so the processes share what they compile.
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

# A program that runs a command, and writes the most memory in KiB that it has held to the file "peak". What the system
# counts for a child process would include the process from which it was forked.
RUN_AND_WRITE_PEAK = """
import atexit, pathlib, re, runpy

def write_peak():
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path("peak").write_text(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])

if pathlib.Path("/proc/self/status").exists():
    atexit.register(write_peak)
runpy.run_module("mv2v_jax", run_name="__main__", alter_sys=True)
"""


# A study of three searches.
PLAN = ("--restarts", 3, "--settled", 1, "--chunk", 1, "--sizes", "150", "--size-restarts", 2, "--bootstraps", 1)


def write_inputs(folder, rows):
    """``x.npy`` with all ``rows [n, 48]``, a map of them, and ``a.npy`` and ``b.npy`` for a small fit."""
    np.save(folder / "x.npy", rows)
    for name, part in {"a": rows[:300, :12], "b": rows[300:600, :10]}.items():
        np.save(folder / f"{name}.npy", part)
    tensors = {
        "W": np.eye(48, dtype=np.float32),
        **{name: np.zeros(48, np.float32) for name in ("mean_x", "mean_y")},
        **{name: np.array(1, np.float32) for name in ("scale_x", "scale_y")},
    }
    safetensors.numpy.save_file(tensors, folder / "map.safetensors")


def write_index(folder, rows):
    """``docs.faiss`` with all ``rows [n, 48]``."""
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    faiss.write_index(index, str(folder / "docs.faiss"))


def run(*arguments, cwd, timeout=300, **options):
    """Run a command with its output in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "mv2v_jax", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        # Colour forced on, as some CI does, must not bring the bar into a pipe.
        env={**os.environ, **CACHE, "FORCE_COLOR": "1"},
        **options,
    )


@contextlib.contextmanager
def open_terminal():
    """A pseudo-terminal: the end a process writes to, and a function that returns all that was written there."""
    ours, theirs = pty.openpty()

    def read(until=None):
        """Text up to the end, or to the first chunk that contains ``until``; closes our copy of the written end."""
        with contextlib.suppress(OSError):
            os.close(theirs)
        seen = b""
        # Linux answers EIO once the other end is closed.
        with contextlib.suppress(OSError):
            while (until is None or until not in seen) and (chunk := os.read(ours, 65_536)):
                seen += chunk
        return seen

    try:
        yield theirs, read
    finally:
        os.close(ours)
