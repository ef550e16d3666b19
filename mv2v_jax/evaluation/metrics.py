"""Scores of a map on true pairs, to judge it. No module that fits, selects or stops imports this one."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.alignment.space import fit_space
from mv2v_jax.data.checks import check_columns, check_map_rows, check_paired, check_shape
from mv2v_jax.linear_map import LinearMap, apply
from mv2v_jax.ops.given_arrays import as_matrix
from mv2v_jax.ops.knn import map_blocks
from mv2v_jax.ops.linalg import procrustes
from mv2v_jax.ops.masked import center_unit, working_dtype
from mv2v_jax.ops.pytree import pytree


@pytree
class Metrics:
    """Retrieval of the true partner among all evaluation rows of the target. Scalars in the dtype of the map.

    Attributes:
        top1: share of rows whose true partner is the most similar row (recall@1).
        top5: share of rows whose true partner is among the five most similar rows (recall@5).
        top10: share of rows whose true partner is among the ten most similar rows (recall@10).
        mean_rank: mean rank of the true partner, from 1; tied rows get their mean rank.
        mrr: mean reciprocal rank.
        foscttm: fraction of samples closer than the true match, ``mean((rank - 1) / (n - 1))``; 0 is perfect, 0.5 is
            chance.
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
    """Rank of row i of ``y [n, d]`` among all rows of ``y``, by inner product with row i of ``x [n, d]``: ``[n]``.

    Ranks start at 1. Tied rows get their mean rank, so that a map of all rows to one point ranks at chance.

    Example:
        >>> import jax.numpy as jnp
        >>> pair_ranks(jnp.eye(3), jnp.eye(3)[jnp.array([0, 2, 1])]).tolist()
        [1.0, 2.5, 2.5]
    """
    chex.assert_equal_shape((x, y))
    dtype = working_dtype(x.dtype)

    def ranks(block):
        queries, partners = jnp.split(block, 2, axis=1)
        similarity = queries @ y.T
        # `own` and `similarity` sum in different orders; without slack a partner would not tie with itself.
        own = jnp.sum(queries * partners, axis=1, keepdims=True)
        slack = 8 * jnp.finfo(x.dtype).eps
        closer = jnp.sum(similarity > own + slack, axis=1, dtype=dtype)
        tied = jnp.sum(jnp.abs(similarity - own) <= slack, axis=1, dtype=dtype)
        return 1 + closer + (jnp.maximum(tied, 1) - 1) / 2

    return map_blocks(ranks, jnp.concatenate([x, y], axis=1), y.shape[0])


def evaluate(linear_map: LinearMap, x: Any, y: Any) -> Metrics:
    """Judge a map on true pairs that the fit has not seen.

    Args:
        linear_map: one `LinearMap`.
        x: ``[n, d_x]`` raw rows of the source, any floating dtype.
        y: ``[n, d_y]`` raw rows of the target; row i is the true partner of row i of ``x``.

    Returns:
        `Metrics`.

    Raises:
        InputError: wrong class, shape or dtype, different numbers of rows, or ``x`` and ``y`` swapped.

    Example:
        >>> import jax.numpy as jnp
        >>> from mv2v_jax import Centering
        >>> centering = Centering(mean=jnp.zeros(2), scale=jnp.ones(()))
        >>> turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> float(evaluate(LinearMap(W=turn, source=centering, target=centering), x, x @ turn).top1)
        1.0
    """
    return _evaluate(linear_map, *check_pairs(linear_map, x, y))


def check_pairs(linear_map: LinearMap, x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """What a user passes as true pairs of a map, as JAX arrays; raises `InputError` as `evaluate` does."""
    x, y = as_matrix(x, "x"), as_matrix(y, "y")
    check_map_rows(linear_map, x, y)
    check_paired(x, y)
    return x, y


def map_pairs(linear_map: LinearMap, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mapped rows of the source and rows of the target in the frame that they are compared in, ``[n, d_y]`` both."""
    # In the precision of the map, whatever the dtype of the rows.
    return apply(linear_map, x.astype(linear_map.W.dtype)), center_unit(y, linear_map.target.mean)


@jax.jit
def _evaluate(linear_map: LinearMap, x: jax.Array, y: jax.Array) -> Metrics:
    mapped, target = map_pairs(linear_map, x, y)
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


def oracle(x: Any, y_true: Any, y: Any) -> LinearMap:
    """Orthogonal Procrustes on true pairs of the fitting rows: a reference for rotations fitted without pairs.

    Args:
        x: ``[n, d_x]`` raw fitting rows of the source, any floating dtype.
        y_true: ``[n, d_y]`` raw rows of the target; row i is the true partner of row i of ``x``.
        y: ``[m, d_y]`` raw fitting rows of the target. Only their mean and scale are used, as in a fit.

    Returns:
        A semi-orthogonal `LinearMap`, at least float32.

    Raises:
        InputError: wrong shape or dtype, or different numbers of rows in ``x`` and ``y_true``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> x, turn = jax.random.normal(jax.random.key(0), (20, 2)), jnp.array([[0.0, 1.0], [-1.0, 0.0]])
        >>> bool(jnp.allclose(oracle(x, x @ turn, x @ turn).W, turn, atol=1e-4))
        True
    """
    x, y_true, y = as_matrix(x, "x"), as_matrix(y_true, "y_true"), as_matrix(y, "y")
    check_shape(x, "x")
    check_shape(y, "y")
    # If x has the columns of y, y_true probably holds the rows of x.
    other = y_true.shape[-1] if x.shape[1] == y.shape[1] else None
    check_columns(y_true, "y_true", y.shape[1], "like y", other=other)
    check_paired(x, y_true, ("x", "y_true"))
    return _oracle(x, y_true, y)


@jax.jit
def _oracle(x: jax.Array, y_true: jax.Array, y: jax.Array) -> LinearMap:
    space_x, space_y = fit_space(x), fit_space(y)
    return LinearMap(
        W=procrustes(space_x.rows, center_unit(y_true, space_y.centering.mean)),
        source=space_x.centering,
        target=space_y.centering,
    )
