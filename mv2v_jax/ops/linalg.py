"""Orthogonal Procrustes: the polar factor of a matrix, square or not, with its derivative; and an SVD that is faster.

The derivative of an SVD divides by differences of singular values, so it is NaN if two of them are equal. That of the
polar factor divides by their sums. With ``matrix = P H`` and ``H`` symmetric, ``P^T dP`` solves the Sylvester equation
``H X + X H = P^T dM - dM^T P`` (Higham, Functions of Matrices, 2008, chapter 8). If ``P`` is tall, the part of ``dP``
orthogonal to the columns of ``P`` is ``(I - P P^T) dM H^-1``.
"""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.ops.masked import working_dtype

# Newton-Schulz iterations in `polar_step`. The smallest singular value is at least a tenth of the largest: five
# iterations bring all of them near 1, five more reach the precision of float32. Each costs two matrix products.
_NEWTON_STEPS = 10
# Iterations of the power method that estimate the largest singular value in `polar_step`.
_POWER_STEPS = 2
# Largest singular value of the matrix that `polar_step` adds to the start, whose singular values are 1.
_REACH = 8.0


def polar(matrix: jax.Array) -> jax.Array:
    """Semi-orthogonal polar factor ``U V^T`` of the thin SVD of ``matrix [d_x, d_y]``.

    ``polar(x.T @ y)`` is the map ``w`` with orthonormal rows or columns (whichever are fewer) that maximises
    ``trace(w^T x^T y)``. With orthonormal rows (``d_x <= d_y``) it also minimises ``||x @ w - y||_F``; for
    ``d_x == d_y`` it equals the result of `scipy.linalg.orthogonal_procrustes`.

    It is differentiable in forward and reverse mode, more than once, and with equal singular values. The factor is not
    determined where the sum of two singular values is zero (less than ``max(d_x, d_y)`` rounding errors of the
    largest): rotations between these two directions get a derivative of zero, and so does a matrix of zeros. If one
    singular value of a square matrix is zero, a sign is not determined; the derivative is for the sign that the SVD
    chose.

    Returns:
        ``[d_x, d_y]``, same dtype; half precision is computed in float32.

    Example:
        >>> import jax.numpy as jnp
        >>> jnp.diagonal(polar(jnp.diag(jnp.array([3.0, -2.0])))).round(4).tolist()
        [1.0, -1.0]
    """
    chex.assert_rank(matrix, 2)
    if matrix.shape[0] < matrix.shape[1]:
        return polar(matrix.T).T
    return _tall_polar(matrix.astype(working_dtype(matrix.dtype))).astype(matrix.dtype)


@jax.custom_jvp
def _tall_polar(matrix: jax.Array) -> jax.Array:
    u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u @ vt


@_tall_polar.defjvp
def _polar_jvp(primals, tangents):
    (matrix,), (change,) = primals, tangents
    # Only the values of the SVD are used. Second derivatives go through `_with_value` and the two linear equations.
    u, singular, vt = jax.lax.stop_gradient(jnp.linalg.svd(jax.lax.stop_gradient(matrix), full_matrices=False))
    smallest = singular[0] * max(matrix.shape) * jnp.finfo(matrix.dtype).eps
    factor = _with_value(u @ vt, matrix)
    symmetric = factor.T @ matrix
    symmetric = (symmetric + symmetric.T) / 2
    projected = factor.T @ change

    def turn(_, right):
        inverse = _inverse(singular[:, None] + singular[None], smallest)
        return vt.T @ (vt @ right @ vt.T * inverse) @ vt

    def divide(_, left):
        return (left @ vt.T * _inverse(singular, smallest)[None]) @ vt

    # `custom_linear_solve` differentiates the equation instead of its solution, and is linear in the right-hand side.
    moved = factor @ jax.lax.custom_linear_solve(
        lambda x: symmetric @ x + x @ symmetric, projected - projected.T, turn, symmetric=True
    )
    if matrix.shape[0] > matrix.shape[1]:
        moved += jax.lax.custom_linear_solve(
            lambda x: x @ symmetric, change - factor @ projected, divide, symmetric=True
        )
    return factor, moved


@jax.custom_jvp
def _with_value(value: jax.Array, matrix: jax.Array) -> jax.Array:
    """The polar factor of ``matrix``, whose ``value`` is given, so that value and derivative share one SVD."""
    return value


@_with_value.defjvp
def _with_value_jvp(primals, tangents):
    return primals[0], jax.jvp(_tall_polar, primals[1:], tangents[1:])[1]


def _inverse(denominator: jax.Array, smallest: jax.Array) -> jax.Array:
    return jnp.where(denominator > smallest, 1 / jnp.where(denominator > smallest, denominator, 1), 0)


def polar_step(start: jax.Array, matrix: jax.Array) -> jax.Array:
    """One step from the semi-orthogonal ``start [d_x, d_y]`` towards the polar factor of ``matrix``, without an SVD.

    Returns the polar factor of ``start + c matrix``, where ``c`` makes the largest singular value of ``c matrix`` 8.
    Close to the solution all singular values of the sum are between 1 and 9, so ten Newton-Schulz iterations suffice
    for any condition number of ``matrix``. A step reduces the remaining rotation between the directions ``i`` and ``j``
    to its ``1 / (1 + c (s_i + s_j) / 2)``: directions with large singular values converge at once, and directions in
    the null space of ``matrix`` stay unchanged. This is the generalised power method (Journee et al., JMLR 2010) for
    maximising ``trace(W^T matrix)``.

    Args:
        start: ``[d_x, d_y]`` semi-orthogonal, float32 or float64.
        matrix: ``[d_x, d_y]``, same dtype.

    Returns:
        ``[d_x, d_y]``, semi-orthogonal up to rounding unless ``matrix`` is opposed to ``start``.

    Example:
        >>> import jax.numpy as jnp
        >>> bool(jnp.allclose(polar_step(jnp.eye(2), jnp.zeros((2, 2))), jnp.eye(2), atol=1e-5))
        True
    """
    chex.assert_equal_shape((start, matrix))
    if start.shape[0] < start.shape[1]:
        return polar_step(start.T, matrix.T).T
    # The power method finds the largest singular value or a little less, rarely less by more than a few percent.
    # Newton-Schulz converges if the true value is up to 70 percent larger.
    vector = jnp.sum(matrix * start, axis=0) + jnp.sum(jnp.abs(matrix), axis=0)
    for _ in range(_POWER_STEPS):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / jnp.maximum(jnp.linalg.norm(vector), jnp.finfo(matrix.dtype).tiny)
    largest = jnp.linalg.norm(matrix @ vector)
    reach = jnp.where(largest > 0, _REACH / jnp.where(largest > 0, largest, 1), 0)
    x = (start + matrix * reach) / (1 + _REACH)
    for _ in range(_NEWTON_STEPS):
        x = 1.5 * x - 0.5 * x @ (x.T @ x)
    return x


def scale_to_norm(matrix: jax.Array, length: float | jax.Array) -> jax.Array:
    """``matrix``, of any shape, scaled to a Frobenius norm of ``length``; a matrix of zeros stays unchanged."""
    norm = jnp.linalg.norm(matrix)
    return matrix * (length / jnp.where(norm > 0, norm, 1))


def procrustes(x: jax.Array, y: jax.Array) -> jax.Array:
    """Semi-orthogonal map ``[d_x, d_y]`` from rows ``x [n, d_x]`` to their partners ``y [n, d_y]``: ``polar(x^T y)``.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> bool(jnp.allclose(procrustes(x, x[:, ::-1]), jnp.eye(2)[::-1], atol=1e-5))
        True
    """
    chex.assert_equal_shape_prefix((x, y), 1)
    return polar(x.T @ y)


def eigh_descending(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues ``[d]`` of a symmetric ``matrix [d, d]``, the largest first, and their vectors as columns ``[d, d]``.

    Example:
        >>> import jax.numpy as jnp
        >>> eigh_descending(jnp.diag(jnp.array([1.0, 2.0])))[0].tolist()
        [2.0, 1.0]
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return values[::-1], vectors[:, ::-1]


def cosines(inner: jax.Array) -> jax.Array:
    """Cosines ``[r, r]`` from the inner products ``[r, r]`` of vectors with each other."""
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(inner), jnp.finfo(inner.dtype).tiny))
    return inner / (lengths[:, None] * lengths[None])


def svd_from_gram(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Thin SVD of ``matrix [a, b]`` by an eigendecomposition of its smaller Gram matrix: less than half the time.

    Squaring loses half of the digits. Singular values smaller than the square root of the rounding error, relative to
    the largest, are noise, and so are their singular vectors of the longer side.

    Returns:
        ``U [a, r]``, the singular values ``[r]`` in descending order, and ``V^T [r, b]``, with ``r = min(a, b)``.

    Example:
        >>> import jax.numpy as jnp
        >>> svd_from_gram(jnp.diag(jnp.array([1.0, 2.0])))[1].round(4).tolist()
        [2.0, 1.0]
    """
    if matrix.shape[0] < matrix.shape[1]:
        u, singular, vt = svd_from_gram(matrix.T)
        return vt.T, singular, u.T
    squared, v = eigh_descending(matrix.T @ matrix)
    smallest = jnp.maximum(squared[0] * jnp.finfo(matrix.dtype).eps ** 2, jnp.finfo(matrix.dtype).tiny)
    singular = jnp.sqrt(jnp.maximum(squared, smallest))
    return (matrix @ v) / singular[None], singular, v.T
