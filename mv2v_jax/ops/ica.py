"""Independent component analysis: the directions of whitened rows in which the rows are least Gaussian.

Symmetric FastICA (Hyvarinen, 1999): all axes move at once by a fixed-point step and are then made orthonormal. The
number of axes is traced, so that runs with different numbers share a compiled program: the last columns of the rows
are zero, and the axes that belong to them are *dead*: zero vectors that no step changes.
"""

import jax
import jax.numpy as jnp

# Newton-Schulz iterations that make the axes orthonormal. Each multiplies a small singular value by 1.5, so that 16 of
# them bring 0.002 near 1; what is still short of 1 gets there in the next step.
_NEWTON_STEPS = 16
# The contrast of `find_axes` grows between these two values of a coordinate, in standard deviations.
_KNEE, _CEILING = 1.0, 4.0


def orthonormal_rows(matrix: jax.Array) -> jax.Array:
    """The nearest matrix with orthonormal rows to ``matrix [k, k]``, from products alone; zero rows stay zero."""
    # Zeros are divided by 1: XLA merges both divisions, and the product of two tiny divisors would be 0.
    lengths = jnp.linalg.norm(matrix, axis=1, keepdims=True)
    rows = matrix / jnp.where(lengths > 0, lengths, 1)
    # The fourth root of the sum of the fourth powers of the singular values is at least the largest of them.
    largest = jnp.sqrt(jnp.linalg.norm(rows @ rows.T))
    rows = rows / jnp.where(largest > 0, largest, 1)
    return jax.lax.fori_loop(0, _NEWTON_STEPS, lambda _, u: 1.5 * u - 0.5 * (u @ u.T) @ u, rows)


def live_columns(num_axes: int, num_live: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """1 for the first ``num_live`` of ``num_axes`` columns and 0 for the others: ``[num_axes]``."""
    return (jnp.arange(num_axes, dtype=jnp.int32) < num_live).astype(dtype)


def find_axes(
    key: jax.Array, rows: jax.Array, num_live: jax.Array, use_square: jax.Array, *, num_steps: int
) -> jax.Array:
    """Independent axes of whitened rows.

    Args:
        key: random key; draws the first axes.
        rows: ``[n, k]``, whitened; the columns after the first ``num_live`` are zero.
        num_live: int32 scalar, number of axes to find.
        use_square: bool scalar. The contrast is the square of a coordinate if true, which finds skewed axes; otherwise
            it is a ramp from 1 to 4 standard deviations, which finds axes with a heavy tail on one side.
        num_steps: number of fixed-point steps.

    Returns:
        ``[k, k]``; the first ``num_live`` rows are orthonormal axes of either sign, the others are zero.
    """
    num_rows, num_axes = rows.shape
    live = live_columns(num_axes, num_live, rows.dtype)
    # In one row, see `sampling`.
    first = jax.random.normal(key, (num_axes**2,), rows.dtype).reshape(num_axes, num_axes)
    first = first * live[:, None] * live[None]

    def step(axes, _):
        coordinates = rows @ axes.T
        ramp = jnp.clip(coordinates - _KNEE, 0, _CEILING - _KNEE)
        slope = ((coordinates > _KNEE) & (coordinates < _CEILING)).astype(rows.dtype)
        contrast = jnp.where(use_square, coordinates**2, ramp)
        slope = jnp.where(use_square, 2 * coordinates, slope)
        return orthonormal_rows(contrast.T @ rows / num_rows - slope.mean(axis=0)[:, None] * axes), None

    return jax.lax.scan(step, orthonormal_rows(first), length=num_steps)[0]
