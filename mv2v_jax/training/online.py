"""A map that follows an encoder during training: one cheap update per training step, in the style of optax.

Call `online_init` once, `online_update` with every batch, and `online_map` where you need a map. The state is a pytree
of arrays with fixed shapes, so it works with `jax.lax.scan` and with any checkpointer. No known pairs are needed: an
update matches a batch of the source by CSLS, in both directions, with a queue of the latest rows of the target.

The cross-covariance of the matches and the means of both spaces are exponential moving averages. Every few updates the
rotation takes a step towards the polar factor of the averaged cross-covariance (`polar_step`). A step consists of
matrix products; directions for which the matches give no evidence stay unchanged.

Rows are partly whitened before they are compared, as in `alignment.whitening`, but both spaces with the whitener of the
target. If the map is right, this equals whitening each space with its own whitener. The target does not change, so its
covariance is decomposed only once.

Updates are not differentiated: gradients stop at the batches. To train an encoder through a map, use `alignment_loss`.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.seeds import add_seeds, pair_seeds
from mv2v_jax.alignment.whitening import fit_whitening
from mv2v_jax.data.checks import check_columns, check_map, check_pairs
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import Centering, LinearMap
from mv2v_jax.ops.csls import dense_csls
from mv2v_jax.ops.given_arrays import as_matrix
from mv2v_jax.ops.linalg import polar, polar_step, scale_to_norm
from mv2v_jax.ops.masked import (
    center_unit,
    mean_present,
    median_length,
    present_rows,
    row_lengths,
    shorten_rows,
    unit_rows,
    working_dtype,
)
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.settings import Settings, as_config, count, number


@pytree
class OnlineConfig(Settings):
    """Settings of `online_init` and `online_update`. Integers are static, floats are traced."""

    queue_rows: int = count(2_048, "Number of latest rows of the target that a batch is matched with.", low=1)
    num_neighbors: int = count(
        8, "Effective number of rows averaged into a pseudo-partner; other rows have a weight near 0.", low=1
    )
    rotate_every: int = count(4, "Updates per step of the rotation, the most expensive part of an update.", low=1)
    decay: float = number(
        0.98, "Share of the moving averages kept by an update; they average about 1 / (1 - decay) updates.", high=1.0
    )
    whitening_power: float = number(
        0.5, "Sum of the two whitening powers, of the source and of the target; 0 for no whitening.", high=1.0
    )
    pair_weight: float = number(1.0, "Factor of the weight of known pairs; 0 ignores them.", high=1e9)


@pytree
class OnlineState:
    """The state carried from update to update. Floats have the dtype of the first map, at least float32.

    Attributes:
        W: ``[d_x, d_y]`` semi-orthogonal, the rotation.
        cross: ``[d_x, d_y]``, moving average of the batches' cross-covariances, each scaled to the Frobenius norm
            ``sqrt(min(d_x, d_y))``.
        source: moving average of the `Centering` of the source's raw rows.
        target: moving average of the `Centering` of the target's raw rows.
        whitener: ``[d_y, d_y]``, applied to mapped rows and to rows of the target before they are compared; constant.
        queue: ``[q, d_y]`` centred unit rows of the target; zero rows until the queue is full.
        compared: ``[q, d_y]``, the rows of ``queue``, whitened and scaled to unit length.
        head: int32 scalar, the position in the queue that is written next.
        count: int32 scalar, number of updates.
    """

    W: jax.Array
    cross: jax.Array
    source: Centering
    target: Centering
    whitener: jax.Array
    queue: jax.Array
    compared: jax.Array
    head: jax.Array
    count: jax.Array


@pytree
class OnlineInfo:
    """Diagnostics of one update, without known pairs. Scalars.

    Attributes:
        objective: mean CSLS of the rows with their best matches, over both directions.
        agreement: cosine between the cross-covariance of the batch and the average of the batches before. It is near 0
            if the map is lost or the encoder has changed abruptly.
        residual: ``||W^T C - C^T W|| / ||C||``, with ``C`` the averaged cross-covariance: 0 if the rotation ``W`` is
            the polar factor of ``C``.
        moved: ``||W_new - W_old|| / sqrt(min(d_x, d_y))``; 0 if the rotation took no step.
    """

    objective: jax.Array
    agreement: jax.Array
    residual: jax.Array
    moved: jax.Array


def _enqueue(queue: jax.Array, rows: jax.Array, head: jax.Array) -> jax.Array:
    position = (head + jnp.arange(rows.shape[0], dtype=jnp.int32)) % queue.shape[0]
    return queue.at[position].set(rows, unique_indices=True)


@pytree
class _Match:
    """A soft matching of a batch with the queue.

    Attributes:
        plan: ``[b, q]`` weights of all pairs; those of each direction sum to 1.
        objective: scalar, mean CSLS of the rows with their best matches, over both directions.
    """

    plan: jax.Array
    objective: jax.Array


def _match(x: jax.Array, y: jax.Array, num_neighbors: int) -> _Match:
    """Match unit rows ``x [b, d]`` and ``y [q, d]`` by CSLS in both directions.

    All pairs get a weight, because products with a weight matrix cost less than gathering partners by index, and
    because weights need no sort.
    """
    present_x, present_y = present_rows(x), present_rows(y)
    both = present_x[:, None] & present_y[None]
    csls = dense_csls(x, y, exact=False)
    mean = mean_present(csls.ravel(), both.ravel())
    deviation = jnp.sqrt(mean_present((csls - mean).ravel() ** 2, both.ravel()))
    plan = jnp.zeros_like(csls)
    objective = jnp.zeros((), csls.dtype)
    tiny = jnp.finfo(csls.dtype).tiny
    for axis, present, others in ((1, present_x, present_y), (0, present_y, present_x)):
        # For n normal variates z, the effective number of rows of the weights exp(k z) is n exp(-k^2).
        ratio = others.sum().astype(csls.dtype) / num_neighbors
        sharpness = jnp.sqrt(jnp.log(jnp.maximum(ratio, 1)))
        sharpness = jnp.where(deviation > 0, sharpness / jnp.where(deviation > 0, deviation, 1), 0)
        best = csls.max(axis=axis, keepdims=True)
        weights = jnp.where(both, jnp.exp(sharpness * (csls - best)), 0)
        num_present = jnp.maximum(present.sum(), 1).astype(csls.dtype)
        plan += weights / (jnp.maximum(weights.sum(axis=axis, keepdims=True), tiny) * num_present)
        objective += mean_present(best.squeeze(axis), present) / 2
    return _Match(plan=plan, objective=objective)


def online_init(linear_map: LinearMap, y: jax.Array, config: OnlineConfig | None = None) -> OnlineState:
    """The state to start from, given a map.

    Args:
        linear_map: from `align` or `load_map`, or a guess; the first rotation is its polar factor.
        y: ``[m, d_y]`` raw rows of the target, any floating dtype. All rows are used to estimate the whitener, and the
            last ``config.queue_rows`` fill the queue. A few thousand rows are enough. With fewer rows than the queue
            has, later batches fill it.
        config: an `OnlineConfig`; the defaults if ``None``.

    Returns:
        `OnlineState`, in the dtype of the map, at least float32.

    Raises:
        InputError: wrong shape or dtype, or a setting that is out of range.
    """
    config = as_config(config, OnlineConfig)
    y = as_matrix(y, "y")
    d_x, d_y = check_map(linear_map)
    check_columns(y, "y", d_y, "for this map", other=d_x)
    dtype = working_dtype(linear_map.W.dtype)
    # Copies, so that the map stays valid if the state is donated.
    given = jax.tree.map(lambda leaf: jnp.array(leaf, dtype), linear_map)
    rows = center_unit(y, given.target.mean)
    # Half of the power per side, because mapped rows and rows of the target are both whitened.
    whitener = fit_whitening(rows, jnp.asarray(config.whitening_power, dtype) / 2).whitener
    latest = rows[-config.queue_rows :]
    queue = jnp.zeros((config.queue_rows, d_y), dtype).at[: latest.shape[0]].set(latest)
    W = polar(given.W)
    return OnlineState(
        W=W,
        cross=W * (min(d_x, d_y) ** 0.5 / jnp.linalg.norm(W)),
        source=given.source,
        target=given.target,
        whitener=whitener,
        queue=queue,
        compared=unit_rows(queue @ whitener),
        head=jnp.asarray(latest.shape[0] % config.queue_rows, jnp.int32),
        count=jnp.zeros((), jnp.int32),
    )


def _track(batch: jax.Array, before: Centering, decay: jax.Array, average) -> tuple[Centering, jax.Array]:
    """Update a `Centering` with raw rows ``batch [b, d]``, and return it with their centred unit rows.

    Zero rows do not count. ``average`` averages a value over the devices.
    """
    present, mean = present_rows(batch), before.mean
    share = jnp.maximum(present.mean(dtype=mean.dtype), jnp.finfo(mean.dtype).tiny)
    # A batch of zero rows only leaves the old values unchanged.
    decay = jnp.where(present.any(), decay, 1)
    new_mean = decay * mean + (1 - decay) * average(batch.mean(axis=0) / share)
    lengths = jnp.linalg.norm(batch - new_mean[None], axis=1)
    new_scale = decay * before.scale + (1 - decay) * average(mean_present(lengths, present))
    return Centering(mean=new_mean, scale=new_scale), center_unit(batch, new_mean)


def online_update(
    state: OnlineState,
    x: jax.Array,
    y: jax.Array,
    config: OnlineConfig | None = None,
    *,
    pairs: tuple[jax.Array, jax.Array] | None = None,
    axis_name: str | None = None,
) -> tuple[OnlineState, OnlineInfo]:
    """One update with a batch of each space, of different texts.

    A pure function for `jax.jit`, `jax.lax.scan` and `jax.vmap`; it stops gradients.

    Args:
        state: from `online_init` or the previous update.
        x: ``[b, d_x]`` raw rows of the source, from the current encoder; any floating dtype.
        y: ``[c, d_y]`` raw rows of the target. ``c`` may be 0: the batch is then matched with the queue as it is.
        config: an `OnlineConfig`; the defaults if ``None``. The length of the queue is that of the state.
        pairs: known pairs, if any: raw rows ``[p, d_x]`` from the current encoder and their partners ``[p, d_y]``. They
            join the pseudo-pairs of the batch. Their weight grows with their number and with the errors that the
            current rotation makes on them (`worth_in_pairs`). With ``axis_name``, pass the same pairs on every device.
        axis_name: name of an axis of `jax.shard_map`, `jax.pmap` or `jax.vmap` over which the rows are split. Averages
            are over all devices, every queue gets the rows of the target of all devices, and all states stay equal.

    Returns:
        The new `OnlineState` and an `OnlineInfo`.

    Raises:
        InputError: wrong class, shape or dtype, ``x`` and ``y`` swapped, or a setting that is out of range.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from mv2v_jax import Centering, LinearMap
        >>> centering = Centering(mean=jnp.zeros(3), scale=jnp.ones(()))
        >>> start = LinearMap(W=jnp.eye(3), source=centering, target=centering)
        >>> rows = jax.random.normal(jax.random.key(0), (48, 3))
        >>> state = online_init(start, rows[:16])
        >>> state, info = jax.jit(online_update)(state, rows[16:32], rows[32:])
        >>> int(state.count), online_map(state).W.shape
        (1, (3, 3))
    """
    config = as_config(config, OnlineConfig)
    if not isinstance(state, OnlineState):
        raise InputError(f"state must be an OnlineState, such as online_init returns, found {type(state).__name__}")
    x, y = as_matrix(x, "x"), as_matrix(y, "y")
    d_x, d_y = state.W.shape
    check_columns(x, "x", d_x, "for this state", other=d_y)
    check_columns(y, "y", d_y, "for this state", other=d_x, min_rows=0)
    pairs = check_pairs(pairs, x, y)
    state, x, y, (seeds_x, seeds_y) = jax.lax.stop_gradient((state, x, y, pairs))
    dtype, q = state.W.dtype, state.queue.shape[0]
    x, y = x.astype(dtype), y.astype(dtype)
    decay = jnp.asarray(config.decay, dtype)

    def average(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def gather(rows):
        return rows if axis_name is None else jax.lax.all_gather(rows, axis_name, tiled=True)

    y = gather(y)
    # One row that is far too long would move the mean for many updates.
    x = shorten_rows(x, median_length(gather(row_lengths(x))))
    source, x = _track(x, state.source, decay, average)
    target, queue, compared, head = state.target, state.queue, state.compared, state.head
    if y.shape[0]:
        # All devices have the same rows of the target here, so there is nothing to average over devices.
        y = shorten_rows(y, median_length(row_lengths(y)))
        target, y = _track(y, target, decay, lambda tree: tree)
        y = y[-q:]
        queue = _enqueue(queue, y, head)
        compared = _enqueue(compared, unit_rows(y @ state.whitener), head)
        head = (head + y.shape[0]) % q

    match = _match(unit_rows(x @ state.W @ state.whitener), compared, config.num_neighbors)
    batch = average(x.T @ (match.plan @ queue))
    if seeds_x is not None:
        seeds = pair_seeds(
            center_unit(seeds_x.astype(dtype), source.mean), center_unit(seeds_y.astype(dtype), target.mean)
        )
        assert seeds is not None
        # The weights of the plan sum to 2: 1 per direction.
        batch = add_seeds(batch, 2, seeds, state.W, config.pair_weight)
    length = jnp.linalg.norm(batch)
    batch = batch * (min(batch.shape) ** 0.5 / jnp.maximum(length, jnp.finfo(dtype).tiny))
    agreement = jnp.sum(batch * state.cross) / jnp.maximum(
        min(batch.shape) ** 0.5 * jnp.linalg.norm(state.cross), jnp.finfo(dtype).tiny
    )
    cross = jnp.where(length > 0, decay * state.cross + (1 - decay) * batch, state.cross)
    num_updates = state.count + 1
    # `jax.shard_map` requires that both branches vary over the same axes; adding the cross-covariance ensures it.
    W = jax.lax.cond(num_updates % config.rotate_every == 0, polar_step, lambda W, cross: W + 0 * cross, state.W, cross)
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
            source=source,
            target=target,
            whitener=state.whitener,
            queue=queue,
            compared=compared,
            head=head,
            count=num_updates,
        ),
        info,
    )


def online_map(state: OnlineState, *, whitened: bool = True) -> LinearMap:
    """The map of a state, for `apply`, `evaluate` and `alignment_loss`.

    Args:
        state: an `OnlineState`.
        whitened: whether the map whitens, as `align` does by default, for better retrieval. ``False`` returns the
            rotation, whose mapped rows are closer to their partners.

    Returns:
        `LinearMap` in the dtype of the state.
    """
    W = state.W
    if whitened:
        W = W @ state.whitener @ state.whitener
        W = scale_to_norm(W, min(W.shape) ** 0.5)
    return LinearMap(W=W, source=state.source, target=state.target)
