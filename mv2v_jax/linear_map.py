"""Using a map: apply it to raw rows, in either frame, and turn it round."""

from typing import Literal

import jax
import jax.numpy as jnp

from mv2v_jax.ops.masked import center_unit, unit_rows
from mv2v_jax.ops.pytree import pytree


@pytree
class LinearMap:
    """A linear map between two embedding spaces, with what is needed to use it on raw vectors.

    Attributes:
        W: ``[d_x, d_y]``, from centred unit rows of the source to centred unit rows of the target.
        mean_x: ``[d_x]``, mean of the source's fitting rows.
        mean_y: ``[d_y]``, mean of the target's fitting rows.
        scale_x: scalar, mean length of the source's fitting rows after centring.
        scale_y: scalar, the same of the target; `apply` needs it to return to the target's raw frame.
    """

    W: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    scale_x: jax.Array
    scale_y: jax.Array


Frame = Literal["centred", "target"]


def apply(linear_map: LinearMap, x: jax.Array, *, frame: Frame = "centred") -> jax.Array:
    """Map raw source rows into the target space.

    Args:
        linear_map: from `align` (its ``map``), `load_map` or `invert`.
        x: ``[n, d_x]`` raw rows of the source encoder, any floating dtype.
        frame: ``"centred"`` for unit rows with the target's mean removed, what the metrics compare; ``"target"`` for
            rows in the target's raw frame, comparable by cosine with raw vectors of the target encoder.

    Returns:
        ``[n, d_y]`` in the dtype of ``x``. Zero rows become zero rows (centred) or the target's mean (target).

    Raises:
        ValueError: wrong shape or unknown frame.
    """
    x = jnp.asarray(x)
    d_x = linear_map.W.shape[0]
    if x.ndim != 2 or x.shape[1] != d_x:
        raise ValueError(f"x must be [n, {d_x}] for this map, found shape {list(x.shape)}")
    if frame not in ("centred", "target"):
        raise ValueError(f'frame must be "centred" or "target", found {frame!r}')
    mapped = unit_rows(center_unit(x, linear_map.mean_x) @ linear_map.W)
    if frame == "target":
        mapped = linear_map.mean_y[None] + linear_map.scale_y * mapped
    return mapped.astype(x.dtype)


def invert(linear_map: LinearMap) -> LinearMap:
    """The map from target to source.

    Its ``W`` is the transpose: the inverse of a semi-orthogonal map (exact for square ones, the shortest pre-image
    where the target has fewer dimensions), and where a map also whitens, the map of the same correspondence that
    whitens both spaces again. Either way rows keep the partners they have: both maps compare ``x`` and ``y`` by
    ``x W y^T``.
    """
    return LinearMap(
        W=linear_map.W.T,
        mean_x=linear_map.mean_y,
        mean_y=linear_map.mean_x,
        scale_x=linear_map.scale_y,
        scale_y=linear_map.scale_x,
    )
