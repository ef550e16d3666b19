"""A linear map between two embedding spaces: what it holds, how to apply it and how to invert it."""

from typing import Any

import jax
import jax.numpy as jnp

from mv2v_jax.errors import InputError
from mv2v_jax.finish import make_finish
from mv2v_jax.frame import Frame, check_frame
from mv2v_jax.ops.given_arrays import as_array, as_matrix, check_columns
from mv2v_jax.ops.masked import center_unit, squarable_rows, unit_rows
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.profiles.profile import SpaceProfile
from mv2v_jax.similarity import Metric


@pytree
class Centering:
    """What turns raw rows of one space into centred unit rows, and back.

    Attributes:
        mean: ``[d]``, mean of the nonzero fitting rows. Rows of more than five times the median length count with the
            median length.
        scale: scalar, mean length of these rows after centring.
    """

    mean: jax.Array
    scale: jax.Array


@pytree
class LinearMap:
    """A linear map between two embedding spaces, with what is needed to use it on raw rows.

    Attributes:
        W: ``[d_x, d_y]``, from centred unit rows of the source to centred unit rows of the target.
        source: `Centering` of the source.
        target: `Centering` of the target; `apply` needs its scale to return to the target's raw frame.
    """

    W: jax.Array
    source: Centering
    target: Centering


def map_parts(linear_map: LinearMap) -> dict[str, Any]:
    """The arrays of a map by their names in a file."""
    source, target = linear_map.source, linear_map.target
    return {
        "W": linear_map.W,
        "mean_x": source.mean,
        "mean_y": target.mean,
        "scale_x": source.scale,
        "scale_y": target.scale,
    }


def check_map(linear_map: Any, name: str = "linear_map", *, several: bool = False) -> tuple[int, int]:
    """Raise `InputError` unless this is one `LinearMap`, or ``several`` stacked ones; returns ``d_x`` and ``d_y``."""
    shape = "[r, d_x, d_y], several maps" if several else "[d_x, d_y], one map"
    if not isinstance(linear_map, LinearMap):
        hint = "; pass its map" if isinstance(getattr(linear_map, "map", None), LinearMap) else ""
        raise InputError(f"{name} must be a LinearMap, found {type(linear_map).__name__}{hint}")
    for part, array in map_parts(linear_map).items():
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
            found = getattr(array, "dtype", type(array).__name__)
            raise InputError(f"{name} must hold arrays of floating-point numbers, found {part} of {found}")
    if linear_map.W.ndim != 2 + several:
        raise InputError(f"{name} must hold W {shape}, found shape {list(linear_map.W.shape)}")
    d_x, d_y = linear_map.W.shape[-2:]
    for part, mean, d in (("mean_x", linear_map.source.mean, d_x), ("mean_y", linear_map.target.mean, d_y)):
        if mean.shape[-1:] != (d,):
            raise InputError(f"{name} must hold {part} [{d}] as W has, found shape {list(mean.shape)}")
    return d_x, d_y


def apply(
    linear_map: LinearMap,
    x: Any,
    *,
    frame: Frame = "centred",
    metric: Metric = "cosine",
    dims: int | None = None,
    profile: SpaceProfile | None = None,
) -> jax.Array:
    """Map raw source rows into the target space.

    Args:
        linear_map: from `align` (its ``map``), `load_map` or `invert`.
        x: ``[n, d_x]`` raw rows of the source encoder, or a single row ``[d_x]``, of any floating dtype and any length
            that it can hold.
        frame: ``"centred"`` for unit rows with the target's mean removed, which the metrics compare; ``"target"`` for
            rows in the target's raw frame, comparable by cosine with raw vectors of the target encoder.
        metric: how the rows are compared. ``"dot"`` and ``"l2"`` need the frame ``"target"`` and ``profile``, and give
            rows the one length that the rows of the target have. Where these have several, the length of each row is
            predicted from its direction.
        dims: numbers that are kept of each mapped row, for an index that holds prefixes of a Matryoshka encoder.
            Prefixes are scaled to the one length of the rows of ``profile``, if they have one.
        profile: `profile_rows` of raw rows of the target, or ``portable.load(path).profiles[1]`` of a file that holds
            one. A constant under ``jit``.

    Returns:
        ``[n, d_y]``, or ``[d_y]`` for a single row, in the dtype of ``x``; ``dims`` for ``d_y``. Zero rows become zero
        rows (centred) or the target's mean (target). A row with NaN or infinity becomes a row of NaN, and changes no
        other row.

    Raises:
        InputError: not a map, wrong shape or dtype, masked values, unknown frame or metric, ``dims`` not below ``d_y``,
            or a metric other than cosine with centred rows or without a profile of the target.

    Example:
        >>> import jax.numpy as jnp
        >>> centering = Centering(mean=jnp.zeros(2), scale=jnp.ones(()))
        >>> turn = LinearMap(W=jnp.array([[0.0, 1.0], [-1.0, 0.0]]), source=centering, target=centering)
        >>> apply(turn, jnp.array([[2.0, 0.0]])).tolist()
        [[0.0, 1.0]]
    """
    d_x, d_y = check_map(linear_map)
    x = as_array(x, "x")
    if x.ndim == 1:
        return apply(linear_map, x[None], frame=frame, metric=metric, dims=dims, profile=profile)[0]
    x = as_matrix(x, "x")
    check_columns(x, "x", d_x, "for this map", other=d_y, min_rows=0)
    check_frame(frame)
    _check_profile(profile, d_y)
    finish = make_finish(frame, metric, dims, profile, d_y, "the argument profile; make it by profile_rows")
    # A matrix product may spread NaN over the rows that it computes together.
    finite = jnp.isfinite(x).all(axis=1, keepdims=True)
    rows = center_unit(jnp.where(finite, x, 0), linear_map.source.mean)
    mapped = unit_rows(squarable_rows(rows @ linear_map.W))
    if frame == "target":
        mapped = linear_map.target.mean[None] + linear_map.target.scale * mapped
    return jnp.where(finite, finish(mapped), jnp.nan).astype(x.dtype)


def _check_profile(profile: Any, d_y: int) -> None:
    if profile is not None and not isinstance(profile, SpaceProfile):
        raise InputError(f"profile must be what profile_rows returns, found {type(profile).__name__}")
    if profile is not None and profile.unit_mean.shape != (d_y,):
        found = len(profile.unit_mean)
        raise InputError(f"profile must be of rows of the target, of {d_y} dimensions, found {found}")


def invert(linear_map: LinearMap) -> LinearMap:
    """The map from target to source.

    Its ``W`` is the transpose. For a semi-orthogonal map this is the inverse: exact for square ones, the shortest
    pre-image where the target has fewer dimensions. For a map that also whitens, it is the map of the same
    correspondence that whitens both spaces again. Both maps compare ``x`` and ``y`` by ``x W y^T``, so that rows keep
    their partners but for the lengths of mapped rows.
    """
    check_map(linear_map)
    return LinearMap(W=linear_map.W.T, source=linear_map.target, target=linear_map.source)
