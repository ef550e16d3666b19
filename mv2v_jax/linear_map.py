"""Using a map: apply it to raw rows, in either frame, and turn it round."""

from typing import Literal

import jax
import jax.numpy as jnp

from mv2v_jax.preprocess import center_unit, unit_rows
from mv2v_jax.types import LinearMap

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
