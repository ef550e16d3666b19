"""Did a refactoring move a bit? Hashes of every leaf of `align` and `align_restarts`, to compare two versions.

    python -m benchmarks.bits --save before.json      # in the old version
    python -m benchmarks.bits --compare before.json   # in the new version, on the same machine

Each preset fits the bundled rows in four ways: `align` without and with known pairs, and `align_restarts` on one CPU
device and over a mesh of eight CPU devices. ``--dtype float64`` uses double precision. With ``--compare`` the command
lists the leaves that differ and ends with exit code 1 if there are any. Bits also depend on the machine and on the
versions of JAX and jaxlib: both runs need the same ones.
"""

import argparse
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import add_preset_option, make_parser, print_environment, read_names, write_json
from mv2v_jax import Config, align, align_restarts, load_demo_data, make_mesh

NUM_DEVICES, ROW_DEVICES = 8, 4
NUM_RESTARTS, NUM_SETTLED, NUM_PAIRS = 3, 2, 20
WAYS = ("align", "pairs", "restarts", "mesh")

# Hash of every leaf, by run and by the path of the leaf.
Hashes = dict[str, dict[str, str]]


def hash_leaves(tree: Any) -> dict[str, str]:
    """Hashes of the bytes, dtype and shape of every leaf, by its path."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        content = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        found[jax.tree_util.keystr(path)] = hashlib.sha256(content).hexdigest()[:16]
    return found


def make_runs(num_rows: int, dtype: str, config: Config) -> dict[str, Callable[[], Any]]:
    """A function for every way to fit, by name."""
    data = load_demo_data()
    key = jax.random.key(0)
    x, y = (rows[:num_rows].astype(dtype) for rows in (data.x, data.y))
    x_pairs, y_pairs = (rows[-NUM_PAIRS:].astype(dtype) for rows in (data.x, data.y_true))
    mesh = make_mesh(NUM_RESTARTS, row_devices=ROW_DEVICES, devices=jax.devices("cpu")[:NUM_DEVICES])

    def restarts(mesh=None):
        return align_restarts(key, x, y, NUM_RESTARTS, config, num_settled=NUM_SETTLED, keep="all", mesh=mesh)

    return {
        "align": lambda: align(key, x, y, config),
        "pairs": lambda: align(key, x, y, config, pairs=(x_pairs, y_pairs)),
        "restarts": restarts,
        "mesh": lambda: restarts(mesh),
    }


def collect(options: argparse.Namespace) -> Hashes:
    """Fit in every way and hash the results."""
    found: Hashes = {}
    with jax.enable_x64(options.dtype == "float64"), jax.default_device(jax.devices("cpu")[0]):
        for preset in options.presets:
            runs = make_runs(options.rows, options.dtype, Config.preset(preset))
            for way in options.ways:
                started = time.perf_counter()
                name = f"{preset}, {way}, {options.dtype}"
                found[name] = hash_leaves(runs[way]())
                print(f"{name}: {len(found[name])} leaves, {time.perf_counter() - started:.1f} s", flush=True)
    return found


def differences(before: Hashes, now: Hashes) -> list[str]:
    """The leaves of the present runs that are not as before, one line each."""
    lines = []
    for name, leaves in now.items():
        if name not in before:
            lines.append(f"{name}: this run is not in the file")
            continue
        for path in sorted({*before[name], *leaves}):
            kinds = (path in before[name], path in leaves)
            if kinds != (True, True):
                lines.append(f"{name}: {path} is {'new' if kinds[1] else 'missing'}")
            elif before[name][path] != leaves[path]:
                lines.append(f"{name}: {path} differs")
    return lines


def compare(file: Path, environment: dict[str, Any], found: Hashes) -> int:
    """Print the differences from the hashes in a file; returns the exit code."""
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name, value in environment.items() if before["environment"].get(name) != value]
    if changed:
        print(f"{file} comes from another environment, whose bits may differ anyway: {', '.join(changed)}")
    lines = differences(before["hashes"], found)
    print("\n".join(lines) or f"all {sum(map(len, found.values()))} leaves are as in {file}")
    return 1 if lines else 0


def main(arguments: list[str] | None = None) -> int:
    """Fit, print, save or compare the hashes; returns the exit code."""
    parser = make_parser(__doc__)
    add_preset_option(parser, ["default", "fast", "notebook"])
    parser.add_argument(
        "--ways",
        type=read_names("ways", WAYS),
        default=list(WAYS),
        metavar="NAME,...",
        help=f"ways to fit (default: {','.join(WAYS)})",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="dtype of rows and maps (default: float32)"
    )
    parser.add_argument("--rows", type=int, default=1_500, help="bundled rows per space (default: 1,500)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="file to write the hashes to, as JSON")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="file of an earlier --save to compare with")
    options = parser.parse_args(arguments)
    # Only possible before JAX has started its devices.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    if len(jax.devices("cpu")) < NUM_DEVICES:
        raise SystemExit(f"there must be {NUM_DEVICES} CPU devices, found {len(jax.devices('cpu'))}")
    environment = print_environment()
    found = collect(options)
    if options.compare is not None:
        return compare(options.compare, environment, found)
    for name, leaves in found.items():
        for path, digest in leaves.items():
            print(f"{digest}  {name}: {path}")
    write_json(options.save, {"environment": environment, "rows": options.rows, "hashes": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
