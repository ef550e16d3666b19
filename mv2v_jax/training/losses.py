"""Losses without pairs, to add to one's own: what makes an encoder's rows come out where a map has a use for them.

``loss = task_loss + 0.1 * alignment_loss(linear_map, x, y)``, with ``x`` and ``y`` the raw rows of a batch of each
space, of different texts. Four terms, each a function of its own: mapped rows have near partners (`csls_loss`), the two
clouds are one (`sinkhorn_divergence`, where vec2vec, arXiv 2505.12540, trains a discriminator), the way there and back
is short (`cycle_loss`), and what lay near each other still does (`preservation_loss`, vec2vec's vector space
preservation). Everything has a gradient in the rows and in the map.

Who is whose partner follows from the rows, so it has a gradient too, which is noise as long as the matches are. With
``stop_gradient`` (the default of `alignment_loss`) the correspondence is held fixed and only what is matched moves, as
in EM or ICP.

Batches are paired, ``b x c``: these are the caller's own sizes. Half precision is computed in float32; rows without
length take no part, padding among them.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.config import _static, _traced
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.csls import NUM_LOCAL
from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import center_unit, present_rows, unit_rows
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sinkhorn import row_shares, sinkhorn_divergence, to_working


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Choices of `alignment_loss`; integers and booleans are static, floats traced."""

    stop_gradient: bool = _static(True, "hold the correspondence fixed: no gradient through who is whose partner")
    sinkhorn_steps: int = _static(10, "Sinkhorn: iterations")
    temperature: float = _traced(0.05, "CSLS: cosine by which a partner must be nearer to count e times as much")
    epsilon: float = _traced(0.05, "Sinkhorn: entropy, in units of half a squared distance")
    csls: float = _traced(1.0, "weight of csls_loss")
    sinkhorn: float = _traced(1.0, "weight of sinkhorn_divergence")
    cycle: float = _traced(1.0, "weight of cycle_loss")
    preservation: float = _traced(1.0, "weight of preservation_loss")


@pytree
class AlignmentTerms:
    """The terms of `alignment_loss`, before they are weighted. Scalars; 0 is best, but for ``csls``."""

    csls: jax.Array
    sinkhorn: jax.Array
    cycle: jax.Array
    preservation: jax.Array


def all_csls(x: jax.Array, y: jax.Array) -> jax.Array:
    """CSLS ``2 cos(x, y) - r(x) - r(y)`` of all unit rows ``x [b, d]`` with all ``y [c, d]``: ``[b, c]``.

    ``r`` is the mean similarity of a row with the ten nearest of the other space (Conneau et al., arXiv 1710.04087),
    all of them where there are fewer. Unlike `csls.match_csls`, which looks among candidates only, it has a gradient.
    """
    similarity = x @ y.T
    return 2 * similarity - _local_density(similarity, y)[:, None] - _local_density(similarity.T, x)[None]


def _local_density(similarity: jax.Array, others: jax.Array) -> jax.Array:
    present = present_rows(others)
    nearest, _ = jax.lax.top_k(jnp.where(present[None], similarity, -jnp.inf), min(NUM_LOCAL, others.shape[0]))
    counted = jnp.isfinite(nearest)
    return jnp.where(counted, nearest, 0).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1).astype(similarity.dtype)


def _softmax(scores: jax.Array, others: jax.Array, temperature) -> jax.Array:
    return jax.nn.softmax(
        jnp.where(present_rows(others)[None], scores / temperature, jnp.finfo(scores.dtype).min), axis=1
    )


def soft_match(
    x: jax.Array, y: jax.Array, *, temperature: float | jax.Array = 0.05, stop_gradient: bool = False
) -> jax.Array:
    """Soft partners: for every unit row of ``x [b, d]`` a distribution over ``y [c, d]``, ``[b, c]``, by CSLS.

    Args:
        x: mapped rows, of unit length.
        y: rows of the target, of unit length.
        temperature: CSLS by which a row must be nearer to count e times as much; towards 0, the nearest alone counts.
        stop_gradient: return it as a constant.
    """
    (x, y) = to_working(x, y)
    weights = _softmax(all_csls(x, y), y, temperature)
    return jax.lax.stop_gradient(weights) if stop_gradient else weights


def soft_procrustes(
    x: jax.Array,
    y: jax.Array,
    W: jax.Array,
    *,
    temperature: float | jax.Array = 0.05,
    stop_gradient: bool = False,
) -> jax.Array:
    """The rotation ``[d_x, d_y]`` that a batch implies: soft partners under ``W``, both ways, and their polar factor.

    Differentiable in all three arrays, so that a loss can see through the map to the rows it came from.

    Args:
        x: ``[b, d_x]`` centred unit rows.
        y: ``[c, d_y]`` centred unit rows.
        W: ``[d_x, d_y]``, the map by which they are matched.
        temperature: see `soft_match`.
        stop_gradient: hold the matches fixed; the rows that are matched still have a gradient.
    """
    (x, y, W) = to_working(x, y, W)
    mapped = unit_rows(x @ W)
    forward = soft_match(mapped, y, temperature=temperature, stop_gradient=stop_gradient)
    backward = soft_match(y, mapped, temperature=temperature, stop_gradient=stop_gradient)
    cross = x.T @ (row_shares(x)[:, None] * (forward @ y)) + (backward @ x).T @ (row_shares(y)[:, None] * y)
    return polar(cross)


def csls_loss(
    x: jax.Array, y: jax.Array, *, temperature: float | jax.Array = 0.05, stop_gradient: bool = False
) -> jax.Array:
    """Minus the mean CSLS of unit rows ``x [b, d]`` and ``y [c, d]`` with their soft partners, both directions.

    A label-free score with a gradient: lower where rows have a partner that is near, and nearer than others are.
    ``stop_gradient`` holds the partners fixed.
    """
    (x, y) = to_working(x, y)
    scores = all_csls(x, y)
    partners = [_softmax(scores, y, temperature), _softmax(scores.T, x, temperature)]
    if stop_gradient:
        partners = jax.lax.stop_gradient(partners)
    forward, backward = jnp.sum(partners[0] * scores, axis=1), jnp.sum(partners[1] * scores.T, axis=1)
    return -(jnp.sum(row_shares(x) * forward) + jnp.sum(row_shares(y) * backward)) / 2


def cycle_loss(x: jax.Array, W: jax.Array, back: jax.Array | None = None) -> jax.Array:
    """Mean squared distance of unit rows ``x [b, d_x]`` from where ``W [d_x, d_y]`` and ``back [d_y, d_x]`` take them.

    Each way ends at unit length, as `apply` does. ``back`` is the transpose if none, as `invert` has it: 0 for a
    rotation.
    """
    (x, W) = to_working(x, W)
    back = W.T if back is None else back.astype(W.dtype)
    returned = unit_rows(unit_rows(x @ W) @ back)
    return jnp.sum(row_shares(x) * jnp.sum((returned - x) ** 2, axis=1))


def preservation_loss(before: jax.Array, after: jax.Array) -> jax.Array:
    """Mean absolute change of the inner products within a batch, from ``before [b, d_x]`` to ``after [b, d_y]``.

    Vector space preservation as the code of vec2vec (arXiv 2505.12540) has it; its paper squares. Unit rows. To hold an
    encoder near what it was, ``before`` is a batch of its rows then, and takes no gradient if it is a constant.
    """
    (before, after) = to_working(before, after)
    chex.assert_equal_shape_prefix((before, after), 1)
    shares = row_shares(before)
    return shares @ jnp.abs(before @ before.T - after @ after.T) @ shares


def alignment_terms(
    linear_map: LinearMap, x: jax.Array, y: jax.Array, config: LossConfig | None = None
) -> AlignmentTerms:
    """The terms of `alignment_loss`, each alone; arguments as there."""
    config = LossConfig() if config is None else config
    (W,) = to_working(linear_map.W)
    source = center_unit(x, linear_map.mean_x.astype(W.dtype))
    target = center_unit(y, linear_map.mean_y.astype(W.dtype))
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
    """How badly a batch of each space fits a map, without a pair: a scalar to add to a loss.

    Args:
        linear_map: from `align`, `online_map`, or trained with the rest; it has a gradient as the rows do.
        x: ``[b, d_x]`` raw rows of the source, any floating dtype.
        y: ``[c, d_y]`` raw rows of the target, of other texts.
        config: a `LossConfig`; the defaults if none. Its ``stop_gradient`` holds the correspondence fixed.

    Returns:
        A scalar in the dtype of the map, at least float32; `alignment_terms` has its parts.
    """
    config = LossConfig() if config is None else config
    terms = alignment_terms(linear_map, x, y, config)
    return (
        config.csls * terms.csls
        + config.sinkhorn * terms.sinkhorn
        + config.cycle * terms.cycle
        + config.preservation * terms.preservation
    )
