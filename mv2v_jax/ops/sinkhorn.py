"""Sinkhorn divergence: a distance between two sets of rows that is smooth in the rows.

Sinkhorn's iterations run in the log domain and a fixed number of times.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.ops.given_arrays import as_matrix, check_columns
from mv2v_jax.ops.masked import present_rows, working_dtype


def to_working(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays in their common dtype, at least float32."""
    dtype = jnp.result_type(*(working_dtype(a.dtype) for a in arrays))
    return tuple(a.astype(dtype) for a in arrays)


def row_shares(rows: jax.Array) -> jax.Array:
    """Weights of ``rows [n, d]`` that sum to 1, ``[n]``: equal for all rows, but 0 for zero rows."""
    present = present_rows(rows).astype(rows.dtype)
    return present / jnp.maximum(present.sum(), 1)


def _log_shares(rows: jax.Array) -> jax.Array:
    shares = row_shares(rows)
    # If all rows are zero rows, minus infinity everywhere would make the cost infinite; 0 keeps it finite.
    log_zero = jnp.where((shares > 0).any(), -jnp.inf, 0)
    return jnp.where(shares > 0, jnp.log(jnp.where(shares > 0, shares, 1)), log_zero)


def _transport(x: jax.Array, y: jax.Array, epsilon, num_steps: int, stop_gradient: bool) -> jax.Array:
    """Entropic transport cost between the rows of ``x`` and ``y``: the value of the dual after ``num_steps``."""
    # Half the squared distance, from inner products; this holds for zero rows, too.
    cost = (jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None]) / 2 - x @ y.T
    log_x, log_y = _log_shares(x), _log_shares(y)
    fixed = jax.lax.stop_gradient(cost) if stop_gradient else cost

    def soft_minimum(cost, potential, log_shares):
        return -epsilon * jax.nn.logsumexp((potential[None] - cost) / epsilon + log_shares[None], axis=1)

    def step(potentials, _):
        f, g = potentials
        # Updating both at once and averaging with the old values converges in few steps if x and y are the same rows.
        return ((f + soft_minimum(fixed, g, log_y)) / 2, (g + soft_minimum(fixed.T, f, log_x)) / 2), None

    (_, g), _ = jax.lax.scan(step, (jnp.zeros_like(log_x), jnp.zeros_like(log_y)), length=num_steps)
    # After one more exact half step the rows of the plan sum to their shares, and the gradient for fixed g is the plan.
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
    """Distance between two sets of rows, a scalar: 0 if they are the same rows in any order.

    ``OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2``, where ``OT`` is the entropic transport cost with half the squared
    distance as the cost of a pair (Feydy et al., AISTATS 2019). All rows have the same weight; zero rows do not count.

    Args:
        x: ``[b, d]``, any floating dtype; half precision is computed in float32.
        y: ``[c, d]``.
        epsilon: entropy, in units of the cost; a smaller one needs more steps.
        num_steps: number of Sinkhorn iterations.
        stop_gradient: whether the plan is constant in the gradient. At convergence the gradient is the same (envelope
            theorem), and it needs no memory for the iterations.

    Raises:
        InputError: wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.eye(3)
        >>> [abs(round(float(sinkhorn_divergence(x, y)), 3)) for y in (x[::-1], -x)]
        [0.0, 0.965]
    """
    x, y = as_matrix(x, "x", min_rows=1), as_matrix(y, "y")
    check_columns(y, "y", x.shape[1], "like x")
    (x, y) = to_working(x, y)
    cross, within_x, within_y = (
        _transport(a, b, epsilon, num_steps, stop_gradient) for a, b in ((x, y), (x, x), (y, y))
    )
    return cross - (within_x + within_y) / 2
