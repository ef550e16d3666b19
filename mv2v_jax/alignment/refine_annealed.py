"""Annealed refinement: the directions that are matched best decide first, the others join as they firm up.

Plain refinement cannot leave a poor start: most of its matches are wrong, and a rotation lets the wrong directions
decide as much as the right ones. Here rows are compared in the singular directions of the running cross-covariance,
each weighted by a power of the correlation of its matched pairs (`whitening`). The power falls to that of the final
map. Every step sees random rows of both spaces, at most half of them (the stochastic dictionary of VecMap, Artetxe et
al., ACL 2018), so that no wrong match can confirm itself step after step. Matches are by CSLS, in both directions.

The result is then settled: first on larger samples, then on all rows (`refine_csls`, `refine_whole`).
"""

import math

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.estimate import Estimate, Refined
from mv2v_jax.alignment.regions import vote_of_regions
from mv2v_jax.alignment.seeds import Seeds, blend_seeds
from mv2v_jax.alignment.space import TwoSpaces, num_held_out, principal_subspace
from mv2v_jax.alignment.whitening import Directions, fit_whitening, weigh_directions
from mv2v_jax.config import Config
from mv2v_jax.ops.csls import match_csls, sum_pairs
from mv2v_jax.ops.linalg import scale_to_norm
from mv2v_jax.ops.masked import mean_present, present_rows, unit_rows
from mv2v_jax.ops.sampling import draw_rows, order_rows

# The cross-covariance is averaged over steps, with a memory that grows as the matches become right.
_FIRST_MOMENTUM, _LAST_MOMENTUM = 0.5, 0.9
# Small samples take more steps, because fewer of their first matches are right and more matches must be averaged. The
# number of steps is multiplied by the fourth power of annealing.rows over the sample size, but by at most this factor.
_MAX_LONGER = 4
_MIN_SHARE = 0.5
# Where the geometric mean of both numbers of rows is below the first number, settling takes a larger power, at most as
# many times as large as the second number says. On five pairs of 1,500 rows, three searches each, the larger power
# lowered every FOSCTTM and raised 13 of 15 top-1, by 0.056 at most. With 3,000 rows twice the power lowered the top-1
# of captions, and where one side had 26,000 rows the larger power lowered the top-1 by 0.02.
_FEW_ROWS, _MAX_SHARPER = 3_000, 3.0
# How many times the directions and rows of the search `refine_annealed_again` has.
_AGAIN_TIMES = 2
# Passes of `refine_by_region`. A start that is hardly better than chance needs a second one.
_REGION_PASSES = 2


def _cross_covariance(
    x: jax.Array,
    y: jax.Array,
    directions: Directions,
    num_neighbors: int,
    seeds: Seeds | None,
    pair_weight,
    left_out: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Match rows in both directions: the cross-covariance of the pseudo-pairs with the seeds, and the mean CSLS.

    The cross-covariance has the Frobenius norm of a semi-orthogonal map, so that it can be averaged with one. With
    ``left_out`` it leaves out that share of the rows, those of the regions that are matched worst.
    """
    compared_x, compared_y = unit_rows(x @ directions.x), unit_rows(y @ directions.y)
    matches = match_csls(compared_x, compared_y, num_neighbors=num_neighbors)
    voting_x, voting_y = x, y
    if left_out is not None:
        vote_x, vote_y = vote_of_regions(compared_x, compared_y, left_out)
        # On average a row has one vote, whether some have none or not.
        voting_x, voting_y = x * (vote_x / vote_x.mean())[:, None], y * (vote_y / vote_y.mean())[:, None]
    cross = sum_pairs(x, y, matches, voting_x, voting_y)
    objective = (
        mean_present(matches.x_to_y.similarity, present_rows(x))
        + mean_present(matches.y_to_x.similarity, present_rows(y))
    ) / 2
    return scale_to_norm(blend_seeds(cross, 2, seeds, pair_weight), min(cross.shape) ** 0.5), objective


def _annealed_rows(num_rows: int, num_drawn: int) -> int:
    return min(num_drawn, -(-num_rows // 2))


def annealing_length(num_rows: int, config: Config) -> int:
    """Steps of `refine_annealed` where the smaller space has ``num_rows`` rows."""
    times = round((config.annealing.rows / _annealed_rows(num_rows, config.annealing.rows)) ** 4)
    return config.annealing.steps * min(times, _MAX_LONGER)


def refine_annealed(
    key: jax.Array, rows: TwoSpaces, estimate: Estimate, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Match random rows of both spaces again and again, weighting directions less and less by how well they match.

    Args:
        key: random key; step ``i`` depends on ``fold_in(key, i)`` alone.
        rows: centred unit rows of both spaces; known pairs among them are blended into every step.
        estimate: a map or a cross-covariance to start from.
        config: uses ``annealing``, ``whitening`` and ``pair_weight``.
        steps: ``[t]`` numbers of the steps to take; all of `annealing_length` by default.

    Returns:
        `Refined`: the running cross-covariance, and the mean CSLS of the rows with their best matches.
    """
    num_steps = annealing_length(rows.num_rows, config)
    steps = jnp.arange(num_steps) if steps is None else steps
    return _anneal(key, rows, estimate, steps, num_steps, config.annealing.rows, config)


def _anneal(
    key: jax.Array,
    rows: TwoSpaces,
    estimate: Estimate,
    steps: jax.Array,
    num_steps: int,
    num_drawn: int,
    config: Config,
    *,
    by_region: bool = False,
) -> Refined:
    """The given ``steps``, each on up to ``num_drawn`` rows of each space, at most half of them.

    Each ``num_steps`` steps are one pass from the first power to the last. With ``by_region``, only the regions that
    are matched best have a vote at first (`annealing.left_out`).
    """
    settings, x, y = config.annealing, rows.x, rows.y
    whitening_x, whitening_y = (fit_whitening(side, config.whitening.power) for side in (x, y))
    orders, sizes = order_rows(key, x, y), [_annealed_rows(side.shape[0], num_drawn) for side in (x, y)]

    def step(cross, index):
        progress = index % num_steps / num_steps
        drawn_x, drawn_y = draw_rows(jax.random.fold_in(key, index), (x, y), sizes, orders)
        power = settings.power * (1 - progress) + config.whitening.reliability_power * progress
        directions = weigh_directions(cross, whitening_x, whitening_y, power, exact=False)
        left_out = settings.left_out * (1 - progress) if by_region else None
        new, objective = _cross_covariance(
            drawn_x, drawn_y, directions, settings.num_neighbors, rows.seeds, config.pair_weight, left_out
        )
        momentum = _FIRST_MOMENTUM + (_LAST_MOMENTUM - _FIRST_MOMENTUM) * progress
        return (momentum * cross + (1 - momentum) * new).astype(cross.dtype), objective

    cross, objective = jax.lax.scan(step, estimate.matrix, steps)
    return Refined(estimate=Estimate(matrix=cross, is_map=False), objective=objective)


def _trusting(config: Config) -> Config:
    """The config of an annealed refinement that starts from a map that is nearly right."""
    return config.replace(annealing={"power": config.annealing.late_power})


def region_pass(config: Config) -> int:
    """Steps of one pass of `refine_by_region`: as many as small samples take, because few first matches are right."""
    return config.annealing.steps * _MAX_LONGER


def region_steps(_num_rows: int, config: Config) -> int:
    """Steps of `refine_by_region`."""
    return _REGION_PASSES * region_pass(config)


def refine_by_region(
    key: jax.Array, rows: TwoSpaces, estimate: Estimate, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """`refine_annealed` from a map that has few regions right: the best regions decide first, and the others follow.

    Arguments and result as for `refine_annealed`. In every step the rows of the regions that are matched worst have no
    vote: a share ``annealing.left_out`` of all rows at first, none at the end of a pass. The next pass starts again
    from the map of the last one. Directions are trusted from the start.
    """
    steps = jnp.arange(region_steps(rows.num_rows, config)) if steps is None else steps
    num_drawn = config.annealing.rows
    return _anneal(key, rows, estimate, steps, region_pass(config), num_drawn, _trusting(config), by_region=True)


def guided_steps(num_rows: int, config: Config) -> int:
    """Steps of `refine_guided`."""
    return annealing_length(num_rows, config) // 2


def refine_guided(
    key: jax.Array, rows: TwoSpaces, estimate: Estimate, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """`refine_annealed` from a map that is nearly right: half of its steps, and few directions are held back.

    Arguments and result as for `refine_annealed`.
    """
    num_steps = guided_steps(rows.num_rows, config)
    steps = jnp.arange(num_steps) if steps is None else steps
    return _anneal(key, rows, estimate, steps, num_steps, config.annealing.rows, _trusting(config))


def again_steps(num_rows: int, config: Config) -> int:
    """Steps of `refine_annealed_again`: 0 if less than a twentieth of the rows was held out, which a fit can spare."""
    many_held_out = 20 * num_held_out(num_rows, config.held_out_rows) >= num_rows
    return annealing_length(num_rows, config) // 2 if many_held_out else 0


def refine_annealed_again(
    key: jax.Array, rows: TwoSpaces, estimate: Estimate, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """`refine_annealed` once more, in twice as many directions as the search has, on twice as many rows.

    Arguments and result as for `refine_annealed`; half of its steps by default. The map is nearly right by now, so that
    weak directions are trusted from the start.
    """
    num_steps = annealing_length(rows.num_rows, config) // 2
    steps = jnp.arange(num_steps) if steps is None else steps
    subspace = principal_subspace(rows, _AGAIN_TIMES * config.search_dims)
    restricted = Estimate(matrix=subspace.restrict(estimate.matrix), is_map=estimate.is_map)
    num_drawn = _AGAIN_TIMES * config.annealing.rows
    refined = _anneal(key, subspace.project(rows), restricted, steps, num_steps, num_drawn, _trusting(config))
    extended = Estimate(matrix=subspace.extend(refined.estimate.matrix), is_map=False)
    return Refined(estimate=extended, objective=refined.objective)


def settle_neighbors(num_rows: int, config: Config) -> int:
    """Number of nearest rows that `refine_csls` averages: ``(ample_rows / num_rows)^1.5``, at most one row in fifty.

    It is rounded up, and at least ``settling.min_neighbors``.

    The nearest rows are the best partners where rows are plenty. Where they are few, weak directions drown in the noise
    of few pairs, and a map can overfit the very pairs it was matched by. The exponent joins the best number at 3,000
    rows (some 40) with the best number at 26,000 rows (2), on MiniLM and WordLlama.
    """
    wanted = math.ceil((config.settling.ample_rows / num_rows) ** 1.5)
    return max(config.settling.min_neighbors, min(wanted, num_rows // 50))


def settle_power(num_x: int, num_y: int, config: Config) -> float | jax.Array:
    """Power of the correlation that weights a direction while a map is settled: more where rows of both spaces are few.

    With few rows most weak directions are matched by chance, and matches that they decide confirm the chance. Such
    directions still help to find a partner, so that the final map weights them as it does with more rows.
    """
    times = min(max(1.0, (_FEW_ROWS / math.sqrt(num_x * num_y)) ** 1.5), _MAX_SHARPER)
    return times * config.whitening.reliability_power


def _settle(key, rows: TwoSpaces, estimate: Estimate, steps: jax.Array, sample_rows: int, config: Config) -> Refined:
    x, y = rows.x, rows.y
    whitening_x, whitening_y = (fit_whitening(side, config.whitening.power) for side in (x, y))
    orders = order_rows(key, x, y)
    # The weight of a sample in the running average is its share of the data; a sample of all rows replaces the average.
    # The weight is at least a half, because otherwise the average would lag behind a map that still improves. The first
    # sample replaces the start, because a search in fewer directions has no entries in the others.
    least = max(_MIN_SHARE, min(1.0, sample_rows / rows.num_rows))
    power, num_neighbors = settle_power(x.shape[0], y.shape[0], config), settle_neighbors(rows.num_rows, config)

    def step(cross, index):
        share = jnp.where(index == 0, 1.0, least)
        drawn_x, drawn_y = draw_rows(jax.random.fold_in(key, index), (x, y), (sample_rows, sample_rows), orders)
        directions = weigh_directions(cross, whitening_x, whitening_y, power)
        new, objective = _cross_covariance(drawn_x, drawn_y, directions, num_neighbors, rows.seeds, config.pair_weight)
        return ((1 - share) * cross + share * new).astype(cross.dtype), objective

    cross, objective = jax.lax.scan(step, estimate.matrix, steps)
    return Refined(estimate=Estimate(matrix=cross, is_map=False), objective=objective)


def refine_csls(
    key: jax.Array, rows: TwoSpaces, estimate: Estimate, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """Settle a map: match samples of up to ``config.settling.rows`` rows by CSLS in both directions, and average.

    Arguments and result as for `refine_annealed`; uses ``settling``, ``whitening`` and ``pair_weight``.
    """
    steps = jnp.arange(config.settling.steps) if steps is None else steps
    return _settle(key, rows, estimate, steps, config.settling.rows, config)


def refine_whole(
    key: jax.Array, rows: TwoSpaces, estimate: Estimate, *, config: Config, steps: jax.Array | None = None
) -> Refined:
    """As `refine_csls`, on up to ``config.settling.whole_rows`` rows, ``config.settling.whole_steps`` times."""
    steps = jnp.arange(config.settling.whole_steps) if steps is None else steps
    return _settle(key, rows, estimate, steps, config.settling.whole_rows, config)
