"""The published method on NumPy, SciPy and scikit-learn, which the other benchmarks compare quality and time with.

    python -m benchmarks.reference [--data FOLDER] [--rows N --eval E] [--seed N] [--json FILE]

This is mini-vec2vec (arXiv 2510.02348) with the values of its notebook, written in the simplest way: k-means, 2-opt and
SVD of the libraries, float32 matrix products, `numpy.argpartition` for nearest neighbours. The libraries use several
cores for k-means and matrix products; everything else runs on one core.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import quadratic_assignment
from sklearn.cluster import KMeans

from benchmarks.common import (
    METRICS,
    add_data_options,
    add_seed_option,
    evaluate,
    evaluate_oracle,
    format_scores,
    load_split,
    make_parser,
    print_environment,
    print_table,
    write_json,
)
from mv2v_jax import Centering, LinearMap

# Queries compared with all of Y at once: few enough that the memory of their similarities is reused, not mapped anew.
BLOCK_ROWS = 256


def procrustes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Semi-orthogonal map ``[d_x, d_y]`` from paired rows."""
    u, _, vt = np.linalg.svd(x.T @ y, full_matrices=False)
    return u @ vt


def neighbor_means(queries: np.ndarray, bank: np.ndarray, values: np.ndarray, num_neighbors: int) -> np.ndarray:
    """Mean of the ``values`` of the bank rows nearest to each query by inner product, block by block."""
    kept = min(num_neighbors, len(bank))
    means = np.empty((len(queries), values.shape[1]), values.dtype)
    similarity = np.empty((min(BLOCK_ROWS, len(queries)), len(bank)), queries.dtype)

    for start in range(0, len(queries), BLOCK_ROWS):
        block = queries[start : start + BLOCK_ROWS]
        found = np.matmul(block, bank.T, out=similarity[: len(block)])
        nearest = np.argpartition(found, len(bank) - kept, axis=1)[:, -kept:]
        means[start : start + len(block)] = values[nearest].mean(axis=1)
    return means


class Library(NamedTuple):
    """The two operations that take most of the time outside k-means and 2-opt, by one library."""

    procrustes: Callable[[np.ndarray, np.ndarray], np.ndarray]
    neighbor_means: Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


NUMPY = Library(procrustes, neighbor_means)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values of the notebook. Sample sizes larger than the data mean all rows."""

    num_sets: int = 30
    num_clusters: int = 20
    anchor_rows: int = 10_000
    num_starts: int = 30
    num_neighbors: int = 50
    steps: int = 100
    step_rows: int = 1_000
    refine_clusters: int = 500
    smoothing: float = 0.5
    library: Library = NUMPY


@dataclasses.dataclass(frozen=True)
class AnchorSets:
    """Cluster centres of both spaces, and how well they match.

    Attributes:
        x: ``[s, c, d_x]``.
        y: ``[s, c, d_y]``; in no particular order before they are matched.
        objective: ``[s]``, best value of the assignment; empty before the centres are matched.
    """

    x: np.ndarray
    y: np.ndarray
    objective: np.ndarray


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows of unit length; zero rows stay zero."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def preprocess(rows: np.ndarray) -> tuple[np.ndarray, Centering]:
    """Centred unit rows in float32, and their `Centering`."""
    rows = rows.astype(np.float32)
    mean = rows.mean(axis=0)
    # A map takes NumPy's arrays too. JAX's would start its backend in the process of a benchmark that runs without it.
    parts: dict[str, Any] = {"mean": mean, "scale": np.linalg.norm(rows - mean, axis=1).mean()}
    return unit_rows(rows - mean), Centering(**parts)


def centered_kernel(centers: np.ndarray) -> np.ndarray:
    """Double-centred Gram matrix of ``centers [c, d]``."""
    centered = centers - centers.mean(axis=0)
    return centered @ centered.T


def cluster_sets(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, settings: Settings) -> AnchorSets:
    """Draw rows of both spaces without replacement and cluster them, once per anchor set."""

    def centers(rows: np.ndarray) -> np.ndarray:
        drawn = rows[rng.choice(len(rows), min(settings.anchor_rows, len(rows)), replace=False)]
        return KMeans(settings.num_clusters, random_state=int(rng.integers(2**31))).fit(drawn).cluster_centers_

    pairs = [(centers(x), centers(y)) for _ in range(settings.num_sets)]
    found_x, found_y = (np.stack(found) for found in zip(*pairs, strict=True))
    return AnchorSets(x=found_x, y=found_y, objective=np.empty(0))


def match_sets(sets: AnchorSets, rng: np.random.Generator, settings: Settings) -> AnchorSets:
    """Match the centres of every set: the best of many 2-opt searches from random starts."""
    matched, objectives = [], []
    for centers_x, centers_y in zip(sets.x, sets.y, strict=True):
        kernel_x, kernel_y = centered_kernel(centers_x), centered_kernel(centers_y)
        found = [
            quadratic_assignment(kernel_x, kernel_y, method="2opt", options={"maximize": True, "rng": rng})
            for _ in range(settings.num_starts)
        ]
        best = max(found, key=lambda result: result.fun)
        matched.append(centers_y[best.col_ind])
        objectives.append(best.fun)
    return AnchorSets(x=sets.x, y=np.stack(matched), objective=np.array(objectives))


def describe(rows: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Relative representations: cosines of ``rows [n, d]`` with ``anchors [s, c, d]``, ``[n, s * c]``."""
    return unit_rows(rows) @ unit_rows(anchors.reshape(-1, anchors.shape[-1])).T


def initial_map(x: np.ndarray, y: np.ndarray, sets: AnchorSets, settings: Settings) -> np.ndarray:
    """Relative representations of all rows, their nearest rows of Y averaged, Procrustes."""
    described = unit_rows(describe(x, sets.x)), unit_rows(describe(y, sets.y))
    nearest = settings.library.neighbor_means(*described, y, settings.num_neighbors)
    return settings.library.procrustes(x, nearest)


def refine_matching(
    x: np.ndarray, y: np.ndarray, W: np.ndarray, rng: np.random.Generator, settings: Settings
) -> np.ndarray:
    """Refine-1: draw rows, map them, average their nearest rows of Y, Procrustes, smooth; again and again."""
    for _ in range(settings.steps):
        drawn = x[rng.choice(len(x), min(settings.step_rows, len(x)), replace=False)]
        # Rows of Y have unit length, and the length of a query does not change which are nearest by cosine.
        partners = settings.library.neighbor_means(drawn @ W, y, y, settings.num_neighbors)
        W = (1 - settings.smoothing) * W + settings.smoothing * settings.library.procrustes(drawn, partners)
    return W


def refine_clusters(
    x: np.ndarray, y: np.ndarray, W: np.ndarray, rng: np.random.Generator, settings: Settings
) -> np.ndarray:
    """Refine-2: cluster X, cluster Y from the mapped centres, Procrustes on the centre pairs, smooth."""
    num_clusters = min(settings.refine_clusters, len(x), len(y))
    seed = int(rng.integers(2**31))
    centers_x = KMeans(num_clusters, random_state=seed).fit(x).cluster_centers_
    centers_y = KMeans(num_clusters, init=centers_x @ W, n_init=1).fit(y).cluster_centers_
    return (1 - settings.smoothing) * W + settings.smoothing * settings.library.procrustes(centers_x, centers_y)


def fit(
    x: np.ndarray,
    y: np.ndarray,
    seed: int,
    on_stage: Callable[[str, float, object], None] | None = None,
    settings: Settings | None = None,
) -> tuple[LinearMap, dict[str, float]]:
    """Fit the published method.

    Args:
        x: ``[n, d_x]`` raw rows of the source.
        y: ``[m, d_y]`` raw rows of the target, of other texts.
        seed: seed of every draw.
        on_stage: called after each stage with its name, its seconds and its result.
        settings: the values of the notebook by default.

    Returns:
        The map, whose ``W`` is not projected, and the seconds of every stage.
    """
    settings = settings or Settings()
    rng = np.random.default_rng(seed)
    stages: dict[str, float] = {}

    def timed(name, stage, *args):
        start = time.perf_counter()
        result = stage(*args)
        stages[name] = time.perf_counter() - start
        if on_stage is not None:
            on_stage(name, stages[name], result)
        return result

    (x, source), (y, target) = timed("preprocess", lambda: (preprocess(x), preprocess(y)))
    clustered = timed("clustering", cluster_sets, x, y, rng, settings)
    sets = timed("assignment", match_sets, clustered, rng, settings)
    W = timed("initial map", initial_map, x, y, sets, settings)
    W = timed("refine-1", refine_matching, x, y, W, rng, settings)
    W = timed("refine-2", refine_clusters, x, y, W, rng, settings)
    return LinearMap(W=W, source=source, target=target), stages


def main(arguments: list[str] | None = None) -> None:
    """Fit once, and print quality and seconds."""
    parser = make_parser(__doc__)
    add_data_options(parser)
    add_seed_option(parser)
    options = parser.parse_args(arguments)
    environment = print_environment()
    split, data = load_split(options)
    linear_map, stages = fit(
        split.x, split.y, options.seed, lambda name, seconds, _: print(f"{name}: {seconds:.1f} s", flush=True)
    )
    scores, oracle = evaluate(linear_map, split), evaluate_oracle(split)
    seconds = sum(stages.values())
    print_table(
        "the published method",
        ["", *METRICS, "seconds"],
        [["reference", *format_scores(scores), f"{seconds:.1f}"], ["oracle", *format_scores(oracle), ""]],
    )
    record = {"scores": scores, "oracle": oracle, "seconds": seconds, "stages": stages, "seed": options.seed}
    write_json(options.json, {"environment": environment, "data": data, **record})


if __name__ == "__main__":
    main()
