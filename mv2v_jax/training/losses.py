"""Losses without known pairs, to add to the loss of an encoder that is being trained.

``loss = task_loss + 0.1 * alignment_loss(linear_map, x, y)``, where ``x`` and ``y`` are a batch of raw rows of each
space, of different texts. `alignment_loss` is a weighted sum of four terms, and each is a function of its own:

- `csls_loss` is small if mapped rows have near partners.
- `sinkhorn_divergence` is small if the mapped rows are distributed like the rows of the target. vec2vec
  (arXiv 2505.12540) trains a discriminator for this.
- `cycle_loss` is small if mapping a row to the target and back returns the row.
- `preservation_loss` is small if the map keeps the inner products within a batch (the vector space preservation of
  vec2vec).

All terms are differentiable in the rows and in the map. The choice of partners depends on the rows, so it has a
gradient, too; this gradient is noise while most partners are wrong. With ``stop_gradient``, the default of
`alignment_loss`, the choice of partners is constant and the gradient flows through the partners alone, as in EM or ICP.

All losses compute arrays of all pairs of rows of a batch, ``[b, c]``. Half precision is computed in float32. Zero rows
do not count, so batches can be padded with them.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.data.checks import check_columns, check_map_rows, check_paired
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.csls import dense_csls
from mv2v_jax.ops.given_arrays import as_matrix
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import center_unit, present_rows, unit_rows
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sinkhorn import row_shares, sinkhorn_divergence, to_working
from mv2v_jax.settings import Settings, as_config, count, number, switch


@pytree
class LossConfig(Settings):
    """Settings of `alignment_loss`. Integers and booleans are static, floats are traced."""

    stop_gradient: bool = switch(True, "Keep the choice of partners constant: no gradient flows through it.")
    sinkhorn_steps: int = count(10, "Number of Sinkhorn iterations.")
    temperature: float = number(
        0.05, "Temperature of the soft partners: a CSLS higher by this much multiplies the weight of a row by e."
    )
    epsilon: float = number(0.05, "Entropy of the Sinkhorn divergence, in units of half a squared distance.")
    csls: float = number(1.0, "Weight of csls_loss.")
    sinkhorn: float = number(1.0, "Weight of sinkhorn_divergence.")
    cycle: float = number(1.0, "Weight of cycle_loss.")
    preservation: float = number(1.0, "Weight of preservation_loss.")


@pytree
class AlignmentTerms:
    """The terms of `alignment_loss` before weighting. Scalars; the minimum of each is 0, except for ``csls``."""

    csls: jax.Array
    sinkhorn: jax.Array
    cycle: jax.Array
    preservation: jax.Array


def _same_space(x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """Check that unit rows ``x [b, d]`` and ``y [c, d]`` can be compared, and return them in their working dtype."""
    x, y = as_matrix(x, "x", min_rows=1), as_matrix(y, "y")
    check_columns(y, "y", x.shape[1], "like x")
    return to_working(x, y)


def _softmax(scores: jax.Array, others: jax.Array, temperature) -> jax.Array:
    return jax.nn.softmax(
        jnp.where(present_rows(others)[None], scores / temperature, jnp.finfo(scores.dtype).min), axis=1
    )


def soft_match(
    x: jax.Array, y: jax.Array, *, temperature: float | jax.Array = 0.05, stop_gradient: bool = False
) -> jax.Array:
    """Soft partners: for each row of ``x`` a distribution over the rows of ``y``, by CSLS.

    Args:
        x: ``[b, d]`` unit rows, such as mapped rows; any floating dtype.
        y: ``[c, d]`` unit rows of the same space.
        temperature: a CSLS higher by this much multiplies the weight of a row by e. Towards 0, only the best row of
            ``y`` has a weight.
        stop_gradient: whether to return a constant, without a gradient.

    Returns:
        ``[b, c]``, float32 or float64. Each row sums to 1; zero rows of ``y`` have weight 0.

    Raises:
        InputError: wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> soft_match(jnp.eye(2), jnp.eye(2)).round(3).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    x, y = _same_space(x, y)
    weights = _softmax(dense_csls(x, y), y, temperature)
    return jax.lax.stop_gradient(weights) if stop_gradient else weights


def soft_procrustes(
    x: jax.Array,
    y: jax.Array,
    W: jax.Array,
    *,
    temperature: float | jax.Array = 0.05,
    stop_gradient: bool = False,
) -> jax.Array:
    """One Procrustes step on soft partners: match rows under ``W`` in both directions, and fit a rotation to them.

    The result is differentiable in all three arrays.

    Args:
        x: ``[b, d_x]`` centred unit rows of the source, any floating dtype.
        y: ``[c, d_y]`` centred unit rows of the target.
        W: ``[d_x, d_y]``, the map by which rows are matched.
        temperature: see `soft_match`.
        stop_gradient: whether the soft partners are constant. The matched rows still have a gradient.

    Returns:
        ``[d_x, d_y]`` semi-orthogonal, float32 or float64.

    Raises:
        InputError: wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> bool(jnp.allclose(soft_procrustes(jnp.eye(3), jnp.eye(3), jnp.eye(3)), jnp.eye(3), atol=1e-5))
        True
    """
    x, y, W = as_matrix(x, "x"), as_matrix(y, "y"), as_matrix(W, "W", min_rows=1)
    check_columns(x, "x", W.shape[0], "for this W", other=W.shape[1])
    check_columns(y, "y", W.shape[1], "for this W", other=W.shape[0])
    (x, y, W) = to_working(x, y, W)
    mapped = unit_rows(x @ W)
    forward = soft_match(mapped, y, temperature=temperature, stop_gradient=stop_gradient)
    backward = soft_match(y, mapped, temperature=temperature, stop_gradient=stop_gradient)
    cross = x.T @ (row_shares(x)[:, None] * (forward @ y)) + (backward @ x).T @ (row_shares(y)[:, None] * y)
    return polar(cross)


def csls_loss(
    x: jax.Array, y: jax.Array, *, temperature: float | jax.Array = 0.05, stop_gradient: bool = False
) -> jax.Array:
    """Minus the mean CSLS of each row with its soft partners, over both directions; a scalar.

    It is low if rows have a partner that is near, and nearer than other rows.

    Args:
        x: ``[b, d]`` unit rows, such as mapped rows; any floating dtype.
        y: ``[c, d]`` unit rows of the same space.
        temperature: see `soft_match`.
        stop_gradient: whether the soft partners are constant.

    Raises:
        InputError: wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(csls_loss(jnp.eye(2), jnp.eye(2))), 3)
        -1.0
    """
    x, y = _same_space(x, y)
    scores = dense_csls(x, y)
    partners = [_softmax(scores, y, temperature), _softmax(scores.T, x, temperature)]
    if stop_gradient:
        partners = jax.lax.stop_gradient(partners)
    forward, backward = jnp.sum(partners[0] * scores, axis=1), jnp.sum(partners[1] * scores.T, axis=1)
    return -(jnp.sum(row_shares(x) * forward) + jnp.sum(row_shares(y) * backward)) / 2


def cycle_loss(x: jax.Array, W: jax.Array, back: jax.Array | None = None) -> jax.Array:
    """Mean squared distance of rows from where the map and the map back take them; a scalar.

    Rows are scaled to unit length after each map, as in `apply`.

    Args:
        x: ``[b, d_x]`` unit rows, any floating dtype.
        W: ``[d_x, d_y]``.
        back: ``[d_y, d_x]``; the transpose of ``W`` by default, as in `invert`. The loss is then 0 for a rotation.

    Raises:
        InputError: wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> float(cycle_loss(jnp.eye(2), jnp.array([[0.0, 1.0], [-1.0, 0.0]])))
        0.0
    """
    x, W = as_matrix(x, "x"), as_matrix(W, "W", min_rows=1)
    back = None if back is None else as_matrix(back, "back")
    check_columns(x, "x", W.shape[0], "for this W")
    if back is not None and back.shape != W.shape[::-1]:
        raise InputError(f"back must have shape {list(W.shape[::-1])} for this W, found {list(back.shape)}")
    (x, W) = to_working(x, W)
    back = W.T if back is None else back.astype(W.dtype)
    returned = unit_rows(unit_rows(x @ W) @ back)
    return jnp.sum(row_shares(x) * jnp.sum((returned - x) ** 2, axis=1))


def preservation_loss(before: jax.Array, after: jax.Array) -> jax.Array:
    """Mean absolute change of the inner products within a batch; a scalar.

    The vector space preservation of vec2vec (arXiv 2505.12540), as in its code; the paper squares the changes. To keep
    an encoder close to its former state, pass its former rows as ``before``; they need no gradient.

    Args:
        before: ``[b, d_x]`` unit rows, any floating dtype.
        after: ``[b, d_y]`` unit rows, row i with row i.

    Raises:
        InputError: wrong shape or dtype, or different numbers of rows.

    Example:
        >>> import jax.numpy as jnp
        >>> float(preservation_loss(jnp.eye(2), jnp.ones((2, 1))))
        0.5
    """
    before, after = as_matrix(before, "before", min_rows=1), as_matrix(after, "after", min_rows=1)
    check_paired(before, after, ("before", "after"))
    (before, after) = to_working(before, after)
    shares = row_shares(before)
    return shares @ jnp.abs(before @ before.T - after @ after.T) @ shares


def alignment_terms(
    linear_map: LinearMap, x: jax.Array, y: jax.Array, config: LossConfig | None = None
) -> AlignmentTerms:
    """The terms of `alignment_loss` before weighting. Arguments, dtypes and errors are those of `alignment_loss`."""
    config = as_config(config, LossConfig)
    x, y = as_matrix(x, "x"), as_matrix(y, "y")
    check_map_rows(linear_map, x, y)
    (W,) = to_working(linear_map.W)
    source = center_unit(x, linear_map.source.mean.astype(W.dtype))
    target = center_unit(y, linear_map.target.mean.astype(W.dtype))
    mapped = unit_rows(source @ W)
    return AlignmentTerms(
        csls=csls_loss(mapped, target, temperature=config.temperature, stop_gradient=config.stop_gradient),
        sinkhorn=sinkhorn_divergence(
            mapped,
            target,
            epsilon=config.epsilon,
            num_steps=config.sinkhorn_steps,
            stop_gradient=config.stop_gradient,
        ),
        cycle=cycle_loss(source, W),
        preservation=preservation_loss(source, mapped),
    )


def alignment_loss(linear_map: LinearMap, x: jax.Array, y: jax.Array, config: LossConfig | None = None) -> jax.Array:
    """How badly a batch of each space fits a map, without known pairs: a scalar to add to a loss.

    Differentiable in the map and in the rows; a pure function for `jax.jit`, `jax.grad` and `jax.vmap`.

    Args:
        linear_map: a `LinearMap` from `align` or `online_map`, or one that is trained with the encoder.
        x: ``[b, d_x]`` raw rows of the source, any floating dtype.
        y: ``[c, d_y]`` raw rows of the target, of other texts.
        config: a `LossConfig`; the defaults if ``None``.

    Returns:
        A scalar in the dtype of the map, at least float32. `alignment_terms` returns its terms.

    Raises:
        InputError: wrong shape or dtype, ``x`` and ``y`` swapped, or a setting that is out of range. The shapes are
            checked inside `jax.jit`, too.

    Example:
        >>> import jax.numpy as jnp
        >>> from mv2v_jax import Centering, LinearMap
        >>> centering = Centering(mean=jnp.zeros(2), scale=jnp.ones(()))
        >>> x = jnp.array([[1.0, 0.0], [0.6, 0.8], [-0.8, 0.6]])
        >>> turn = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
        >>> right, wrong = (LinearMap(W=W, source=centering, target=centering) for W in (turn, turn.T))
        >>> bool(alignment_loss(right, x, x @ turn) < alignment_loss(wrong, x, x @ turn))
        True
    """
    config = as_config(config, LossConfig)
    terms = alignment_terms(linear_map, x, y, config)
    return (
        config.csls * terms.csls
        + config.sinkhorn * terms.sinkhorn
        + config.cycle * terms.cycle
        + config.preservation * terms.preservation
    )
