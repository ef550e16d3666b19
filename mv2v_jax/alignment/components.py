"""A first estimate from independent components, for spaces whose clusters cannot be matched.

k-means sees where rows are dense and large directions first. Two encoders or two corpora can differ in both and still
share what a row can be about. Independent component analysis of the whitened rows finds such directions: on text
embeddings about half of the axes of one encoder are axes of another one as well. Nothing but their relations tells
which axis is which: how often two of them are large in the same row, and how one of them changes where another is
large. Six such kernels are compared, by soft graph matching.

A single run matches a part of the axes. So there are many runs, with different rows, numbers of axes and contrasts.
Each turns its matched axes into a cross-covariance of the whitened spaces. The runs are summed, weighted by how well
each agrees with the others, and every run is then matched again from the sum of the other runs, a few times.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.config import ComponentsConfig
from mv2v_jax.ops.ica import find_axes, live_columns
from mv2v_jax.ops.linalg import eigh_descending, scale_to_norm
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sampling import draw_rows, order_rows
from mv2v_jax.ops.soft_matching import Kernels, balance, match_confidence, match_softly, standardize

# Number of axes: a multiple of the square root of the number of rows, between these bounds. Fewer rows estimate fewer
# axes, and beyond the bound few axes are shared.
_AXES_PER_ROOT, _MIN_AXES, _MAX_AXES = 1.05, 24, 128
# Fewest rows with which components correct a map that clusters led to. With 8,000 rows the map gets better or stays as
# good; with 3,000 it gets a little worse; with 1,500, which give 40 axes, it is lost.
MIN_GUIDED_ROWS = 5_000
# Runs take different multiples, because the best one differs between data sets and wrong matches differ between runs.
_MULTIPLES = (0.8, 1.0, 1.25)
# Share of the rows that a run sees, and their maximum number.
_ROW_SHARE, _MAX_ROWS = 0.9, 12_000
# Directions with less than this share of the largest variance hold only rounding, and whitening leaves them out.
_MIN_VARIANCE = 1e-6
# Thresholds in standard deviations at which the tails of an axis are measured.
_TAILS = tuple(0.25 * step for step in range(17))
# Strengths of the random part of the first plans, and powers of the part that tails and sorted kernels give.
_NOISE, _POWERS = (0.3, 2.0), (0.5, 1.0, 2.0)
# Confidence of a wrong match: a matched axis counts by what it has above this.
_CONFIDENCE = 0.2
# Sharpness of the plans that the sum of the other runs and a refined map start a run from.
_OTHERS_SHARPNESS, _MAP_SHARPNESS = 2.0, 4.0


@pytree
class Axes:
    """Independent axes of one space, from one run.

    Attributes:
        loadings: ``[d, k]``, covariance of the whitened rows with the coordinates along the axes.
        kernels: `Kernels` between the axes.
        tails: ``[k, t]``, mean excess of the coordinates over thresholds, on both sides.
    """

    loadings: jax.Array
    kernels: Kernels
    tails: jax.Array


@pytree
class ComponentRuns:
    """Runs of `run_components`; every leaf ``[r, ...]``.

    Attributes:
        x: `Axes` of the source.
        y: `Axes` of the target.
        linear: ``[r, k, k]``, how alike the tails and sorted kernels of two axes are.
        live: ``[r, k]``, 1 for the axes of a run.
        cross: ``[r, d_x, d_y]``, cross-covariance of the matched axes in whitened coordinates, of norm 1.
    """

    x: Axes
    y: Axes
    linear: jax.Array
    live: jax.Array
    cross: jax.Array


@pytree
class Whitened:
    """A whitened space.

    Attributes:
        whitener: ``[d, d]``; its columns are whitened principal directions, the largest variance first.
        colourer: ``[d, d]``, its pseudo-inverse, transposed.
    """

    whitener: jax.Array
    colourer: jax.Array


def whiten(rows: jax.Array) -> Whitened:
    """`Whitened` of centred ``rows [n, d]``; directions without variance become zero."""
    variance, directions = eigh_descending(rows.T @ rows / rows.shape[0])
    deviation = jnp.sqrt(jnp.maximum(variance, jnp.finfo(rows.dtype).tiny))
    present = variance > _MIN_VARIANCE * variance[0]
    return Whitened(
        whitener=directions * jnp.where(present, 1 / deviation, 0)[None],
        colourer=directions * jnp.where(present, deviation, 0)[None],
    )


def max_axes(rows: TwoSpaces) -> int:
    """Number of axes of the largest run."""
    wanted = round(_AXES_PER_ROOT * max(_MULTIPLES) * rows.num_rows**0.5)
    return min(max(wanted, _MIN_AXES), _MAX_AXES, rows.x.shape[1], rows.y.shape[1])


def component_numbers(num_rows: int, num_dims: int, config: ComponentsConfig) -> int:
    """Upper bound of the numbers that all runs hold at once: rows of one run, kernels of all runs and starts."""
    num_axes = min(_MAX_AXES, num_dims)
    rows = 6 * min(num_rows, _MAX_ROWS) * num_axes
    return rows + (config.num_runs * 24 + config.num_starts * 16) * num_axes**2


def _correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Correlation of the columns of ``a`` and ``b``, ``[n, k]``: ``[k, k]``; 0 for constant columns."""
    tiny = jnp.finfo(a.dtype).tiny

    def scaled(values):
        values = values - values.mean(axis=0, keepdims=True)
        return values / jnp.sqrt(jnp.maximum((values**2).sum(axis=0, keepdims=True), tiny))

    return scaled(a).T @ scaled(b)


def _square_root(matrix: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * jnp.sqrt(jnp.maximum(values, 1e-3 * values[-1]))[None]) @ vectors.T


def _off_diagonal(kernel: jax.Array, live: jax.Array) -> jax.Array:
    """The relations of a kernel between different live axes, without their mean, of norm 1."""
    between = live[:, None] * live[None] * (1 - jnp.eye(len(live), dtype=kernel.dtype))
    kernel = (kernel - (kernel * between).sum() / jnp.maximum(between.sum(), 1)) * between
    return scale_to_norm(kernel, 1.0)


def co_moment_kernels(coordinates: jax.Array, live: jax.Array, use_roots: jax.Array) -> Kernels:
    """How the coordinates of independent axes depend on each other.

    Args:
        coordinates: ``[n, k]`` of rows along the axes, of unit variance and positive skewness.
        live: ``[k]``, 1 for axes, 0 for dead ones.
        use_roots: bool scalar; if true, every relation is replaced by its signed root, which evens out large ones.
    """
    above, far_above = jnp.maximum(coordinates - 1, 0), jnp.maximum(coordinates - 2, 0)
    exceeds = (coordinates > 1.5).astype(coordinates.dtype)
    count, together = exceeds.sum(axis=0), exceeds.T @ exceeds
    num_rows = coordinates.shape[0]
    # Logarithm of how much more often two axes exceed together than independent ones, with one row added to each count.
    lift = jnp.log((together + 1) * num_rows / (count[:, None] * count[None] + num_rows))
    size = jnp.abs(coordinates)
    symmetric = [_square_root(_correlation(a, a)) for a in (above, far_above, size)] + [lift]
    directed = [_correlation(a, coordinates) for a in (above, far_above)]

    off_diagonal = jax.vmap(lambda kernel: _off_diagonal(kernel, live))
    kernels = off_diagonal(jnp.stack(symmetric + directed))
    kernels = off_diagonal(jnp.where(use_roots, jnp.sign(kernels) * jnp.sqrt(jnp.abs(kernels)), kernels))
    return Kernels(symmetric=kernels[: len(symmetric)], directed=kernels[len(symmetric) :])


def _find_axes(key, rows: jax.Array, whitened: Whitened, kind, num_axes: int, num_steps: int) -> Axes:
    """`Axes` of a sample of ``rows [n, d]``; ``kind`` is the run's live axes ``[k]``, contrast and use of roots."""
    live, use_square, use_roots = kind
    num_rows = rows.shape[0]
    principal = rows @ whitened.whitener[:, :num_axes] * live[None]
    # Long rows would decide alone: all get the same length in whitened coordinates, which then are whitened again.
    length = jnp.linalg.norm(principal, axis=1, keepdims=True)
    principal = principal * jnp.sqrt(live.sum()) / jnp.where(length > 0, length, 1)
    dead = jnp.diag(1 - live)
    variance, directions = jnp.linalg.eigh(principal.T @ principal / num_rows + dead)
    principal = principal @ ((directions / jnp.sqrt(jnp.maximum(variance, _MIN_VARIANCE))[None]) @ directions.T)
    axes = find_axes(key, principal, live.sum().astype(jnp.int32), use_square, num_steps=num_steps)
    coordinates = principal @ axes.T
    deviation = jnp.std(coordinates, axis=0)
    coordinates = coordinates / jnp.where(deviation > 0, deviation, 1)[None]
    skewness = ((coordinates - coordinates.mean(axis=0, keepdims=True)) ** 3).mean(axis=0)
    # An axis has no sign of its own; its heavier tail becomes its positive side.
    coordinates = coordinates * jnp.where(skewness < 0, -1, 1).astype(rows.dtype)[None]

    def excess(threshold):
        return jnp.stack([jnp.maximum(side * coordinates - threshold, 0).mean(axis=0) for side in (1, -1)])

    return Axes(
        loadings=whitened.whitener.T @ (rows.T @ coordinates / num_rows),
        kernels=co_moment_kernels(coordinates, live, use_roots),
        tails=jax.lax.map(excess, jnp.asarray(_TAILS, rows.dtype)).reshape(-1, num_axes).T,
    )


def _unlikeness(a: jax.Array, b: jax.Array) -> jax.Array:
    """Squared distances between the rows of ``a`` and ``b``, ``[k, t]``: ``[k, k]``."""
    return (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T


def _likeness(x: Axes, y: Axes, live: jax.Array) -> jax.Array:
    """How alike two axes are by what needs no matching: their tails, and their sorted relations: ``[k, k]``."""

    def ordered(kernels: Kernels):
        both = [kernels.symmetric, kernels.symmetric, kernels.directed, jnp.swapaxes(kernels.directed, 1, 2)]
        return jnp.sort(jnp.concatenate(both), axis=-1)

    relations = jax.vmap(_unlikeness)(ordered(x.kernels), ordered(y.kernels)).sum(axis=0)
    return standardize(-standardize(_unlikeness(x.tails, y.tails), live) - standardize(relations, live), live)


def _vote(x: Axes, y: Axes, plan: jax.Array) -> jax.Array:
    """The cross-covariance ``[d_x, d_y]`` of matched axes in whitened coordinates, of norm 1."""
    weights = jnp.maximum(match_confidence(x.kernels, y.kernels, plan) - _CONFIDENCE, 0)
    return scale_to_norm(x.loadings * weights[None] @ plan @ y.loadings.T, 1.0)


def run_components(
    key: jax.Array, rows: TwoSpaces, *, config: ComponentsConfig, runs: jax.Array | None = None
) -> ComponentRuns:
    """Find the axes of both spaces and match them, once per run.

    Args:
        key: random key; run ``i`` depends on ``fold_in(key, i)`` alone.
        rows: centred unit rows of both spaces.
        config: a `ComponentsConfig`.
        runs: ``[r]`` numbers of the runs; all by default.
    """
    runs = jnp.arange(config.num_runs) if runs is None else runs
    num_axes, dtype = max_axes(rows), rows.x.dtype
    orders = order_rows(key, rows.x, rows.y)
    spaces = (rows.x, rows.y)
    whitened = [whiten(space) for space in spaces]
    sizes = [min(round(_ROW_SHARE * space.shape[0]), _MAX_ROWS) for space in spaces]
    multiples = jnp.asarray(_MULTIPLES, dtype) * (_AXES_PER_ROOT * rows.num_rows**0.5)

    def run(number):
        draw, match_key, *side_keys = jax.random.split(jax.random.fold_in(key, number), 4)
        cycle = number // len(_MULTIPLES)
        wanted = multiples[number % len(_MULTIPLES)]
        num_live = jnp.clip(jnp.round(wanted).astype(jnp.int32), min(_MIN_AXES, num_axes), num_axes)
        live = live_columns(num_axes, num_live, dtype)
        kind = (live, cycle % 2 == 1, cycle // 2 % 2 == 0)
        drawn = draw_rows(draw, spaces, sizes, orders)
        x, y = (
            _find_axes(side_key, rows, of_side, kind, num_axes, config.ica_steps)
            for side_key, rows, of_side in zip(side_keys, drawn, whitened, strict=True)
        )
        linear = _likeness(x, y, live)
        plan = _match_from_random(match_key, x, y, linear, live, config)
        return ComponentRuns(x=x, y=y, linear=linear, live=live, cross=_vote(x, y, plan))

    return jax.lax.map(run, runs)


def _match_from_random(key, x: Axes, y: Axes, linear, live, config: ComponentsConfig) -> jax.Array:
    """The plan of the best objective from several starts, which mix `_likeness` with noise."""

    def search(power, strength, noise):
        start = balance(linear * power + strength * noise, live)
        return match_softly(x.kernels, y.kernels, linear * config.likeness, start, live, num_steps=config.match_steps)

    choice_key, noise_key = jax.random.split(key)
    number, dtype = config.num_starts, linear.dtype
    # In one row, see `sampling`.
    choices = jax.random.uniform(choice_key, (2 * number,), dtype).reshape(2, number)
    powers = jnp.asarray(_POWERS, dtype)[(choices[0] * len(_POWERS)).astype(jnp.int32)]
    least, most = _NOISE
    # The first start has no noise.
    strengths = (least + (most - least) * choices[1]).at[0].set(0)
    noise = jax.random.gumbel(noise_key, (number * linear.size,), dtype).reshape(number, *linear.shape)
    plans, objectives = jax.vmap(search)(powers, strengths, noise)
    return plans[jnp.argmax(objectives)]


def agree_and_sum(cross: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Agreement of each run with the sum of the others ``[r]``, and the runs' weights ``[r]`` in the next sum."""
    total = cross.sum(axis=0)
    others = total[None] - cross
    length = jnp.sqrt(jnp.maximum((others**2).sum(axis=(1, 2)), jnp.finfo(cross.dtype).tiny))
    agreement = (cross * others).sum(axis=(1, 2)) / length
    return agreement, jnp.maximum(agreement, 0) ** 2


def _match_from_prior(runs: ComponentRuns, priors: jax.Array, sharpness: float, config: ComponentsConfig):
    """Match every run again, from cross-covariances ``[r, d_x, d_y]`` of the whitened spaces."""

    def again(run: ComponentRuns, prior):
        start = balance(sharpness * standardize(run.x.loadings.T @ prior @ run.y.loadings, run.live), run.live)
        linear = run.linear * config.likeness
        plan, _ = match_softly(run.x.kernels, run.y.kernels, linear, start, run.live, num_steps=config.match_steps)
        return _vote(run.x, run.y, plan)

    return dataclasses.replace(runs, cross=jax.vmap(again)(runs, priors))


def vote_again(runs: ComponentRuns, *, config: ComponentsConfig) -> ComponentRuns:
    """Match every run again, from the weighted sum of the other runs."""
    _, weights = agree_and_sum(runs.cross)
    weighted = runs.cross * weights[:, None, None]
    return _match_from_prior(runs, weighted.sum(axis=0)[None] - weighted, _OTHERS_SHARPNESS, config)


def vote_from(runs: ComponentRuns, rows: TwoSpaces, estimate: Estimate, *, config: ComponentsConfig) -> ComponentRuns:
    """Match every run again, from an estimate of the map, whose matrix is a cross-covariance of the rows."""
    prior = whiten(rows.x).whitener.T @ estimate.matrix @ whiten(rows.y).whitener
    priors = jnp.broadcast_to(prior[None], runs.cross.shape)
    return _match_from_prior(runs, priors, _MAP_SHARPNESS, config)


def estimate_from_runs(runs: ComponentRuns, rows: TwoSpaces) -> tuple[Estimate, jax.Array]:
    """The weighted sum of all runs as an `Estimate` between the rows' coordinates, and the runs' agreement ``[r]``."""
    agreement, weights = agree_and_sum(runs.cross)
    total = jnp.einsum("r,rab->ab", weights, runs.cross)
    matrix = whiten(rows.x).colourer @ total @ whiten(rows.y).colourer.T
    return Estimate(matrix=scale_to_norm(matrix, min(matrix.shape) ** 0.5), is_map=False), agreement
