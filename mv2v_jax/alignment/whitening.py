"""In which directions rows of two spaces are compared, and how much each one counts.

A rotation compares two spaces as they lie. Two things speak against that. Directions differ in how surely they are
matched: their pseudo-pairs are more or less correlated, and a direction that is matched at random says nothing about
who is whose partner. And under cosine a few long directions decide who is near whom, in nearly every encoder. So
directions are weighted by a power of their correlation, and both spaces are partly whitened first: the map is
``C_x^-a U r^p V^T C_y^-a``, with ``U S V^T`` the cross-covariance of the pseudo-pairs and ``r`` their correlations.
On MiniLM to WordLlama the orthogonal map fitted on true pairs goes from a top-1 of 0.770 to 0.819 at a = 0.25,
p = 0.4. VecMap (Artetxe et al., AAAI 2018) whitens whole and weights by correlation; a small power of each is safer
where the map is not quite right.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.ops.linalg import scale_to_norm, svd_from_gram
from mv2v_jax.ops.pytree import pytree

# Directions with less than this share of the largest variance are noise; lifting them further would only amplify it.
_MIN_VARIANCE = 1e-3


# What a decomposition gives below so many rounding errors, relative to the largest, is nothing but rounding.
_ROUNDING = 30


@pytree
class Whitening:
    """How the rows of a space spread.

    Attributes:
        covariance: ``[d, d]``.
        whitener: ``[d, d]``, the covariance, its largest variance scaled to 1, to minus the whitening power.
    """

    covariance: jax.Array
    whitener: jax.Array


@pytree
class Directions:
    """Directions of two spaces that belong together, scaled by how much they count: the map is ``x @ y.T``.

    Attributes:
        x: ``[d_x, r]``.
        y: ``[d_y, r]``.
    """

    x: jax.Array
    y: jax.Array


def fit_whitening(rows: jax.Array, whitening_power: float | jax.Array) -> Whitening:
    """`Whitening` of centred ``rows [n, d]``; a power of 0 whitens nothing, 0.5 everything."""
    covariance = rows.T @ rows / rows.shape[0]
    variance, axes = jnp.linalg.eigh(covariance)
    largest = jnp.maximum(variance[-1], jnp.finfo(rows.dtype).tiny)
    scaled = jnp.maximum(variance / largest, _MIN_VARIANCE)
    whitener = (axes * scaled[None] ** -jnp.asarray(whitening_power, rows.dtype)) @ axes.T
    return Whitening(covariance=covariance, whitener=whitener)


def _correlations(u: jax.Array, singular: jax.Array, v: jax.Array, x: Whitening, y: Whitening) -> jax.Array:
    """Correlation of the matched pairs along each pair of singular directions, the largest scaled to 1: ``[r]``.

    A singular value is the covariance of the matched pairs along its directions; over the spread of both spaces there
    it becomes their correlation. Singular values alone would count a direction down for being short, not for being
    wrong.
    """
    spread = jnp.sum(u * (x.covariance @ u), axis=0) * jnp.sum(v * (y.covariance @ v), axis=0)
    # A direction that holds no data has no spread, and nothing to say. Whitening is a product of two variances.
    has_spread = spread > jnp.finfo(u.dtype).eps ** 2 * jnp.max(spread)
    correlation = jnp.where(has_spread, singular / jnp.sqrt(jnp.where(has_spread, spread, 1)), 0)
    return correlation / jnp.maximum(correlation.max(), jnp.finfo(u.dtype).tiny)


def _scaled(u: jax.Array, vt: jax.Array, weights: jax.Array, x: Whitening, y: Whitening) -> Directions:
    # Half of the power is on each side, so that unit length can be taken where rows are compared.
    half = jnp.sqrt(weights)[None]
    return Directions(x=x.whitener @ (u * half), y=y.whitener @ (vt.T * half))


def weigh_directions(
    cross: jax.Array, x: Whitening, y: Whitening, reliability_power: float | jax.Array, *, exact: bool = True
) -> Directions:
    """Singular directions of a cross-covariance, each weighted by a power of its correlation, in whitened spaces.

    Args:
        cross: ``[d_x, d_y]`` cross-covariance of pseudo-pairs, of any length.
        x: `Whitening` of the source.
        y: `Whitening` of the target.
        reliability_power: power of the correlation; 0 makes a whitened rotation.
        exact: false to take `svd_from_gram`, where the directions are on their way and digits do not matter.
    """
    u, singular, vt = jnp.linalg.svd(cross, full_matrices=False) if exact else svd_from_gram(cross)
    weights = _correlations(u, singular, vt.T, x, y) ** jnp.asarray(reliability_power, cross.dtype)
    # A search in fewer directions says nothing about the others: they are rounding, and no power may make them count.
    rounding = (_ROUNDING * jnp.finfo(cross.dtype).eps) ** (1 if exact else 0.5)
    return _scaled(u, vt, jnp.where(singular > rounding * singular[0], weights, 0), x, y)


def map_from_cross(cross: jax.Array, x: Whitening, y: Whitening, reliability_power: float | jax.Array) -> jax.Array:
    """The map ``[d_x, d_y]`` that compares rows as `weigh_directions` says, of the length of a rotation.

    A power of 0 gives a whole rotation: what rows do not lie in is turned with the rest.
    """
    u, singular, vt = jnp.linalg.svd(cross, full_matrices=False)
    weights = _correlations(u, singular, vt.T, x, y) ** jnp.asarray(reliability_power, cross.dtype)
    directions = _scaled(u, vt, weights, x, y)
    return scale_to_norm(directions.x @ directions.y.T, min(cross.shape) ** 0.5)


def whiten_map(W: jax.Array, x: Whitening, y: Whitening) -> jax.Array:
    """``C_x^-a W C_y^-a`` of a map ``[d_x, d_y]``, of the length of ``W``; ``W`` itself for power zero."""
    return scale_to_norm(x.whitener @ W @ y.whitener, jnp.linalg.norm(W))
