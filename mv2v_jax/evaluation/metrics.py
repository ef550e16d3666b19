"""Scores of a map on true pairs. They judge; nothing that fits, selects or stops imports this file."""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.alignment.space import fit_space
from mv2v_jax.linear_map import LinearMap, apply
from mv2v_jax.ops.knn import map_blocks
from mv2v_jax.ops.linalg import procrustes
from mv2v_jax.ops.masked import center_unit, working_dtype
from mv2v_jax.ops.pytree import pytree


@pytree
class Metrics:
    """Retrieval of each true partner among all evaluation rows of the target. All scalars.

    Attributes:
        top1: share of rows whose true partner is the most similar.
        top5: among the five most similar.
        top10: among the ten most similar.
        mean_rank: mean rank of the true partner; 1 is perfect, ties take the mid-rank.
        mrr: mean reciprocal rank.
        foscttm: fraction of rows closer than the true match, ``(rank - 1) / (n - 1)``; 0 perfect, 0.5 chance.
        cosine: mean cosine of the true pairs.
    """

    top1: jax.Array
    top5: jax.Array
    top10: jax.Array
    mean_rank: jax.Array
    mrr: jax.Array
    foscttm: jax.Array
    cosine: jax.Array


def pair_ranks(x: jax.Array, y: jax.Array) -> jax.Array:
    """Rank of row i of ``y [n, d]`` among all rows of ``y`` by similarity with row i of ``x [n, d]``: ``[n]``, from 1.

    Ties take the mid-rank, so a map that sends everything to one point ranks at chance, not first.
    """
    chex.assert_equal_shape((x, y))
    dtype = working_dtype(x.dtype)

    def ranks(block):
        queries, partners = jnp.split(block, 2, axis=1)
        similarity = queries @ y.T
        # The partner's own similarity comes from a sum in another order; without slack it would beat or lose to itself.
        own = jnp.sum(queries * partners, axis=1, keepdims=True)
        slack = 8 * jnp.finfo(x.dtype).eps
        closer = jnp.sum(similarity > own + slack, axis=1, dtype=dtype)
        tied = jnp.sum(jnp.abs(similarity - own) <= slack, axis=1, dtype=dtype)
        return 1 + closer + (jnp.maximum(tied, 1) - 1) / 2

    return map_blocks(ranks, jnp.concatenate([x, y], axis=1), y.shape[0])


@jax.jit
def evaluate(linear_map: LinearMap, x: jax.Array, y: jax.Array) -> Metrics:
    """Judge a map on true pairs: raw rows ``x [n, d_x]`` and ``y [n, d_y]``, row i with row i, held out of the fit."""
    # In the map's own precision, whatever the dtype of the rows.
    mapped = apply(linear_map, x.astype(linear_map.W.dtype))
    target = center_unit(y, linear_map.mean_y)
    ranks = pair_ranks(mapped, target)
    return Metrics(
        top1=jnp.mean(ranks <= 1),
        top5=jnp.mean(ranks <= 5),
        top10=jnp.mean(ranks <= 10),
        mean_rank=jnp.mean(ranks),
        mrr=jnp.mean(1 / ranks),
        foscttm=jnp.mean(ranks - 1) / max(x.shape[0] - 1, 1),
        cosine=jnp.mean(jnp.sum(mapped * target, axis=1)),
    )


@jax.jit
def oracle(x: jax.Array, y_true: jax.Array, y: jax.Array) -> LinearMap:
    """The best an orthogonal map can do: Procrustes on true pairs of the fitting rows.

    Args:
        x: ``[n, d_x]`` raw fitting rows of the source.
        y_true: ``[n, d_y]`` raw target rows of the same texts, row i with row i.
        y: ``[m, d_y]`` raw fitting rows of the target; only their mean and scale are used, as a fit would.
    """
    space_x, space_y = fit_space(x), fit_space(y)
    return LinearMap(
        W=procrustes(space_x.rows, center_unit(y_true, space_y.mean)),
        mean_x=space_x.mean,
        mean_y=space_y.mean,
        scale_x=space_x.scale,
        scale_y=space_y.scale,
    )
