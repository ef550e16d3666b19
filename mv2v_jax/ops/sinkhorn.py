"""Sinkhorn divergence: how far two clouds are apart, smooth in their rows, in the log domain and of fixed length."""

import jax
import jax.numpy as jnp

from mv2v_jax.ops.masked import present_rows, working_dtype


def to_working(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays in one dtype, at least float32."""
    dtype = jnp.result_type(*(working_dtype(a.dtype) for a in arrays))
    return tuple(a.astype(dtype) for a in arrays)


def row_shares(rows: jax.Array) -> jax.Array:
    """Weight of each of ``rows [n, d]``, ``[n]``: the same for all that have a length, 0 for others."""
    present = present_rows(rows).astype(rows.dtype)
    return present / jnp.maximum(present.sum(), 1)


def _log_shares(rows: jax.Array) -> jax.Array:
    shares = row_shares(rows)
    # Where no row has a length the cost is not infinite, but nobody's.
    none = jnp.where((shares > 0).any(), -jnp.inf, 0)
    return jnp.where(shares > 0, jnp.log(jnp.where(shares > 0, shares, 1)), none)


def _transport(x: jax.Array, y: jax.Array, epsilon, num_steps: int, stop_gradient: bool) -> jax.Array:
    """Entropic transport cost of two clouds: the dual's value after ``num_steps`` of Sinkhorn in the log domain."""
    # Half of the squared distance, from products; exact for rows of unit length and rows of none alike.
    cost = (jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None]) / 2 - x @ y.T
    log_x, log_y = _log_shares(x), _log_shares(y)
    fixed = jax.lax.stop_gradient(cost) if stop_gradient else cost

    def soft_minimum(cost, potential, log_shares):
        return -epsilon * jax.nn.logsumexp((potential[None] - cost) / epsilon + log_shares[None], axis=1)

    def step(potentials, _):
        f, g = potentials
        # Both at once and averaged with what they were: a cloud against itself converges in few steps.
        return ((f + soft_minimum(fixed, g, log_y)) / 2, (g + soft_minimum(fixed.T, f, log_x)) / 2), None

    (_, g), _ = jax.lax.scan(step, (jnp.zeros_like(log_x), jnp.zeros_like(log_y)), length=num_steps)
    # One exact half step more: rows of the plan sum to their shares, and the gradient with g held fixed is the plan.
    f = soft_minimum(cost, g, log_y)
    return jnp.sum(row_shares(x) * f) + jnp.sum(row_shares(y) * g)


def sinkhorn_divergence(
    x: jax.Array,
    y: jax.Array,
    *,
    epsilon: float | jax.Array = 0.05,
    num_steps: int = 10,
    stop_gradient: bool = False,
) -> jax.Array:
    """How far two clouds are apart, ``x [b, d]`` and ``y [c, d]``: 0 where they are the same, in no order.

    ``OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2`` of entropic transport, with half the squared distance for cost (Feydy et
    al., AISTATS 2019).

    Args:
        x: rows that have a length count alike.
        y: rows that have a length count alike.
        epsilon: entropy, in units of the cost; small needs more steps.
        num_steps: Sinkhorn iterations.
        stop_gradient: take the gradient with the plan held fixed. At convergence that is the gradient itself (the
            envelope theorem), without the memory of going back through the iterations.
    """
    (x, y) = to_working(x, y)
    cross, within_x, within_y = (
        _transport(a, b, epsilon, num_steps, stop_gradient) for a, b in ((x, y), (x, x), (y, y))
    )
    return cross - (within_x + within_y) / 2
