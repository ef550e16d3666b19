"""What the rows of a space look like, small enough to be kept with a map; on NumPy alone."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.host_arrays import as_host_array
from mv2v_jax.profiles.centres import find_centres, nearness
from mv2v_jax.profiles.lengths import fit_lengths, is_one_length, length_range

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
        centres: ``[k, d]`` float16, typical unit rows, at most 64; ``None``, as the following fields, in maps of
            earlier versions.
        nearness: ``[2]``, mean cosine of a row to the nearest centre and to the nearest opposite of a centre.
        length_weights: ``[d]``, by which the logarithm of a row's length is predicted from its unit row; ``None``, as
            the next one, where all rows have one length.
        length_fit: ``[2]``, offset of that prediction, and the share of the variance that it explains.
    """

    unit_mean: np.ndarray
    directions: np.ndarray
    shares: np.ndarray
    lengths: np.ndarray
    likeness: np.ndarray
    centres: np.ndarray | None = None
    nearness: np.ndarray | None = None
    length_weights: np.ndarray | None = None
    length_fit: np.ndarray | None = None


Profiles = tuple[SpaceProfile | None, SpaceProfile | None]
_FIELDS = [field.name for field in fields(SpaceProfile)]
_LATER_FIELDS = {field.name for field in fields(SpaceProfile) if field.default is None}


def profile_tensors(profiles: Profiles) -> dict[str, np.ndarray]:
    """The arrays of the profiles of source and target by their names in the file of a map."""
    found: dict[str, np.ndarray] = {}
    for side, profile in zip("xy", profiles, strict=True):
        if profile is not None:
            arrays = {name: getattr(profile, name) for name in _FIELDS}
            found |= {f"{name}_{side}": array for name, array in arrays.items() if array is not None}
    return found


def profiles_from(tensors: Mapping[str, np.ndarray]) -> Profiles:
    """The inverse of `profile_tensors`; ``None`` where there is none."""

    def build(side: str) -> SpaceProfile | None:
        named = {name: tensors.get(f"{name}_{side}") for name in _FIELDS}
        missing = {name for name, array in named.items() if array is None}
        return None if missing - _LATER_FIELDS else SpaceProfile(**named)  # type: ignore[arg-type]

    return build("x"), build("y")


def is_whole(profile: SpaceProfile, d: int) -> bool:
    """Whether a profile that was read from a file is one of a space of ``d`` dimensions, of finite numbers."""
    expected = {"unit_mean": (d,), "lengths": (3,), "likeness": (), "length_weights": (d,)}
    expected |= {"nearness": (2,), "length_fit": (2,)}
    arrays = {name: getattr(profile, name) for name in _FIELDS if getattr(profile, name) is not None}
    return (
        all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays.values())
        and all(arrays[name].shape == shape for name, shape in expected.items() if name in arrays)
        and profile.directions.shape == (d, *profile.shares.shape)
        and (profile.centres is None or profile.centres.shape[1:] == (d,))
        and bool((profile.lengths > 0).all())
    )


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


def profile_rows(rows: Any) -> SpaceProfile | None:
    """What raw rows of an encoder look like: their directions and lengths, by which a map recognises others.

    Args:
        rows: ``[n, d]`` raw rows, of which at most 4,096 are read.

    Returns:
        The profile; ``None`` where there are fewer than 200 rows with a direction.

    Raises:
        InputError: not a matrix of floating-point numbers.
    """
    if not isinstance(getattr(rows, "dtype", None), np.dtype):
        rows = as_host_array(rows, "rows")
    # bfloat16 is a type of its own, of kind V.
    if len(rows.shape) != 2 or np.dtype(rows.dtype).kind not in "fV":
        raise InputError(f"rows must be a floating-point matrix [n, d], found {rows.dtype} {list(rows.shape)}")
    units, lengths = unit_rows(sample_rows(rows, PROFILE_ROWS))
    if len(units) < _MIN_ROWS:
        return None
    # Every fourth row is kept out. Variances along directions are too large on the rows that these come from.
    kept_out = np.arange(len(units)) % 4 == 3
    directions = _principal_directions(units[~kept_out]).astype(np.float16)
    shares = _shares(directions, units[kept_out])
    centres = find_centres(units[~kept_out]).astype(np.float16)
    found_lengths = length_range(lengths)
    by_length = None if is_one_length(found_lengths) else fit_lengths(units, lengths, kept_out)
    trials = [units[kept_out][start::_MAX_TRIALS][:_TRIED_ROWS] for start in range(_MAX_TRIALS)]
    return SpaceProfile(
        unit_mean=units.mean(axis=0),
        directions=directions,
        shares=shares.astype(np.float32),
        lengths=found_lengths.astype(np.float32),
        likeness=np.asarray(min(_correlation(shares, _shares(directions, trial)) for trial in trials), np.float32),
        centres=centres,
        nearness=nearness(centres, units[kept_out]),
        length_weights=None if by_length is None else by_length[0],
        length_fit=None if by_length is None else by_length[1],
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
