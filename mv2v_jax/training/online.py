"""A map that follows an encoder while it is trained: one small update a training step, in the manner of optax.

``online_init`` once, ``online_update`` with every batch, ``online_map`` where a map is wanted. The state is a pytree of
arrays of fixed shapes: it goes through `jax.lax.scan` and into any checkpointer. No pair is needed: a batch of the
source is matched by CSLS, both ways, with a queue of the latest rows of the target, much as `anneal.refine_csls` does
it.

The cross-covariance of the matches and the means are exponential averages, and the rotation takes a step every few
batches towards the polar factor of the average (`procrustes.polar_step`): products alone, and directions of which the
matches say little stay as they were. Both spaces are partly whitened for comparing, as in `directions`, but on the
target's side, where whitening both is ``W C_y^-a`` with twice the power as long as the map is right: the target
stands still and is decomposed once.

Nothing is differentiated: gradients stop at the batches. `losses` is what one differentiates.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.alignment.seeds import add_seeds, pair_seeds
from mv2v_jax.alignment.whitening import fit_whitening
from mv2v_jax.config import _static, _traced, check_counts
from mv2v_jax.data.checks import check_pairs
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.csls import NUM_LOCAL
from mv2v_jax.ops.linalg import polar, polar_step, scale_to_norm
from mv2v_jax.ops.masked import center_unit, mean_present, present_rows, unit_rows, working_dtype
from mv2v_jax.ops.pytree import pytree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Choices of `online_init` and `online_update`; integers are static, floats traced."""

    queue_rows: int = _static(2_048, "latest rows of the target that a batch is matched with")
    num_neighbors: int = _static(
        8, "rows that make a pseudo-partner, by their weights; the others count next to nothing"
    )
    rotate_every: int = _static(4, "updates from one step of the rotation to the next, the costliest part of an update")
    decay: float = _traced(
        0.98, "share of the running averages kept by an update; 1 / (1 - decay) updates are remembered"
    )
    whitening_power: float = _traced(0.5, "power of the target's variance that both whitenings together come to")
    pair_weight: float = _traced(1.0, "times what known pairs weigh by themselves")


@pytree
class OnlineState:
    """What is carried from update to update.

    Attributes:
        W: ``[d_x, d_y]`` semi-orthogonal, the rotation.
        cross: ``[d_x, d_y]``, running cross-covariance of the matches, each batch's scaled to length ``sqrt(r)``, with
            ``r`` the smaller dimension.
        mean_x, mean_y: ``[d_x]`` and ``[d_y]``, running means of raw rows.
        scale_x, scale_y: scalars, running mean lengths of centred rows.
        whitener: ``[d_y, d_y]``, applied to both sides before rows are compared; fixed.
        queue: ``[q, d_y]`` centred unit rows of the target; zero where none came yet.
        compared: ``[q, d_y]``, the same, whitened and of unit length again.
        head: int32 scalar, the place in the queue that is written next.
        count: int32 scalar, updates so far.
    """

    W: jax.Array
    cross: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    scale_x: jax.Array
    scale_y: jax.Array
    whitener: jax.Array
    queue: jax.Array
    compared: jax.Array
    head: jax.Array
    count: jax.Array


@pytree
class OnlineInfo:
    """What one update saw. Scalars, no label in them.

    Attributes:
        objective: mean CSLS of the rows with their best matches, both directions; see `csls`.
        agreement: cosine of the batch's cross-covariance with the running one before it: near 0 where a batch says
            nothing of what was known, which is a map that is lost or an encoder that jumped.
        residual: ``||W^T C - C^T W|| / ||C||`` of the new map and running cross-covariance: 0 where the map is its
            polar factor, larger where it is still on its way.
        moved: ``||W_new - W_old|| / sqrt(r)``; 0 where the rotation took no step.
    """

    objective: jax.Array
    agreement: jax.Array
    residual: jax.Array
    moved: jax.Array


def _enqueue(queue: jax.Array, rows: jax.Array, head: jax.Array) -> jax.Array:
    place = (head + jnp.arange(rows.shape[0], dtype=jnp.int32)) % queue.shape[0]
    return queue.at[place].set(rows, unique_indices=True)


def _compared(rows: jax.Array, whitener: jax.Array) -> jax.Array:
    return unit_rows(rows @ whitener)


@pytree
class _Match:
    plan: jax.Array
    objective: jax.Array


def _match(x: jax.Array, y: jax.Array, num_neighbors: int) -> _Match:
    """Match unit rows ``x [b, d]`` and ``y [q, d]`` by CSLS, both ways: what each pair counts, ``[b, q]``, 1 each way.

    `csls.match_csls` for one batch: the similarities are there whole, and products with them are cheaper than gathering
    partners by their index. For the same reason partners are weighed instead of found, which sorts nothing.
    """
    present_x, present_y = present_rows(x), present_rows(y)
    both = present_x[:, None] & present_y[None]
    # Less than any inner product where either row has no length: nobody's partner, and in nobody's neighbourhood.
    similarity = jnp.where(both, x @ y.T, -2)
    csls = 2 * similarity - _row_density(similarity)[:, None] - _column_density(similarity)[None]
    # The least that it can be, so that the best of a row is one that is there.
    csls = jnp.where(both, csls, -4)
    mean = mean_present(csls.ravel(), both.ravel())
    spread = jnp.sqrt(mean_present((csls - mean).ravel() ** 2, both.ravel()))
    plan = jnp.zeros_like(csls)
    objective = jnp.zeros((), csls.dtype)
    tiny = jnp.finfo(csls.dtype).tiny
    for axis, present, others in ((1, present_x, present_y), (0, present_y, present_x)):
        # Of n normal numbers, weights exp(k z) are worth those of n exp(-k^2) equal ones.
        ratio = others.sum().astype(csls.dtype) / num_neighbors
        sharpness = jnp.sqrt(jnp.log(jnp.maximum(ratio, 1)))
        sharpness = jnp.where(spread > 0, sharpness / jnp.where(spread > 0, spread, 1), 0)
        best = csls.max(axis=axis, keepdims=True)
        weights = jnp.where(both, jnp.exp(sharpness * (csls - best)), 0)
        num_present = jnp.maximum(present.sum(), 1).astype(csls.dtype)
        plan += weights / (jnp.maximum(weights.sum(axis=axis, keepdims=True), tiny) * num_present)
        objective += mean_present(best.squeeze(axis), present) / 2
    return _Match(plan=plan, objective=objective)


def _column_density(similarity: jax.Array) -> jax.Array:
    """Mean of the largest similarities of each column of ``[b, q]``: of the largest of ten parts, as `nearness`."""
    num_shards = min(NUM_LOCAL, similarity.shape[0])
    part = similarity.shape[0] // num_shards
    return similarity[: num_shards * part].reshape(num_shards, part, -1).max(axis=1).mean(axis=0)


def _row_density(similarity: jax.Array) -> jax.Array:
    """The same of each row; its parts are every tenth column, so that neighbours in memory are of different ones."""
    num_shards = min(NUM_LOCAL, similarity.shape[1])
    part = similarity.shape[1] // num_shards
    return similarity[:, : num_shards * part].reshape(-1, part, num_shards).max(axis=1).mean(axis=1)


def _checked(config: OnlineConfig | None) -> OnlineConfig:
    config = OnlineConfig() if config is None else config
    check_counts(config, {"queue_rows": 1, "num_neighbors": 1, "rotate_every": 1})
    return config


def online_init(linear_map: LinearMap, y: jax.Array, config: OnlineConfig | None = None) -> OnlineState:
    """The state that starts from a map.

    Args:
        linear_map: from `align`, `load_map` or a guess; its polar factor is the first rotation.
        y: ``[m, d_y]`` raw rows of the target, any floating dtype: all of them say how the target spreads, the last
            ``config.queue_rows`` fill the queue. Some thousands are best; with fewer, the queue fills as batches come.
        config: a `OnlineConfig`; the defaults if none.

    Raises:
        ValueError: rows of the wrong shape, or a count below 1.
    """
    config = _checked(config)
    d_x, d_y = linear_map.W.shape
    if y.ndim != 2 or y.shape[1] != d_y or not y.shape[0]:
        raise ValueError(f"y must be [m, {d_y}] for this map, found shape {list(y.shape)}")
    dtype = working_dtype(linear_map.W.dtype)
    # Copies, so that a donated state takes nothing from the map.
    given = jax.tree.map(lambda leaf: jnp.array(leaf, dtype), linear_map)
    rows = center_unit(jnp.asarray(y), given.mean_y)
    # Half of the power on each side: rows of both are whitened before they are compared.
    whitener = fit_whitening(rows, jnp.asarray(config.whitening_power, dtype) / 2).whitener
    latest = rows[-config.queue_rows :]
    queue = jnp.zeros((config.queue_rows, d_y), dtype).at[: latest.shape[0]].set(latest)
    W = polar(given.W)
    return OnlineState(
        W=W,
        cross=W * (min(d_x, d_y) ** 0.5 / jnp.linalg.norm(W)),
        mean_x=given.mean_x,
        mean_y=given.mean_y,
        scale_x=given.scale_x,
        scale_y=given.scale_y,
        whitener=whitener,
        queue=queue,
        compared=_compared(queue, whitener),
        head=jnp.asarray(latest.shape[0] % config.queue_rows, jnp.int32),
        count=jnp.zeros((), jnp.int32),
    )


def _track(batch: jax.Array, mean: jax.Array, scale: jax.Array, decay: jax.Array, average):
    """Running mean and scale after a raw ``batch [b, d]``, its centred unit rows; rows without length take no part."""
    present = present_rows(batch)
    share = jnp.maximum(present.mean(dtype=mean.dtype), jnp.finfo(mean.dtype).tiny)
    # Where a batch has no row at all there is nothing to average, and the old values stay.
    decay = jnp.where(present.any(), decay, 1)
    new_mean = decay * mean + (1 - decay) * average(batch.mean(axis=0) / share)
    lengths = jnp.linalg.norm(batch - new_mean[None], axis=1)
    new_scale = decay * scale + (1 - decay) * average(mean_present(lengths, present))
    return new_mean, new_scale, center_unit(batch, new_mean)


def online_update(
    state: OnlineState,
    x: jax.Array,
    y: jax.Array,
    config: OnlineConfig | None = None,
    *,
    pairs: tuple[jax.Array, jax.Array] | None = None,
    axis_name: str | None = None,
) -> tuple[OnlineState, OnlineInfo]:
    """One update by a batch of each space, of different texts.

    Args:
        state: from `online_init` or the update before.
        x: ``[b, d_x]`` raw rows of the source as the encoder gives them now, any floating dtype.
        y: ``[c, d_y]`` raw rows of the target; none (``c = 0``) where the queue says enough.
        config: a `OnlineConfig`; ``queue_rows`` is that of the state.
        pairs: known pairs, if any: raw rows ``[p, d_x]`` as the encoder gives them now and their partners
            ``[p, d_y]``. They join the batch's pseudo-pairs and count by how far the rotation so far mistakes them
            (`known.worth_in_pairs`). With an axis name, every device has the same.
        axis_name: inside `jax.pmap`, `jax.shard_map` or a `jax.vmap` with an axis name, each device with its own rows:
            averages go over all of them, every queue gets all rows, and the states stay the same everywhere.

    Returns:
        The new `OnlineState` and a `OnlineInfo`; nothing is differentiated.

    Raises:
        ValueError: a count below 1, or pairs that are none.
        AssertionError: rows of the wrong shape, or no row of the source.
    """
    config = _checked(config)
    state, x, y, pairs = jax.lax.stop_gradient((state, x, y, pairs))
    dtype, q = state.W.dtype, state.queue.shape[0]
    chex.assert_rank((x, y), 2)
    chex.assert_axis_dimension_gt(x, 0, 0)
    chex.assert_axis_dimension(x, 1, state.W.shape[0])
    chex.assert_axis_dimension(y, 1, state.W.shape[1])
    known_x, known_y = check_pairs(pairs, x, y)
    x, y = x.astype(dtype), y.astype(dtype)
    decay = jnp.asarray(config.decay, dtype)

    def average(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    if axis_name is not None:
        y = jax.lax.all_gather(y, axis_name, tiled=True)
    mean_x, scale_x, x = _track(x, state.mean_x, state.scale_x, decay, average)
    mean_y, scale_y, queue, compared, head = state.mean_y, state.scale_y, state.queue, state.compared, state.head
    if y.shape[0]:
        # All devices have the same rows of the target by now.
        mean_y, scale_y, y = _track(y, mean_y, scale_y, decay, lambda tree: tree)
        y = y[-q:]
        queue = _enqueue(queue, y, head)
        compared = _enqueue(compared, _compared(y, state.whitener), head)
        head = (head + y.shape[0]) % q

    match = _match(unit_rows(x @ state.W @ state.whitener), compared, config.num_neighbors)
    batch = average(x.T @ (match.plan @ queue))
    if known_x is not None:
        known = pair_seeds(center_unit(known_x.astype(dtype), mean_x), center_unit(known_y.astype(dtype), mean_y))
        assert known is not None
        # The plan's entries sum to 1 in each of its two directions.
        batch = add_seeds(batch, 2, known, state.W, config.pair_weight)
    length = jnp.linalg.norm(batch)
    batch = batch * (min(batch.shape) ** 0.5 / jnp.maximum(length, jnp.finfo(dtype).tiny))
    agreement = jnp.sum(batch * state.cross) / jnp.maximum(
        min(batch.shape) ** 0.5 * jnp.linalg.norm(state.cross), jnp.finfo(dtype).tiny
    )
    cross = jnp.where(length > 0, decay * state.cross + (1 - decay) * batch, state.cross)
    count = state.count + 1
    # Inside `jax.shard_map` both branches must vary over the devices alike, which a sum with the cross-covariance does.
    W = jax.lax.cond(count % config.rotate_every == 0, polar_step, lambda W, cross: W + 0 * cross, state.W, cross)
    inner = W.T @ cross if W.shape[0] >= W.shape[1] else W @ cross.T
    info = OnlineInfo(
        objective=average(match.objective),
        agreement=agreement,
        residual=jnp.linalg.norm(inner - inner.T) / jnp.maximum(jnp.linalg.norm(cross), jnp.finfo(dtype).tiny),
        moved=jnp.linalg.norm(W - state.W) / min(W.shape) ** 0.5,
    )
    return (
        OnlineState(
            W=W,
            cross=cross,
            mean_x=mean_x,
            mean_y=mean_y,
            scale_x=scale_x,
            scale_y=scale_y,
            whitener=state.whitener,
            queue=queue,
            compared=compared,
            head=head,
            count=count,
        ),
        info,
    )


def online_map(state: OnlineState, *, whitened: bool = True) -> LinearMap:
    """The map of a state, for `apply`, `metrics.evaluate` and `losses.alignment_loss`.

    Args:
        state: of any update.
        whitened: false for the rotation itself, which retrieves worse and lies nearer.
    """
    W = state.W
    if whitened:
        W = W @ state.whitener @ state.whitener
        W = scale_to_norm(W, min(W.shape) ** 0.5)
    return LinearMap(W=W, mean_x=state.mean_x, mean_y=state.mean_y, scale_x=state.scale_x, scale_y=state.scale_y)
