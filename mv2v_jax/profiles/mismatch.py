"""Whether rows come from the space of a profile; on NumPy alone."""

from typing import Any

import numpy as np

from mv2v_jax.profiles.centres import nearness
from mv2v_jax.profiles.lengths import describe_lengths, is_one_length, length_range
from mv2v_jax.profiles.profile import COMPARED_ROWS, SpaceProfile, likeness, sample_rows, unit_rows

# Rows without numbers after this share of the columns are truncated.
_MAX_USED = 0.9
# Largest relative difference from one common length, and largest factor between medians of lengths that vary.
_LENGTH_TOLERANCE, _SCALE_TOLERANCE = 0.05, 4.0
# Where the mean of unit rows is longer than the first number, its direction names the encoder: that of other texts has
# at least the second number as cosine with it.
_NARROW_CONE, _MIN_MEAN_COSINE = 0.7, 0.5
# Elsewhere the variances do, if the profile recognises its own rows and there are enough rows to compute variances.
_MIN_LIKENESS, _MIN_OWN_LIKENESS, _MIN_ROWS = 0.4, 0.7, 10
# Neither shows a reflection. Rows are nearer to typical rows than to their opposites. Reflected ones are farther by at
# least this share of that difference; texts of another kind by less. A cloud with a smaller difference is symmetric.
_MIN_REFLECTED, _MIN_DIFFERENCE = 0.3, 0.1


def find_mismatch(profile: SpaceProfile, rows: Any, other: SpaceProfile | None = None) -> str | None:
    """Why raw ``rows [n, d]`` are unlike those of a profile, and what to do; ``None`` if they are like them.

    Other texts of the same encoder are like them. At most 2,048 rows are read.

    Args:
        profile: profile of the space that the rows should come from.
        rows: an array, a memory map or `RowFiles` of the dimension of the profile.
        other: profile of the other space of the map, to recognise rows of the wrong side.

    Returns:
        What was found, then the advice after a semicolon.
    """
    sampled = sample_rows(rows, COMPARED_ROWS)
    if not len(sampled):
        return None
    truncated = _find_truncation(profile, sampled)
    if truncated is not None:
        return truncated
    units, lengths = unit_rows(sampled)
    other_encoder = _find_other_encoder(profile, units)
    if other_encoder is not None:
        return f"{other_encoder}; {_advise_side(units, other)}"
    return _find_reflection(profile, units) or _find_other_lengths(profile, lengths)


def _find_truncation(profile: SpaceProfile, rows: np.ndarray) -> str | None:
    used = np.flatnonzero((rows != 0).any(axis=0))
    num_used, d = int(used[-1]) + 1, rows.shape[1]
    # An encoder may have a few columns of zeros; no column is dropped alone.
    if len(rows) < _MIN_ROWS or num_used > _MAX_USED * d or not profile.unit_mean[num_used:].any():
        return None
    return f"zeros in all columns after the first {num_used}, as of truncated embeddings; give all {d} numbers of a row"


def _find_other_encoder(profile: SpaceProfile, units: np.ndarray) -> str | None:
    length = np.linalg.norm(profile.unit_mean)
    if length >= _NARROW_CONE:
        mean = units.mean(axis=0)
        cosine = float(mean @ profile.unit_mean / max(np.linalg.norm(mean) * length, np.finfo(np.float32).tiny))
        if cosine < _MIN_MEAN_COSINE:
            return f"rows of another mean, with a cosine of {cosine:.2f} to that of the rows that were fitted"
        return None
    if len(units) < _MIN_ROWS or profile.likeness < _MIN_OWN_LIKENESS:
        return None
    like = likeness(profile, units)
    if like < _MIN_LIKENESS:
        return f"rows of another encoder, whose variances have a correlation of {like:.2f} with those that were fitted"
    return None


def _find_reflection(profile: SpaceProfile, units: np.ndarray) -> str | None:
    if profile.centres is None or profile.nearness is None or len(units) < _MIN_ROWS:
        return None
    near, opposite = nearness(profile.centres, units)
    difference = profile.nearness[0] - profile.nearness[1]
    if difference < _MIN_DIFFERENCE or near - opposite > -_MIN_REFLECTED * difference:
        return None
    return (
        f"rows as if times -1, with a mean cosine of {near:.2f} to the nearest typical row and of {opposite:.2f} to "
        "the nearest opposite of one; undo the change of sign"
    )


def _advise_side(units: np.ndarray, other: Any) -> str:
    fits_other = (
        other is not None and len(other.unit_mean) == units.shape[1] and _find_other_encoder(other, units) is None
    )
    if fits_other:
        return "they look like the other space of the map: map the other way"
    return "use the encoder, the prompt and the processing of the fitting rows"


def _find_other_lengths(profile: SpaceProfile, lengths: np.ndarray) -> str | None:
    found_range = length_range(lengths)
    (low, median, high), (found_low, found, found_high) = profile.lengths, found_range
    described = f"lengths {describe_lengths(found_low, found_high)} where the fitting rows have lengths "
    if is_one_length(profile.lengths):
        if max(abs(found_low / median - 1), abs(found_high / median - 1)) > _LENGTH_TOLERANCE:
            return f"{described}of {median:.3g}; scale each row to that length, if the encoder is the same"
        return None
    if len(lengths) >= _MIN_ROWS and is_one_length(found_range):
        return f"{described}{describe_lengths(low, high)}; give the rows as the encoder returns them, not normalised"
    if not 1 / _SCALE_TOLERANCE < found / median < _SCALE_TOLERANCE:
        return f"{described}{describe_lengths(low, high)}; give the rows in the scale of the fitting rows"
    return None
