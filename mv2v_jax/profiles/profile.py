"""What the rows of a space look like, small enough to be kept with a map; on NumPy alone."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

# Rows that a profile is made of, and rows that are compared with one.
PROFILE_ROWS, COMPARED_ROWS = 4096, 2048
# Fewer rows have no profile.
_MIN_ROWS = 200
# Directions that are kept, spread over the whole spectrum; rows that they are computed from in spaces of more
# dimensions than the first number, so that no large matrix is decomposed.
_NUM_DIRECTIONS, _WIDE, _WIDE_ROWS = 256, 1024, 1024
# Shares of variance below this multiple of the mean share count as equally small.
_FLOOR = 0.01
# Rows per sample, and samples, that a profile is tried on.
_TRIED_ROWS, _MAX_TRIALS = 30, 16


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SpaceProfile:
    """What the fitting rows of a space looked like.

    Attributes:
        unit_mean: ``[d]``, mean of the unit rows.
        directions: ``[d, k]`` float16, principal directions from the strongest to the weakest.
        shares: ``[k]``, share of the variance along each.
        lengths: ``[3]``, lengths of the rows: 5 %, median and 95 %.
        likeness: scalar, smallest `likeness` of 30 rows of this space that the directions were not computed from.
    """

    unit_mean: np.ndarray
    directions: np.ndarray
    shares: np.ndarray
    lengths: np.ndarray
    likeness: np.ndarray


Profiles = tuple[SpaceProfile | None, SpaceProfile | None]
_FIELDS = [field.name for field in fields(SpaceProfile)]


def profile_tensors(profiles: Profiles) -> dict[str, np.ndarray]:
    """The arrays of the profiles of source and target by their names in the file of a map."""
    found: dict[str, np.ndarray] = {}
    for side, profile in zip("xy", profiles, strict=True):
        if profile is not None:
            found |= {f"{name}_{side}": getattr(profile, name) for name in _FIELDS}
    return found


def profiles_from(tensors: Mapping[str, np.ndarray]) -> Profiles:
    """The inverse of `profile_tensors`; ``None`` where there is none."""

    def build(side: str) -> SpaceProfile | None:
        named = {name: tensors.get(f"{name}_{side}") for name in _FIELDS}
        return None if any(array is None for array in named.values()) else SpaceProfile(**named)  # type: ignore[arg-type]

    return build("x"), build("y")


def sample_rows(rows: Any, num_rows: int) -> np.ndarray:
    """At most ``num_rows`` nonzero rows of ``rows [n, d]``, spread evenly over all of them, in float32 or float64."""
    total = rows.shape[0]
    if total > num_rows:
        rows = rows[np.linspace(0, total - 1, num_rows).astype(np.int64)]
    sampled = np.asarray(rows[:])
    sampled = sampled.astype(np.float64 if sampled.dtype == np.float64 else np.float32)
    return sampled[(sampled != 0).any(axis=1) & np.isfinite(sampled).all(axis=1)]


def unit_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nonzero ``rows [n, d]`` scaled to length 1, and their lengths ``[n]``."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    return (rows / lengths[:, None]).astype(np.float32), lengths


def length_range(lengths: np.ndarray) -> np.ndarray:
    """Lengths at 5 %, at the median and at 95 %: ``[3]``."""
    return np.quantile(lengths, [0.05, 0.5, 0.95])


def profile_rows(rows: Any) -> SpaceProfile | None:
    """The profile of raw ``rows [n, d]``, from at most 4,096 of them; ``None`` where there are fewer than 200."""
    units, lengths = unit_rows(sample_rows(rows, PROFILE_ROWS))
    if len(units) < _MIN_ROWS:
        return None
    # Every fourth row is kept out. Variances along directions are too large on the rows that these come from.
    kept_out = np.arange(len(units)) % 4 == 3
    directions = _principal_directions(units[~kept_out]).astype(np.float16)
    shares = _shares(directions, units[kept_out])
    trials = [units[kept_out][start::_MAX_TRIALS][:_TRIED_ROWS] for start in range(_MAX_TRIALS)]
    return SpaceProfile(
        unit_mean=units.mean(axis=0),
        directions=directions,
        shares=shares.astype(np.float32),
        lengths=length_range(lengths).astype(np.float32),
        likeness=np.asarray(min(_correlation(shares, _shares(directions, trial)) for trial in trials), np.float32),
    )


def likeness(profile: SpaceProfile, units: np.ndarray) -> float:
    """How much unit rows ``[n, d]`` vary along the directions of a profile as its rows do: 1 is exactly, 0 not at all.

    This is the correlation of the logarithms of the shares of variance. It depends on the encoder much more than on
    the texts.
    """
    return _correlation(profile.shares, _shares(profile.directions, units))


def _principal_directions(units: np.ndarray) -> np.ndarray:
    """Principal directions ``[d, k]`` of ``units [n, d]``, spread over the spectrum, the strongest first."""
    if units.shape[1] > _WIDE:
        units = units[:_WIDE_ROWS]
    centred = (units - units.mean(axis=0)).astype(np.float64)
    # The decomposition of the smaller of both Gram matrices.
    if centred.shape[0] < centred.shape[1]:
        _, vectors = np.linalg.eigh(centred @ centred.T)
        # Centring has left one direction without variance, the first.
        directions = centred.T @ vectors[:, 1:]
        directions /= np.linalg.norm(directions, axis=0)
    else:
        _, directions = np.linalg.eigh(centred.T @ centred)
    num_found = directions.shape[1]
    chosen = np.linspace(num_found - 1, 0, min(_NUM_DIRECTIONS, num_found)).round().astype(np.int64)
    return directions[:, chosen]


def _shares(directions: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Share of the variance of ``units [n, d]`` along each of ``directions [d, k]``."""
    centred = units - units.mean(axis=0)
    along = np.square(centred @ directions.astype(np.float32)).sum(axis=0, dtype=np.float64)
    return along / max(float(np.square(centred).sum(dtype=np.float64)), np.finfo(np.float64).tiny)


def _correlation(expected: np.ndarray, found: np.ndarray) -> float:
    floor = _FLOOR / len(expected)
    logs = np.log(np.stack([expected, found]).astype(np.float64) + floor)
    centred = logs - logs.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    return float(centred[0] @ centred[1] / max(norms.prod(), np.finfo(np.float64).tiny))
