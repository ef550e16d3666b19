"""Self-learning as in VecMap (Artetxe, Labaka and Agirre 2018, arXiv 1805.06297), restated on NumPy.

The first dictionary comes from sorted similarities within each space. Then rows are matched by CSLS and the orthogonal
map is fitted, again and again; at first each similarity is dropped with a probability that falls as the objective stops
to grow. The last map re-weights the directions. VecMap uses the most frequent words first; texts have no frequency, so
rows are drawn.
"""

import dataclasses

import numpy as np

from benchmarks.reference import procrustes, unit_rows


@dataclasses.dataclass(frozen=True)
class VecMapSettings:
    """The values of VecMap, with fewer rows for the self-learning than its 20,000: it would take hours on few cores."""

    init_rows: int = 4_000
    rows: int = 5_000
    num_neighbors: int = 10
    keep: float = 0.1
    keep_factor: float = 2.0
    patience: int = 10
    threshold: float = 1e-6
    max_steps: int = 500
    reweight: float = 0.5


def sorted_similarities(rows: np.ndarray) -> np.ndarray:
    """Every row's similarities with all rows, of the square root of the Gram matrix, sorted: ``[n, n]``, normalised."""
    u, s, _ = np.linalg.svd(rows, full_matrices=False)
    signature = np.sort((u * s) @ u.T, axis=1)
    signature = unit_rows(signature)
    return unit_rows(signature - signature.mean(axis=0))


def csls_similarity(similarity: np.ndarray, num_neighbors: int) -> np.ndarray:
    """Similarities ``[n, m]`` less half the mean of the largest ones of their row and of their column."""
    forward = np.partition(similarity, -num_neighbors, axis=1)[:, -num_neighbors:].mean(axis=1)
    backward = np.partition(similarity, -num_neighbors, axis=0)[-num_neighbors:].mean(axis=0)
    return similarity - forward[:, None] / 2 - backward / 2


def match_both_ways(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best column of every row, and the best row of every column, as pairs."""
    num_x, num_y = similarity.shape
    rows = np.concatenate([np.arange(num_x), similarity.argmax(axis=0)])
    return rows, np.concatenate([similarity.argmax(axis=1), np.arange(num_y)])


def reweighted_map(x: np.ndarray, y: np.ndarray, power: float) -> np.ndarray:
    """Whitening, rotation, re-weighting by the correlations and de-whitening of paired rows: ``[d_x, d_y]``."""

    def whitening(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, s, vt = np.linalg.svd(rows, full_matrices=False)
        s = np.maximum(s, 1e-6 * s[0])
        return (vt.T / s) @ vt, (vt.T * s) @ vt

    (white_x, _), (white_y, back_y) = whitening(x), whitening(y)
    u, s, vt = np.linalg.svd((x @ white_x).T @ (y @ white_y), full_matrices=False)
    # VecMap maps both spaces into a common one; the last two factors lead from there back into the space of Y.
    return white_x @ (u * s ** (2 * power)) @ vt @ back_y


def self_learn(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, settings: VecMapSettings | None = None
) -> tuple[np.ndarray, int]:
    """The map ``[d_x, d_y]`` between centred unit rows ``x [n, d_x]`` and ``y [m, d_y]``, and the steps it took."""
    settings = settings or VecMapSettings()
    x, y = (rows[rng.choice(len(rows), min(settings.rows, len(rows)), replace=False)] for rows in (x, y))
    size = min(settings.init_rows, len(x), len(y))
    first = sorted_similarities(x[:size]) @ sorted_similarities(y[:size]).T
    pairs = match_both_ways(csls_similarity(first, settings.num_neighbors))
    keep, best, last_gain, step = settings.keep, -np.inf, 0, 0
    for step in range(1, settings.max_steps + 1):
        # In the steps VecMap uses a plain rotation, and the re-weighting once at the end.
        W = procrustes(x[pairs[0]], y[pairs[1]])
        similarity = csls_similarity(x @ W @ y.T, settings.num_neighbors)
        objective = (similarity.max(axis=1).mean() + similarity.max(axis=0).mean()) / 2
        if objective >= best + settings.threshold:
            best, last_gain = objective, step
        elif step - last_gain > settings.patience:
            if keep >= 1:
                break
            keep, last_gain = min(1.0, settings.keep_factor * keep), step
        if keep < 1:
            # A dropped similarity is never the largest.
            similarity = np.where(rng.random(similarity.shape, np.float32) < keep, similarity, similarity.min())
        pairs = match_both_ways(similarity)
    return reweighted_map(x[pairs[0]], y[pairs[1]], settings.reweight), step
