"""Annealed refinement: the directions that are matched best decide first, the others join as they firm up.

Plain refinement cannot leave a poor start: its matches are mostly wrong, and a rotation gives the wrong directions as
much say as the right ones. Here rows are compared in the singular directions of the running cross-covariance, each
weighted by a power of the correlation of its matched pairs (`directions`); the power falls to that of the final map.
Every step sees random rows of both spaces, at most half of them (the stochastic dictionary of VecMap, Artetxe et al.,
ACL 2018), so that no wrong match can confirm itself step after step. Matches are by CSLS, in both directions.

What comes out is settled: first on larger samples, then on as many rows as there are (`refine_csls`).
"""

import math

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.refine_published import Refined
from mv2v_jax.alignment.seeds import Seeds, blend_seeds
from mv2v_jax.alignment.whitening import Directions, fit_whitening, weigh_directions
from mv2v_jax.config import Config
from mv2v_jax.ops.csls import match_csls
from mv2v_jax.ops.linalg import scale_to_norm
from mv2v_jax.ops.masked import mean_present, present_rows, unit_rows
from mv2v_jax.ops.sampling import draw_rows, order_rows
from mv2v_jax.ops.sharding import ROW, psum, shard

# The cross-covariance is averaged over steps, with a memory that grows as the matches become right.
_FIRST_MOMENTUM, _LAST_MOMENTUM = 0.5, 0.9


# Small samples take more steps, by the fourth power of what they are smaller: fewer of their first matches are right,
# and more of them must be averaged. But no more than so many times the steps.
_MAX_LONGER = 4


_MIN_SHARE = 0.5


def _cross_covariance(x, y, directions: Directions, num_neighbors, known: Seeds | None, config: Config):
    """Match rows by how they compare, both ways: the cross-covariance of the pseudo-pairs, and the mean CSLS.

    It is scaled to the length of a semi-orthogonal map, so that a map can also be what it is averaged with. Known pairs
    are blended in.
    """
    matches = match_csls(unit_rows(x @ directions.x), unit_rows(y @ directions.y), num_neighbors=num_neighbors)
    # Over a mesh's row axis each device pairs its share of the rows.
    rows_x, index_x = shard((x, matches.x_to_y.index), ROW)
    rows_y, index_y = shard((y, matches.y_to_x.index), ROW)
    cross = psum(rows_x.T @ y[index_x].mean(axis=1) / x.shape[0] + x[index_y].mean(axis=1).T @ rows_y / y.shape[0], ROW)
    objective = (
        mean_present(matches.x_to_y.similarity, present_rows(x))
        + mean_present(matches.y_to_x.similarity, present_rows(y))
    ) / 2
    return scale_to_norm(blend_seeds(cross, 2, known, config), min(cross.shape) ** 0.5), objective


def _annealed_rows(num_rows: int, config: Config) -> int:
    return min(config.anneal_rows, -(-num_rows // 2))


def annealing_length(num_rows: int, config: Config) -> int:
    """Steps of `refine_annealed` where the smaller space has ``num_rows`` rows."""
    times = round((config.anneal_rows / _annealed_rows(num_rows, config)) ** 4)
    return config.anneal_steps * min(times, _MAX_LONGER)


def refine_annealed(
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    matrix: jax.Array,
    *,
    config: Config,
    steps: jax.Array | None = None,
    known: Seeds | None = None,
) -> Refined:
    """Match random rows of both spaces again and again, with directions weighted by how well they match, less and less.

    Args:
        key: random key; step ``i`` depends on ``fold_in(key, i)`` alone.
        x: ``[n, d_x]`` centred unit rows.
        y: ``[m, d_y]`` centred unit rows.
        matrix: ``[d_x, d_y]``, a map or a cross-covariance to start from.
        config: uses ``anneal_*``, ``reliability_power`` and ``whitening_power``.
        steps: ``[t]`` numbers of the steps to take; all of `annealing_length` by default.
        known: `Seeds` to blend into every step's cross-covariance, if any.

    Returns:
        `Refined`: the running cross-covariance, and the mean CSLS of the rows with their best matches.
    """
    whitening_x, whitening_y = (fit_whitening(rows, config.whitening_power) for rows in (x, y))
    orders = order_rows(key, x, y)
    num_steps = annealing_length(min(x.shape[0], y.shape[0]), config)

    def step(cross, index):
        progress = index / num_steps
        draws = jax.random.split(jax.random.fold_in(key, index))
        drawn_x, drawn_y = (
            draw_rows(draw_key, rows, _annealed_rows(rows.shape[0], config), order)
            for draw_key, rows, order in zip(draws, (x, y), orders, strict=True)
        )
        power = config.anneal_power * (1 - progress) + config.reliability_power * progress
        directions = weigh_directions(cross, whitening_x, whitening_y, power, exact=False)
        new, objective = _cross_covariance(drawn_x, drawn_y, directions, config.anneal_neighbors, known, config)
        momentum = _FIRST_MOMENTUM + (_LAST_MOMENTUM - _FIRST_MOMENTUM) * progress
        return (momentum * cross + (1 - momentum) * new).astype(cross.dtype), objective

    matrix, objective = jax.lax.scan(step, matrix, jnp.arange(num_steps) if steps is None else steps)
    return Refined(matrix=matrix, objective=objective)


def settle_neighbors(num_rows: int, config: Config) -> int:
    """Nearest rows averaged by `refine_csls`: ``(config.ample_rows / num_rows)^1.5``, at most one row in fifty.

    The nearest rows are the best partners where rows are plenty. Where they are few, the weak directions drown in the
    noise of few pairs, and a map can learn the very pairs it was matched by. The exponent joins what was best at 3,000
    rows (some 40) to what was best at 26,000 (2).
    """
    wanted = math.ceil((config.ample_rows / num_rows) ** 1.5)
    return max(config.csls_neighbors, min(wanted, num_rows // 50))


def _settle(key, x, y, matrix, steps, num_rows: int, config: Config, known: Seeds | None) -> Refined:
    whitening_x, whitening_y = (fit_whitening(rows, config.whitening_power) for rows in (x, y))
    orders = order_rows(key, x, y)
    smaller = min(x.shape[0], y.shape[0])
    # A sample counts as much in the average as it is of the data, the whole of it replaces what was before. Half at
    # least, or the average trails behind a map that still improves; and what was searched for in fewer directions
    # says nothing about the others, so that the first sample replaces it.
    least = max(_MIN_SHARE, min(1.0, num_rows / smaller))

    def step(cross, index):
        share = jnp.where(index == 0, 1.0, least)
        draws = jax.random.split(jax.random.fold_in(key, index))
        drawn_x, drawn_y = (
            draw_rows(draw_key, rows, num_rows, order)
            for draw_key, rows, order in zip(draws, (x, y), orders, strict=True)
        )
        directions = weigh_directions(cross, whitening_x, whitening_y, config.reliability_power)
        num_neighbors = settle_neighbors(smaller, config)
        new, objective = _cross_covariance(drawn_x, drawn_y, directions, num_neighbors, known, config)
        return ((1 - share) * cross + share * new).astype(cross.dtype), objective

    matrix, objective = jax.lax.scan(step, matrix, steps)
    return Refined(matrix=matrix, objective=objective)


def refine_csls(
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    matrix: jax.Array,
    *,
    config: Config,
    steps: jax.Array | None = None,
    known: Seeds | None = None,
) -> Refined:
    """Settle a map: match samples of up to ``config.csls_rows`` rows by CSLS in both directions, and average.

    Arguments and result as for `refine_annealed`; uses ``csls_*``, ``reliability_power`` and ``whitening_power``.
    """
    steps = jnp.arange(config.csls_steps) if steps is None else steps
    return _settle(key, x, y, matrix, steps, config.csls_rows, config, known)


def refine_whole(
    key: jax.Array,
    x: jax.Array,
    y: jax.Array,
    matrix: jax.Array,
    *,
    config: Config,
    steps: jax.Array | None = None,
    known: Seeds | None = None,
) -> Refined:
    """As `refine_csls` on as many rows as there are, up to ``config.whole_rows``; ``config.whole_steps`` steps."""
    steps = jnp.arange(config.whole_steps) if steps is None else steps
    return _settle(key, x, y, matrix, steps, config.whole_rows, config, known)
