"""Partial whitening: a map that evens out part of the difference in spread between directions.

Under cosine a few long directions decide who is near whom, in nearly every encoder. A rotation keeps them long; scaled
down on both sides, ``C_x^-a Q C_y^-a``, the same correspondence finds more true partners: on MiniLM to WordLlama the
orthogonal map fitted on true pairs goes from a top-1 of 0.770 to 0.807 at a = 0.1. VecMap (Artetxe et al., AAAI 2018)
whitens whole; a small power is safer where the map is not quite right, because it lifts its weakest directions.
"""

import jax
import jax.numpy as jnp

# Directions with less than this share of the largest variance are noise; lifting them further would only amplify it.
_LEAST_VARIANCE = 1e-3


def inverse_power(rows: jax.Array, power: float | jax.Array) -> jax.Array:
    """``C^-power`` of the covariance C of ``rows [n, d]``, its largest variance scaled to 1: ``[d, d]``."""
    variance, directions = jnp.linalg.eigh(rows.T @ rows / rows.shape[0])
    largest = jnp.maximum(variance[-1], jnp.finfo(rows.dtype).tiny)
    scaled = jnp.maximum(variance / largest, _LEAST_VARIANCE)
    return (directions * scaled[None] ** -jnp.asarray(power, rows.dtype)) @ directions.T


def whiten_map(W: jax.Array, x: jax.Array, y: jax.Array, power: float | jax.Array) -> jax.Array:
    """``C_x^-power W C_y^-power``, scaled to the length of ``W``; ``W`` itself for power zero.

    Args:
        W: ``[d_x, d_y]``.
        x: ``[n, d_x]`` centred unit rows.
        y: ``[m, d_y]`` centred unit rows.
        power: from 0, nothing, to 0.5, both spaces white.
    """
    whitened = inverse_power(x, power) @ W @ inverse_power(y, power)
    return whitened * (jnp.linalg.norm(W) / jnp.maximum(jnp.linalg.norm(whitened), jnp.finfo(W.dtype).tiny))
