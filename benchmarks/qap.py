"""How near to the optimum is the assignment search? QAPLIB instances, and brute force on small problems.

    python -m benchmarks.qap [--data FOLDER] [--seeds 10] [--starts 64] [--steps 500] [--json FILE]

The instances are read from ``FOLDER/qaplib/``; without it only the brute force runs.
"""

import argparse
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import quadratic_assignment

from benchmarks.common import (
    add_json_option,
    check_folder,
    compile_seconds,
    make_parser,
    print_environment,
    print_table,
    seconds_of,
    write_json,
)
from mv2v_jax.ops.qap import centered_kernel, search_assignment

INSTANCES = ("nug30", "chr25a", "tai25a", "esc128")
BRUTE_FORCE_SIZES = (4, 5, 6, 7)
BRUTE_FORCE_KERNELS = 100


@dataclasses.dataclass(frozen=True)
class Instance:
    """A quadratic assignment problem: minimise ``sum_ij a[i, j] * b[p[i], p[j]]``.

    Attributes:
        a: ``[n, n]`` whole numbers.
        b: ``[n, n]`` whole numbers.
        best: the best known value.
    """

    a: np.ndarray
    b: np.ndarray
    best: int


def read_instance(folder: Path, name: str) -> Instance:
    """Read an instance and its solution, and check that they belong together."""
    size, *entries = map(int, (folder / f"{name}.dat").read_text().split())
    a, b = np.array(entries).reshape(2, size, size)
    _, best, *solution = map(int, (folder / f"{name}.sln").read_text().split())
    found = value(a, b, np.array(solution) - 1)
    if found != best:
        raise SystemExit(f"{name}.sln: the permutation must have the value {best}, found {found}")
    return Instance(a=a, b=b, best=best)


def value(a: np.ndarray, b: np.ndarray, permutation: np.ndarray) -> int:
    """The value of a permutation, a whole number."""
    return int(np.sum(a * b[permutation][:, permutation]))


def summarise(instance: Instance, values: list[int], seconds: list[float]) -> dict[str, float]:
    """Gaps to the best known value in percent, the share of seeds that reach it, and the mean seconds per seed."""
    gaps = 100 * (np.array(values) / instance.best - 1)
    return {
        "mean_gap": float(gaps.mean()),
        "worst_gap": float(gaps.max()),
        "at_optimum": float(np.mean(gaps <= 0)),
        "seconds": float(np.mean(seconds)),
    }


def run_tabu(instance: Instance, num_seeds: int, num_starts: int, num_steps: int) -> dict[str, float]:
    """Our search. It maximises over symmetric kernels; if one matrix is symmetric, the other can be symmetrised."""
    symmetric = [(matrix == matrix.T).all() for matrix in (instance.a, instance.b)]
    if not any(symmetric):
        raise SystemExit("at least one of the two matrices must be symmetric")
    kernels = [jnp.asarray((matrix + matrix.T) / 2, jnp.float32) for matrix in (instance.a, instance.b)]

    def search(key, kx, ky):
        return search_assignment(key, -kx, ky, num_starts=num_starts, num_steps=num_steps)

    compiled, compiling = compile_seconds(search, jax.random.key(0), *kernels)
    values, seconds = [], []
    for seed in range(num_seeds):
        found, elapsed = seconds_of(compiled, jax.random.key(seed), *kernels)
        values.append(value(instance.a, instance.b, np.asarray(found.permutation)))
        seconds.append(elapsed)
    return {**summarise(instance, values, seconds), "compile_seconds": compiling}


def run_scipy(instance: Instance, num_seeds: int, budget: float) -> dict[str, float]:
    """SciPy's 2-opt: the best of all random starts that begin within ``budget`` seconds, at least one."""
    values, seconds, starts = [], [], []
    for seed in range(num_seeds):
        rng = np.random.default_rng(seed)
        found: list[int] = []
        begun = time.perf_counter()
        while not found or time.perf_counter() - begun < budget:
            result = quadratic_assignment(instance.a, instance.b, method="2opt", options={"rng": rng})
            found.append(value(instance.a, instance.b, result.col_ind))
        seconds.append(time.perf_counter() - begun)
        values.append(min(found))
        starts.append(len(found))
    return {**summarise(instance, values, seconds), "starts": float(np.mean(starts))}


def run_brute_force(size: int, num_kernels: int, num_starts: int, num_steps: int) -> dict[str, float]:
    """Our search on random centred kernels, compared with all permutations: the number of optima it finds."""
    rng = np.random.default_rng(size)
    kx, ky = (
        jax.vmap(centered_kernel)(jnp.asarray(rng.normal(size=(num_kernels, size, size)), jnp.float32))
        for _ in range(2)
    )

    def search(keys, kx, ky):
        return jax.vmap(lambda key, kx, ky: search_assignment(key, kx, ky, num_starts=num_starts, num_steps=num_steps))(
            keys, kx, ky
        )

    found = jax.jit(search)(jax.random.split(jax.random.key(size), num_kernels), kx, ky)
    permutations = np.array(list(itertools.permutations(range(size))))
    optimal = 0
    exact_x, exact_y = (np.asarray(kernels, np.float64) for kernels in (kx, ky))
    for a, b, permutation in zip(exact_x, exact_y, np.asarray(found.permutation), strict=True):
        every = np.einsum("ij,pij->p", a, b[permutations[:, :, None], permutations[:, None, :]])
        reached = np.sum(a * b[permutation][:, permutation])
        optimal += bool(reached >= every.max() - 1e-6 * np.abs(every).max())
    return {"size": size, "kernels": num_kernels, "optimal": optimal}


def run_instances(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both searches on every instance; prints the table and returns the figures by instance."""
    found: dict[str, Any] = {}
    rows = []
    for name in options.instances:
        instance = read_instance(folder, name)
        ours = run_tabu(instance, options.seeds, options.starts, options.steps)
        theirs = run_scipy(instance, options.seeds, ours["seconds"])
        found[name] = {"best_known": instance.best, "mv2v_jax": ours, "scipy": theirs}
        for label, run in ((f"{name}, mv2v_jax", ours), (f"{name}, SciPy 2-opt", theirs)):
            rows.append(
                [
                    label,
                    f"{instance.best:,}",
                    *(f"{run[gap]:.2f}" for gap in ("mean_gap", "worst_gap")),
                    f"{run['at_optimum']:.0%}",
                    f"{run.get('starts', options.starts):.0f}",
                    f"{run['seconds']:.2f}",
                    f"{run['compile_seconds']:.2f}" if "compile_seconds" in run else "",
                ]
            )
    columns = ["instance", "best known", "mean gap %", "worst gap %", "at optimum", "starts", "seconds", "compile s"]
    print_table(f"QAPLIB, {options.seeds} seeds; ours makes {options.steps} swaps per start", columns, rows)
    return found


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Search every instance and print the tables; returns the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder that holds qaplib/ (default: none)")
    parser.add_argument("--seeds", type=int, default=10, help="random seeds per instance (default: 10)")
    parser.add_argument("--starts", type=int, default=64, help="starts per search (default: 64)")
    parser.add_argument("--steps", type=int, default=500, help="swaps per start (default: 500)")
    parser.add_argument(
        "--kernels",
        type=int,
        default=BRUTE_FORCE_KERNELS,
        help=f"random kernels per size of the brute force (default: {BRUTE_FORCE_KERNELS})",
    )
    parser.add_argument(
        "--instances", nargs="*", default=INSTANCES, help=f"QAPLIB instances (default: {' '.join(INSTANCES)})"
    )
    add_json_option(parser)
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"environment": print_environment(), "starts": options.starts, "steps": options.steps}
    folder = check_folder(options.data)
    if folder is None:
        print("data: none (--data FOLDER with FOLDER/qaplib), so brute force only")
    elif not (folder / "qaplib").is_dir():
        raise SystemExit(f"--data: {folder} has no folder qaplib")
    else:
        record["qaplib"] = run_instances(folder / "qaplib", options)
    brute = [run_brute_force(size, options.kernels, options.starts, options.steps) for size in BRUTE_FORCE_SIZES]
    print_table(
        "brute force over all permutations",
        ["clusters", "random kernels", "optima found"],
        [[f"{run['size']}", f"{run['kernels']}", f"{run['optimal']}"] for run in brute],
    )
    record["brute_force"] = brute
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
