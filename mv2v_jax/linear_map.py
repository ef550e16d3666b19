"""A linear map between two embedding spaces: what it holds, how to apply it and how to invert it."""

from typing import Any

import jax
import jax.numpy as jnp

from mv2v_jax.errors import InputError
from mv2v_jax.frame import Frame, check_frame
from mv2v_jax.ops.masked import center_unit, unit_rows
from mv2v_jax.ops.pytree import pytree


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


def apply(linear_map: LinearMap, x: Any, *, frame: Frame = "centred") -> jax.Array:
    """Map raw source rows into the target space.

    Args:
        linear_map: from `align` (its ``map``), `load_map` or `invert`.
        x: ``[n, d_x]`` raw rows of the source encoder, any floating dtype.
        frame: ``"centred"`` for unit rows with the target's mean removed, which the metrics compare; ``"target"`` for
            rows in the target's raw frame, comparable by cosine with raw vectors of the target encoder.

    Returns:
        ``[n, d_y]`` in the dtype of ``x``. Zero rows become zero rows (centred) or the target's mean (target).

    Raises:
        InputError: wrong shape or unknown frame.

    Example:
        >>> import jax.numpy as jnp
        >>> centering = Centering(mean=jnp.zeros(2), scale=jnp.ones(()))
        >>> turn = LinearMap(W=jnp.array([[0.0, 1.0], [-1.0, 0.0]]), source=centering, target=centering)
        >>> apply(turn, jnp.array([[2.0, 0.0]])).tolist()
        [[0.0, 1.0]]
    """
    x = jnp.asarray(x)
    d_x = linear_map.W.shape[0]
    if x.ndim != 2 or x.shape[1] != d_x:
        raise InputError(f"x must be [n, {d_x}] for this map, found shape {list(x.shape)}")
    check_frame(frame)
    mapped = unit_rows(center_unit(x, linear_map.source.mean) @ linear_map.W)
    if frame == "target":
        mapped = linear_map.target.mean[None] + linear_map.target.scale * mapped
    return mapped.astype(x.dtype)


def invert(linear_map: LinearMap) -> LinearMap:
    """The map from target to source.

    Its ``W`` is the transpose. For a semi-orthogonal map this is the inverse: exact for square ones, the shortest
    pre-image where the target has fewer dimensions. For a map that also whitens, it is the map of the same
    correspondence that whitens both spaces again. In both cases rows keep their partners, because both maps compare
    ``x`` and ``y`` by ``x W y^T``.
    """
    return LinearMap(W=linear_map.W.T, source=linear_map.target, target=linear_map.source)
