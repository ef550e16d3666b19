"""How do other methods for the same problem compare, called through their own libraries on the same rows?

    python -m benchmarks.peers [--data FOLDER] [--rows N --eval E | --corpus NAME] [--seed N] [--methods NAME,...]
        [--wp-steps 3] [--gw-rows 2000] [--json FILE]

Needs the extra ``bench``. Every method runs in its own process, one after the other, so that the memory and the time of
the whole process can be measured. ``--corpus`` names a data set of `benchmarks.corpora`, such as ``web``. The methods:

- ``reference``: mini-vec2vec as published (`benchmarks.reference`).
- ``torch``: the same on torch, the library of its notebook. It is left out by default, and needs the extra ``torch``.
- ``wasserstein``: Wasserstein Procrustes (arXiv 2610.09411). SciPy's 2-opt, the best of 30 starts, matches its 30
  anchor sets, because its own solver MPOpt is not on PyPI; SciPy's `linear_sum_assignment` does its one-to-one
  matching. The initial map is computed in full, but only ``--wp-steps`` of its 100 refine steps: the time of the other
  steps is extrapolated from the mean of these, and the scores are those after the steps that ran.
- ``pot`` and ``ott``: entropic Gromov-Wasserstein on ``--gw-rows`` rows per space from POT and OTT-JAX; the plan is
  projected to rows of Y, and Procrustes gives the map.
- ``muse``: five rounds of mutual nearest neighbours by CSLS and Procrustes, as in MUSE (arXiv 1710.04087), on all rows
  in NumPy. It starts from our initial map.
- ``vecmap``: unsupervised self-learning as in VecMap (`benchmarks.vecmap`), in NumPy.
- ``fast`` and ``default``: our presets as the command line runs them, stage by stage and with its number of restarts.
"""

import argparse
import dataclasses
import functools
import importlib
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks import reference
from benchmarks.common import (
    METRICS,
    Split,
    add_data_options,
    add_seed_option,
    check_folder,
    compile_seconds,
    evaluate,
    evaluate_oracle,
    format_scores,
    load_split,
    make_parser,
    print_environment,
    print_table,
    read_names,
    write_json,
)
from benchmarks.corpora import corpora
from benchmarks.growth import peak_bytes
from benchmarks.vecmap import VecMapSettings, self_learn
from mv2v_jax import Centering, Config, LinearMap, align
from mv2v_jax.cli.options import DEFAULT_RESTARTS
from mv2v_jax.runs.compiled import align_with_progress

# The values of arXiv 2610.09411; the starts of 2-opt replace its own solver.
WASSERSTEIN = reference.Settings(
    num_sets=30, num_clusters=30, anchor_rows=10_000, num_starts=30, steps=100, step_rows=10_000, smoothing=1.0
)
# Entropy of the Gromov-Wasserstein objective on cosine distances. Under the defaults of the libraries, 0.1 and 1, the
# plans stay uniform.
GROMOV_EPSILON = 1e-3
GROMOV_STEPS = 100
SINKHORN_STEPS = 100
MUSE_ROUNDS = 5
MUSE_NEIGHBORS = 10

OURS = ("fast", "default")
# Metrics of the table, with names short enough for all columns to fit.
SHOWN = {"top1": "top-1", "mean_rank": "rank", "foscttm": "FOSCTTM", "cosine": "cosine"}
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Fit:
    """A map and what it cost.

    Attributes:
        map: the `LinearMap`.
        rows: rows per space that the method used.
        seconds: seconds of the run, without compile time.
        compile_seconds: ``None`` for a method that compiles nothing.
        steps: number of refine steps that ran, and number of all; ``None`` for a method that ran to its end.
        missing_seconds: seconds of the steps that did not run, extrapolated.
    """

    map: LinearMap
    rows: int
    seconds: float
    compile_seconds: float | None = None
    steps: tuple[int, int] | None = None
    missing_seconds: float = 0.0


class Space(NamedTuple):
    """One space as `reference.preprocess` returns it: centred unit ``rows [n, d]`` and their `Centering`."""

    rows: np.ndarray
    centering: Centering


def preprocess(split: Split) -> tuple[Space, Space]:
    """Both spaces of the fitting rows."""
    return Space(*reference.preprocess(split.x)), Space(*reference.preprocess(split.y))


def make_map(W: Any, x: Space, y: Space) -> LinearMap:
    """The map ``W [d_x, d_y]`` between centred unit rows, ready for raw ones."""
    return LinearMap(W=W, source=x.centering, target=y.centering)


def draw(rows: np.ndarray, max_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Up to ``max_rows`` random rows, without replacement."""
    return rows[rng.choice(len(rows), min(max_rows, len(rows)), replace=False)]


def fit_reference(split: Split, options: argparse.Namespace, library: reference.Library | None = None) -> Fit:
    """The published method, by default on NumPy."""
    settings = reference.Settings()
    if library is not None:
        settings = dataclasses.replace(settings, library=library)
    linear_map, stages = reference.fit(split.x, split.y, options.seed, settings=settings)
    return Fit(map=linear_map, rows=len(split.x), seconds=sum(stages.values()))


def fit_reference_on_torch(split: Split, options: argparse.Namespace) -> Fit:
    """The published method on the library of its notebook."""
    from benchmarks.reference_torch import TORCH

    return fit_reference(split, options, TORCH)


# ----------------------------------------------------------------------------------------------- Wasserstein Procrustes


def procrustes_one_to_one(x: np.ndarray, y: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Procrustes on the one-to-one pairs of largest total ``similarity [n, m]``: ``[d_x, d_y]``."""
    # SciPy works on float64. Maximising would copy the matrix once more.
    rows, columns = linear_sum_assignment(np.negative(similarity, dtype=np.float64))
    return reference.procrustes(x[rows], y[columns])


def wasserstein_start(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Anchors, relative representations, one-to-one matching, Procrustes: ``[d_x, d_y]``."""
    sets = reference.match_sets(reference.cluster_sets(x, y, rng, WASSERSTEIN), rng, WASSERSTEIN)
    x, y = (draw(rows, WASSERSTEIN.step_rows, rng) for rows in (x, y))
    described_x, described_y = (
        reference.unit_rows(reference.describe(rows, anchors)) for rows, anchors in ((x, sets.x), (y, sets.y))
    )
    return procrustes_one_to_one(x, y, described_x @ described_y.T)


def wasserstein_step(x: np.ndarray, y: np.ndarray, W: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw rows of both spaces, match them one to one by the map ``W [d_x, d_y]``, Procrustes; without smoothing."""
    x, y = (draw(rows, WASSERSTEIN.step_rows, rng) for rows in (x, y))
    return procrustes_one_to_one(x, y, x @ W @ y.T)


def fit_wasserstein(split: Split, options: argparse.Namespace) -> Fit:
    """The initial map and ``options.wp_steps`` of the refine steps; the time of the other steps is extrapolated."""
    rng = np.random.default_rng(options.seed)
    num_steps = min(options.wp_steps, WASSERSTEIN.steps)
    start = time.perf_counter()
    x, y = preprocess(split)
    W = wasserstein_start(x.rows, y.rows, rng)
    refining = time.perf_counter()
    for _ in range(num_steps):
        W = wasserstein_step(x.rows, y.rows, W, rng)
    end = time.perf_counter()
    missing = WASSERSTEIN.steps - num_steps
    return Fit(
        map=make_map(W, x, y),
        rows=len(x.rows),
        seconds=end - start,
        steps=(num_steps, WASSERSTEIN.steps) if missing else None,
        missing_seconds=missing * (end - refining) / num_steps,
    )


# --------------------------------------------------------------------------------------------------- Gromov-Wasserstein


def procrustes_plan(x: np.ndarray, y: np.ndarray, plan: np.ndarray) -> np.ndarray:
    """Procrustes of ``x [n, d_x]`` with the means of rows of ``y [m, d_y]`` under the ``plan [n, m]``."""
    mass = plan.sum(axis=1, keepdims=True)
    return reference.procrustes(x, (plan / np.where(mass > 0, mass, 1)) @ y)


def fit_gromov(
    solve: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float | None]],
    split: Split,
    options: argparse.Namespace,
) -> Fit:
    """Entropic Gromov-Wasserstein on random rows; ``solve`` returns the plan and its compile seconds."""
    rng = np.random.default_rng(options.seed)
    start = time.perf_counter()
    x, y = preprocess(split)
    drawn_x, drawn_y = (draw(space.rows, options.gw_rows, rng) for space in (x, y))
    plan, compiling = solve(drawn_x, drawn_y)
    W = procrustes_plan(drawn_x, drawn_y, plan)
    seconds = time.perf_counter() - start - (compiling or 0)
    return Fit(map=make_map(W, x, y), rows=len(drawn_x), seconds=seconds, compile_seconds=compiling)


def solve_pot(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, None]:
    """POT's plan ``[n, m]`` for the cosine distances within unit rows ``x [n, d_x]`` and ``y [m, d_y]``."""
    from ot.gromov import entropic_gromov_wasserstein

    distance_x, distance_y = (1 - (rows @ rows.T).astype(np.float64) for rows in (x, y))
    plan = entropic_gromov_wasserstein(
        distance_x,
        distance_y,
        loss_fun="square_loss",
        epsilon=GROMOV_EPSILON,
        symmetric=True,
        max_iter=GROMOV_STEPS,
        numItermax=SINKHORN_STEPS,
        # Each step is followed by another one, so the inner solver does not have to converge.
        warn=False,
    )
    return plan, None


def solve_ott(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """OTT-JAX's plan ``[n, m]`` for the same problem, and its compile seconds."""
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.quadratic.quadratic_problem import QuadraticProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn
    from ott.solvers.quadratic.gromov_wasserstein import GromovWasserstein

    solver = GromovWasserstein(
        Sinkhorn(max_iterations=SINKHORN_STEPS),
        # OTT-JAX regularises half of the objective; with half of the entropy both libraries return the same plan.
        epsilon=GROMOV_EPSILON / 2,
        max_iterations=GROMOV_STEPS,
        # The threshold of POT. With its own of 1e-3, OTT-JAX stops while the plan is nearly uniform.
        threshold=1e-9,
    )

    def solve(x, y):
        # Half the squared distance of unit rows is their cosine distance. A point cloud needs no n x n matrix.
        geometry_x, geometry_y = PointCloud(x / 2**0.5), PointCloud(y / 2**0.5)
        return solver(QuadraticProblem(geometry_x, geometry_y)).matrix

    arrays = jnp.asarray(x), jnp.asarray(y)
    compiled, compiling = compile_seconds(solve, *arrays)
    return np.asarray(compiled(*arrays)), compiling


# ----------------------------------------------------------------------------------------------------------------- MUSE


def mutual_neighbors(x: np.ndarray, y: np.ndarray, num_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pairs of unit rows ``x [n, d]`` and ``y [m, d]`` that are mutual nearest neighbours by CSLS."""

    def density(rows: np.ndarray, bank: np.ndarray) -> np.ndarray:
        # The mean similarity with the nearest rows is the similarity with their mean.
        return np.sum(rows * reference.neighbor_means(rows, bank, bank, num_neighbors), axis=1)

    density_x, density_y = density(x, y), density(y, x)
    forward = np.empty(len(x), np.int64)
    backward, best = np.zeros(len(y), np.int64), np.full(len(y), -np.inf, x.dtype)
    for start in range(0, len(x), reference.BLOCK_ROWS):
        block = slice(start, start + reference.BLOCK_ROWS)
        csls = 2 * x[block] @ y.T - density_x[block, None] - density_y
        forward[block] = csls.argmax(axis=1)
        nearest, highest = csls.argmax(axis=0), csls.max(axis=0)
        backward = np.where(highest > best, start + nearest, backward)
        best = np.maximum(best, highest)
    rows = np.flatnonzero(backward[forward] == np.arange(len(x)))
    return rows, forward[rows]


def fit_muse(split: Split, options: argparse.Namespace) -> Fit:
    """Rounds of mutual nearest neighbours by CSLS and Procrustes, from our initial map on all rows."""
    # Without any refinement, and without whitening, the map of `align` is the rotation of its initial matches.
    config = Config.preset("default").replace(
        search_dims=0,
        held_out_rows=0,
        annealing={"steps": 0},
        settling={"steps": 0, "whole_steps": 0},
        polishing={"steps": 0},
        whitening={"power": 0.0, "reliability_power": 0.0},
    )
    arguments = jax.random.key(options.seed), jnp.asarray(split.x), jnp.asarray(split.y), config
    compiled, compiling = compile_seconds(align, *arguments)
    start = time.perf_counter()
    W = np.asarray(compiled(*arguments).map.W)
    x, y = preprocess(split)
    for _ in range(MUSE_ROUNDS):
        rows, columns = mutual_neighbors(reference.unit_rows(x.rows @ W), y.rows, MUSE_NEIGHBORS)
        W = reference.procrustes(x.rows[rows], y.rows[columns])
    seconds = time.perf_counter() - start
    return Fit(map=make_map(W, x, y), rows=len(x.rows), seconds=seconds, compile_seconds=compiling)


def fit_vecmap(split: Split, options: argparse.Namespace) -> Fit:
    """Self-learning from sorted similarities."""
    start = time.perf_counter()
    x, y = preprocess(split)
    W, _ = self_learn(x.rows, y.rows, np.random.default_rng(options.seed))
    seconds = time.perf_counter() - start
    return Fit(map=make_map(W, x, y), rows=min(VecMapSettings().rows, len(x.rows)), seconds=seconds)


# ----------------------------------------------------------------------------------------------------------------- ours


def fit_preset(preset: str, split: Split, options: argparse.Namespace) -> Fit:
    """Seconds of a second fit, which compiles nothing, and what the first one compiled."""
    first, second = (
        align_with_progress(
            jax.random.key(options.seed), split.x, split.y, Config.preset(preset), lambda *_: None, DEFAULT_RESTARTS
        )
        for _ in range(2)
    )
    return Fit(
        map=second.result.best.map,
        rows=len(split.x),
        seconds=second.seconds,
        compile_seconds=first.compile_seconds,
    )


class Method(NamedTuple):
    """A method: its name in the table, the function that fits it, and the module and package that this needs."""

    title: str
    fit: Callable[[Split, argparse.Namespace], Fit]
    module: str | None = None
    package: str | None = None


METHODS = {
    "reference": Method("reference", fit_reference),
    "torch": Method("reference on torch", fit_reference_on_torch, "torch", "torch"),
    "wasserstein": Method("Wasserstein Procrustes", fit_wasserstein),
    "pot": Method("entropic GW, POT", functools.partial(fit_gromov, solve_pot), "ot", "pot"),
    "ott": Method("entropic GW, OTT-JAX", functools.partial(fit_gromov, solve_ott), "ott", "ott-jax"),
    "muse": Method("MUSE-style CSLS", fit_muse),
    "vecmap": Method("VecMap-style", fit_vecmap),
    **{name: Method(f"`{name}` preset", functools.partial(fit_preset, name)) for name in OURS},
}
# Torch is large, and no other benchmark needs it.
DEFAULT_METHODS = [name for name in METHODS if name != "torch"]

# ------------------------------------------------------------------------------------------------------------ measuring


def find_packages(names: list[str]) -> dict[str, str]:
    """Versions of the packages that these methods need; ends with a message if one of them is missing."""
    methods = [METHODS[name] for name in names if METHODS[name].module]
    for method in methods:
        if importlib.util.find_spec(str(method.module)) is None:
            extra = "torch" if method.module == "torch" else "bench"
            raise SystemExit(f"{method.title} needs the package {method.package}: pip install 'mv2v_jax[{extra}]'")
    return {str(method.package): metadata.version(str(method.package)) for method in methods}


def resident_bytes() -> int:
    """Resident memory of this process now; its peak so far on systems without /proc."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else peak_bytes()


def measure(name: str, split: Split, options: argparse.Namespace) -> dict[str, Any]:
    """Fit by one method in this process: scores, seconds and memory."""
    method = METHODS[name]
    if method.module:
        # Imported first, so that the code of the library does not count as memory of the method.
        importlib.import_module(method.module)
    before = resident_bytes()
    fit = method.fit(split, options)
    peak = peak_bytes()
    found = {field.name: getattr(fit, field.name) for field in dataclasses.fields(fit) if field.name != "map"}
    return {**found, "peak_bytes": peak, "resident_bytes_before": before, "scores": evaluate(fit.map, split)}


def _measure_in_child(name: str, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.peers", *arguments, "--child", name]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{METHODS[name].title} ended with {done.returncode}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": time.perf_counter() - start}


def load_rows(options: argparse.Namespace) -> tuple[Split, dict[str, Any]]:
    """The rows of ``--corpus``, or those that the other options choose, and a record of the choice."""
    if options.corpus is None:
        return load_split(options)
    folder = check_folder(options.data)
    if folder is None:
        raise SystemExit("--corpus needs the folder of its embeddings: name it with --data")
    try:
        split = next(corpus for corpus in corpora() if corpus.name == options.corpus).build(folder)
    except FileNotFoundError as error:
        raise SystemExit(f"--data: {error}") from error
    sizes = f"n {len(split.x):,}, m {len(split.y):,}, evaluated on {len(split.x_eval):,}"
    print(f"data: {options.corpus} ({folder}), {sizes}", flush=True)
    return split, {"data": options.corpus, "eval": len(split.x_eval)}


# -------------------------------------------------------------------------------------------------------------- showing


def _whole_seconds(run: dict[str, Any]) -> float:
    return run["seconds"] + run["missing_seconds"]


def _show_run(name: str, run: dict[str, Any]) -> list[str]:
    scores = dict(zip(METRICS, format_scores(run["scores"]), strict=True))
    return [
        METHODS[name].title,
        f"{run['rows']:,}",
        *(scores[metric] for metric in SHOWN),
        f"{run['seconds']:.1f}",
        f"{'~' if run['steps'] else ''}{_whole_seconds(run):,.1f}",
        "" if run["compile_seconds"] is None else f"{run['compile_seconds']:.1f}",
        f"{run['process_seconds']:.1f}",
        f"{run['peak_bytes'] / _GIB:.2f}",
        f"{(run['peak_bytes'] - run['resident_bytes_before']) / _GIB:.2f}",
    ]


def show(runs: dict[str, dict[str, Any]], oracle: dict[str, float]) -> None:
    """Print the table of all methods, and compare our presets with the others."""
    columns = ["method", "rows", *SHOWN.values(), "seconds", "whole s", "compile s", "process s", "GiB", "own GiB"]
    scores = dict(zip(METRICS, format_scores(oracle), strict=True))
    last = ["oracle", "", *(scores[metric] for metric in SHOWN), *[""] * 6]
    print_table("peers on the same rows", columns, [*(_show_run(name, run) for name, run in runs.items()), last])
    print("rows: per space; rank: mean rank; whole s: seconds with the steps that did not run, without compile time")
    print("process s: from the start of the process to its end, with reading and evaluating; ours fit twice in it")
    print("GiB: peak resident memory of the process; own GiB: the same less the memory just before the method started")
    for name, run in runs.items():
        if run["steps"]:
            ran, of = run["steps"]
            print(f"~ extrapolated: {METHODS[name].title} ran {ran} of {of} steps; its scores are those after them")
    for name in OURS:
        if name in runs and len(runs) > 1:
            times = ", ".join(
                f"{_whole_seconds(run) / runs[name]['seconds']:,.1f} ({METHODS[other].title})"
                for other, run in runs.items()
                if other != name
            )
            print(f"whole seconds over those of {name}: {times}")


def read_count(text: str) -> int:
    """A whole number above 0."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, found {count}")
    return count


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run every method and print the table; returns the figures."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser(__doc__)
    add_data_options(parser)
    parser.add_argument(
        "--corpus",
        choices=[corpus.name for corpus in corpora()],
        metavar="NAME",
        help="data set of benchmarks.corpora, in place of --rows, --eval, --source and --target",
    )
    add_seed_option(parser)
    parser.add_argument(
        "--methods",
        type=read_names("methods", METHODS),
        default=DEFAULT_METHODS,
        metavar="NAME,...",
        help=f"methods to run, {','.join(METHODS)} (default: all but torch)",
    )
    parser.add_argument(
        "--wp-steps", type=read_count, default=3, help="refine steps of Wasserstein Procrustes to run (default: 3)"
    )
    parser.add_argument(
        "--gw-rows", type=read_count, default=2_000, help="rows per space for Gromov-Wasserstein (default: 2,000)"
    )
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        split, _ = load_rows(options)
        found = measure(options.child, split, options)
        print(json.dumps(found))
        return found
    packages = find_packages(options.methods)
    environment = {**print_environment(), **packages}
    print(", ".join(f"{name} {version}" for name, version in packages.items()), flush=True)
    # Nothing but reading comes before the children: on Linux the peak memory of a child starts at that of its parent.
    split, data = load_rows(options)
    runs = {}
    for name in options.methods:
        runs[name] = _measure_in_child(name, arguments)
        print(f"{METHODS[name].title}: {runs[name]['seconds']:.1f} s", flush=True)
    oracle = evaluate_oracle(split)
    show(runs, oracle)
    record = {"environment": environment, "data": data, "seed": options.seed, "runs": runs, "oracle": oracle}
    write_json(options.json, record)
    return record


if __name__ == "__main__":
    main()
