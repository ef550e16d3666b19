"""Annealed refinement: the directions that are matched best decide first, the others join as they firm up.

Plain refinement cannot leave a poor start: its matches are mostly wrong, and a rotation gives the wrong directions as
much say as the right ones. Here rows are compared in the singular directions of the running cross-covariance, each
weighted by a power of the correlation of its matched pairs; the power falls to zero, where the weighting is a rotation.
Every step sees random rows of both spaces, at most half of them (the stochastic dictionary of VecMap, Artetxe et al.,
ACL 2018), so that no wrong match can confirm itself step after step. Matches are by CSLS, in both directions.

What comes out is settled on as many rows as there are, without weights (`refine_csls`).
"""

import jax
import jax.numpy as jnp

from mv2v_jax.csls import match_csls
from mv2v_jax.preprocess import draw_rows, unit_rows
from mv2v_jax.refine import Refined
from mv2v_jax.types import Config

# The cross-covariance is averaged over steps, with a memory that grows as the matches become right.
_FIRST_MOMENTUM, _LAST_MOMENTUM = 0.5, 0.9


def _direction_weights(cross, covariance_x, covariance_y, power):
    """Singular directions of the running cross-covariance, ``[d_x, r]`` and ``[d_y, r]``, and their weights ``[r]``.

    A singular value is the covariance of the matched pairs along its directions; over the spread of both spaces there
    it becomes their correlation. Singular values alone would count a direction down for being short, not for being
    wrong.
    """
    u, singular, vt = jnp.linalg.svd(cross, full_matrices=False)
    v = vt.T
    tiny = jnp.finfo(cross.dtype).tiny
    spread = jnp.sum(u * (covariance_x @ u), axis=0) * jnp.sum(v * (covariance_y @ v), axis=0)
    # A direction that holds no data has no spread, and nothing to say. Spread is a product of two variances.
    has_spread = spread > jnp.finfo(cross.dtype).eps ** 2 * jnp.max(spread)
    correlation = jnp.where(has_spread, singular / jnp.sqrt(jnp.where(has_spread, spread, 1)), 0)
    return u, v, (correlation / jnp.maximum(correlation.max(), tiny)) ** jnp.asarray(power, cross.dtype)


def _cross_covariance(x, y, compared_x, compared_y, num_neighbors):
    """Match rows by how they compare, both ways: the cross-covariance of the pseudo-pairs, and the mean CSLS.

    It is scaled to the length of a semi-orthogonal map, so that a map can also be what it is averaged with.
    """
    matches = match_csls(compared_x, compared_y, num_neighbors=num_neighbors)
    partners_of_x = y[matches.x_to_y.index].mean(axis=1)
    partners_of_y = x[matches.y_to_x.index].mean(axis=1)
    cross = x.T @ partners_of_x / x.shape[0] + partners_of_y.T @ y / y.shape[0]
    length = jnp.maximum(jnp.linalg.norm(cross), jnp.finfo(cross.dtype).tiny)
    objective = (matches.x_to_y.similarity.mean() + matches.y_to_x.similarity.mean()) / 2
    return cross * (min(cross.shape) ** 0.5 / length), objective


def refine_annealed(
    key: jax.Array, x: jax.Array, y: jax.Array, matrix: jax.Array, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Match random rows of both spaces again and again, with directions weighted by how well they match, less and less.

    Args:
        key: random key; step ``i`` depends on ``fold_in(key, i)`` alone.
        x: ``[n, d_x]`` centred unit rows.
        y: ``[m, d_y]`` centred unit rows.
        matrix: ``[d_x, d_y]``, a map or a cross-covariance to start from.
        config: uses ``anneal_*`` and ``reliability_power``.
        steps: ``[t]`` numbers of the steps to take; all of ``config.anneal_steps`` by default.

    Returns:
        `Refined`: the running cross-covariance, and the mean CSLS of the rows with their best matches.
    """
    covariance_x, covariance_y = (rows.T @ rows / rows.shape[0] for rows in (x, y))

    def step(cross, index):
        progress = index / config.anneal_steps
        draws = jax.random.split(jax.random.fold_in(key, index))
        drawn_x, drawn_y = (
            draw_rows(draw_key, rows, min(config.anneal_rows, -(-rows.shape[0] // 2)))
            for draw_key, rows in zip(draws, (x, y), strict=True)
        )
        u, v, weights = _direction_weights(
            cross, covariance_x, covariance_y, config.reliability_power * (1 - progress) / 2
        )
        # Half of the power on each side, so that unit length is taken in the space where rows are compared.
        compared = unit_rows((drawn_x @ u) * weights[None]), unit_rows((drawn_y @ v) * weights[None])
        new, objective = _cross_covariance(drawn_x, drawn_y, *compared, config.anneal_neighbors)
        momentum = _FIRST_MOMENTUM + (_LAST_MOMENTUM - _FIRST_MOMENTUM) * progress
        return (momentum * cross + (1 - momentum) * new).astype(cross.dtype), objective

    matrix, objective = jax.lax.scan(step, matrix, jnp.arange(config.anneal_steps) if steps is None else steps)
    return Refined(matrix=matrix, objective=objective)


def settle_neighbors(num_rows: int, config: Config) -> int:
    """Nearest rows averaged by `refine_csls`: enough that all rows together make ``config.csls_pairs`` pseudo-pairs.

    The nearest rows are the best partners where rows are plenty. Where they are few, the weak directions drown in the
    noise of few pairs, and a map can learn the very pairs it was matched by.
    """
    return min(
        max(config.csls_neighbors, -(-config.csls_pairs // num_rows)), max(config.csls_neighbors, num_rows // 50)
    )


def refine_csls(
    key: jax.Array, x: jax.Array, y: jax.Array, matrix: jax.Array, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Settle a map: match as many rows as there are, up to ``config.csls_rows``, by CSLS in both directions.

    Arguments and result as for `refine_annealed`; uses ``csls_steps``, ``csls_rows``, ``csls_neighbors`` and
    ``csls_pairs``.
    """
    num_neighbors = settle_neighbors(min(x.shape[0], y.shape[0]), config)

    def step(cross, index):
        draws = jax.random.split(jax.random.fold_in(key, index))
        drawn_x, drawn_y = (
            draw_rows(draw_key, rows, config.csls_rows) for draw_key, rows in zip(draws, (x, y), strict=True)
        )
        u, _, vt = jnp.linalg.svd(cross, full_matrices=False)
        compared = unit_rows(drawn_x @ u), unit_rows(drawn_y @ vt.T)
        new, objective = _cross_covariance(drawn_x, drawn_y, *compared, num_neighbors)
        return new, objective

    matrix, objective = jax.lax.scan(step, matrix, jnp.arange(config.csls_steps) if steps is None else steps)
    return Refined(matrix=matrix, objective=objective)
