"""How long a row of a space is, guessed from its direction; on NumPy alone.

A map gives directions. Where an index compares by dot product or squared distance, lengths decide as well.
"""

from typing import Any

import numpy as np

# Lengths that spread less than this, from 5 % to 95 % over the median, are one length.
_ONE_LENGTH = 0.02
# Ridge penalty in multiples of the mean variance of a column. Directions of mapped rows are less exact than those that
# the weights come from: a smaller penalty predicts lengths of native rows better, and of mapped rows worse.
_PENALTY = 3.0
# Rows that weights come from in spaces of more dimensions than the first number, so that no large system is solved.
_WIDE, _WIDE_ROWS = 1024, 1024


def is_one_length(lengths: np.ndarray) -> bool:
    """Whether rows with these lengths at 5 %, median and 95 % have one length in practice."""
    low, median, high = lengths
    return bool(high - low < _ONE_LENGTH * median)


def length_range(lengths: np.ndarray) -> np.ndarray:
    """Lengths at 5 %, at the median and at 95 %: ``[3]``."""
    return np.quantile(lengths, [0.05, 0.5, 0.95])


def describe_lengths(low: float, high: float) -> str:
    """A range of lengths in words; two that print alike are one."""
    return f"of {high:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"from {low:.3g} to {high:.3g}"


def fit_lengths(units: np.ndarray, lengths: np.ndarray, kept_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of the logarithm of the length on the direction.

    Args:
        units: ``[n, d]`` unit rows.
        lengths: ``[n]``, their lengths.
        kept_out: ``[n]``, rows on which the regression is tried.

    Returns:
        The weights ``[d]``, and ``[2]``: the offset, and the share of the variance that is explained on rows kept out.
    """
    logs = np.log(lengths)
    chosen = np.flatnonzero(~kept_out)[: _WIDE_ROWS if units.shape[1] > _WIDE else None]
    rows, wanted = units[chosen].astype(np.float64), logs[chosen]
    mean, mean_log = rows.mean(axis=0), wanted.mean()
    weights = _ridge(rows - mean, wanted - mean_log)
    offset = mean_log - mean @ weights
    errors, total = units[kept_out] @ weights + offset - logs[kept_out], logs[kept_out] - logs[kept_out].mean()
    explained = 1 - float(errors @ errors) / max(float(total @ total), np.finfo(np.float64).tiny)
    return weights.astype(np.float32), np.array([offset, explained], np.float32)


def _ridge(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Weights ``[d]`` for centred rows ``[n, d]``, by the smaller of both systems."""
    n, d = rows.shape
    penalty = max(_PENALTY * float(np.square(rows).sum()) / d, np.finfo(np.float64).tiny)
    if n < d:
        return rows.T @ np.linalg.solve(rows @ rows.T + penalty * np.eye(n), wanted)
    return np.linalg.solve(rows.T @ rows + penalty * np.eye(d), rows.T @ wanted)


def predict_lengths(units: Any, lengths: np.ndarray, weights: np.ndarray, fit: np.ndarray) -> Any:
    """Lengths ``[n]`` of unit rows ``[n, d]`` of NumPy or JAX, between 5 % and 95 % of the ``lengths`` of a space.

    Args:
        units: unit rows.
        lengths: as of `length_range`.
        weights: of `fit_lengths`.
        fit: of `fit_lengths`.
    """
    logs = units @ weights.astype(units.dtype) + fit[0].astype(units.dtype)
    low, _, high = np.log(np.asarray(lengths)).astype(units.dtype)
    return np.e ** logs.clip(low, high)
