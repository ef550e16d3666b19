"""Soft graph matching: which point of one space is which point of another, from several kernels of each at once.

The quadratic assignment of `ops.qap`, relaxed: a *plan* ``P [k, k]``, whose rows and columns sum to 1, takes the place
of the permutation, and ``sum_a <A_a, P B_a P^T>`` is maximised by Frank-Wolfe steps with exact line search (FAQ,
Vogelstein et al., 2015). Where FAQ solves a linear assignment in every step, a step here goes towards a Sinkhorn plan
that sharpens from step to step. On independent components of text embeddings it found about half as many right
matches again as FAQ, it is differentiable, and it consists of matrix products, so that many starts run side by side.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.ops.pytree import pytree

# The logits of a Frank-Wolfe step have this standard deviation in the first step, and this one at the end.
_FIRST_SHARPNESS, _LAST_SHARPNESS = 5.0, 20.0
_SINKHORN_STEPS = 20
# Keeps every entry of a plan positive, so that no row or column vanishes.
_FLOOR = 1e-12


@pytree
class Kernels:
    """Relations between the ``k`` points of one space.

    Attributes:
        symmetric: ``[a, k, k]``.
        directed: ``[b, k, k]``, not symmetric.
    """

    symmetric: jax.Array
    directed: jax.Array


def balance(logits: jax.Array, live: jax.Array, num_steps: int = _SINKHORN_STEPS) -> jax.Array:
    """Sinkhorn: the plan ``[k, k]`` that is the exponential of ``logits``, with rows and columns scaled to sum to 1.

    Args:
        logits: ``[k, k]``.
        live: ``[k]``, 1 for points that take part and 0 for *dead* ones, each of which is matched with itself.
        num_steps: number of iterations.
    """
    both = live[:, None] * live[None]
    shifted = logits - jnp.max(jnp.where(both > 0, logits, -jnp.inf), axis=1, keepdims=True, initial=-1e30)
    kernel = (jnp.exp(jnp.minimum(shifted, 0)) + _FLOOR) * both + jnp.diag(1 - live)

    def step(_, columns):
        return 1 / (1 / (kernel @ columns) @ kernel)

    columns = jax.lax.fori_loop(0, num_steps, step, jnp.ones_like(live))
    return (1 / (kernel @ columns))[:, None] * kernel * columns[None]


def gradient(x: Kernels, y: Kernels, plan: jax.Array) -> jax.Array:
    """Derivative of ``sum_a <A_a, P B_a P^T>`` by the plan: ``[k, k]``."""
    found = 2 * jnp.einsum("aij,ajk->ik", x.symmetric, plan[None] @ y.symmetric)
    found += jnp.einsum("aij,akj->ik", x.directed, y.directed @ plan.T[None])
    return found + jnp.einsum("aji,ajk->ik", x.directed, plan[None] @ y.directed)


def standardize(logits: jax.Array, live: jax.Array) -> jax.Array:
    """``logits [k, k]`` with mean 0 and standard deviation 1 over the points that are ``live [k]``, 0 elsewhere."""
    both = live[:, None] * live[None]
    count = jnp.maximum(both.sum(), 1)
    centered = (logits - (logits * both).sum() / count) * both
    return centered / jnp.maximum(jnp.sqrt((centered**2).sum() / count), jnp.finfo(logits.dtype).tiny)


def match_softly(
    x: Kernels, y: Kernels, linear: jax.Array, start: jax.Array, live: jax.Array, *, num_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Improve a plan by Frank-Wolfe steps.

    Args:
        x: `Kernels` of the first space, with zeros for dead points.
        y: `Kernels` of the second space.
        linear: ``[k, k]``, the gain of single matches, added to the quadratic objective.
        start: ``[k, k]``, a plan.
        live: ``[k]``, 1 for points that take part, 0 for dead ones.
        num_steps: number of steps.

    Returns:
        The plan ``[k, k]``, and its objective, a scalar.
    """

    def step(state, index):
        # The gradient is linear in the plan, so that one new gradient per step is enough for the line search, too.
        plan, slope = state
        progress = index.astype(plan.dtype) / num_steps
        sharpness = _FIRST_SHARPNESS * (_LAST_SHARPNESS / _FIRST_SHARPNESS) ** progress
        target = balance(standardize(slope + linear, live) * sharpness, live)
        target_slope = gradient(x, y, target)
        old, mixed, new = jnp.vdot(slope, plan) / 2, jnp.vdot(slope, target) / 2, jnp.vdot(target_slope, target) / 2
        bend = old - 2 * mixed + new
        rise = 2 * (mixed - old) + jnp.vdot(linear, target - plan)
        inner = jnp.clip(-rise / jnp.where(bend < 0, 2 * bend, -1), 0, 1)
        share = jnp.where(bend < 0, inner, jnp.where(bend + rise > 0, 1.0, 0.0).astype(plan.dtype))
        return (plan + share * (target - plan), slope + share * (target_slope - slope)), None

    (plan, slope), _ = jax.lax.scan(step, (start, gradient(x, y, start)), jnp.arange(num_steps))
    return plan, jnp.vdot(slope, plan) / 2 + jnp.vdot(linear, plan)


def match_confidence(x: Kernels, y: Kernels, plan: jax.Array) -> jax.Array:
    """How alike each point's relations are to those of its partner: cosine over all kernels, ``[k]``; 0 if dead."""

    def products(a, b):
        matched = plan @ b @ plan.T
        return tuple((p * q).sum(axis=1) + (p * q).sum(axis=0) for p, q in ((a, matched), (a, a), (matched, matched)))

    found = [jax.vmap(products)(*kernels) for kernels in ((x.symmetric, y.symmetric), (x.directed, y.directed))]
    inner, own, other = (sum(part.sum(axis=0) for part in parts) for parts in zip(*found, strict=True))
    return inner / jnp.sqrt(jnp.maximum(own * other, jnp.finfo(plan.dtype).tiny))
