"""Scores of native and of mapped rows in one index, made comparable without a known pair."""

from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.host_arrays import as_host_array
from mv2v_jax.similarity import Metric, similarities

# Best scores per query that are made alike, and the largest sample of each side.
_BEST, _MAX_ROWS = 20, 10_000


class ScoreCalibration(NamedTuple):
    """What turns the score of a mapped row into that of a native one: ``scale * score + offset``."""

    scale: float
    offset: float

    def apply(self, scores: Any, is_mapped: Any) -> np.ndarray:
        """Scores ``[..., k]`` in which those of mapped rows, where ``is_mapped [..., k]``, are calibrated."""
        scores = np.asarray(scores)
        return np.where(np.asarray(is_mapped), self.scale * scores + self.offset, scores)


def calibrate_scores(
    queries: Any, native: Any, mapped: Any, *, metric: Metric = "cosine", seed: int = 0
) -> ScoreCalibration:
    """Make scores of mapped rows comparable with those of native rows in the same index.

    A map brings a row near its place and not onto it, so that a native row beats a mapped one that fits as well. The
    best 20 scores of typical queries among equally many rows of each side get the same mean and spread. That presumes
    that both sides hold the same kind of text.

    Args:
        queries: ``[q, d]`` raw rows of the encoder of the index, a few hundred that are not in it. No partner is known.
        native: ``[n, d]`` raw rows of that encoder, a sample of those in the index.
        mapped: ``[m, d]`` rows mapped into its frame, a sample of those in the index.
        metric: how the index compares rows. Scores are larger for nearer rows; under ``"l2"`` they are
            ``2 x y - |y|^2``, the negative squared distance plus the squared length of the query.
        seed: seed of the samples.

    Raises:
        InputError: no matrices of one dimension, no query, or fewer than 20 rows on a side.
    """
    arrays = {"queries": queries, "native": native, "mapped": mapped}
    rows = {name: as_host_array(array, name).astype(np.float32) for name, array in arrays.items()}
    for name, array in rows.items():
        num_needed = 1 if name == "queries" else _BEST
        if array.ndim != 2 or array.shape[1:] != rows["queries"].shape[1:] or len(array) < num_needed:
            raise InputError(
                f"{name} must be at least {num_needed} rows of the dimension of the queries, found {list(array.shape)}"
            )
    rng = np.random.default_rng(seed)
    size = min(len(rows["native"]), len(rows["mapped"]), _MAX_ROWS)
    best = []
    for name in ("native", "mapped"):
        chosen = rng.choice(len(rows[name]), size, replace=False)
        scores = similarities(rows["queries"], rows[name][chosen], metric)
        best.append(-np.partition(-scores, _BEST - 1, axis=1)[:, :_BEST])
    (mean, spread), (mapped_mean, mapped_spread) = ((float(found.mean()), float(found.std())) for found in best)
    scale = spread / mapped_spread if mapped_spread > 0 else 1.0
    return ScoreCalibration(scale=scale, offset=mean - scale * mapped_mean)
