"""k-means: greedy k-means++ seeding and Lloyd's iterations, with a fixed number of steps. Zero rows take no part."""

import functools
import math

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import ROW, psum, shard


@pytree
class Clusters:
    """Centres of a clustering.

    Attributes:
        centers: ``[c, d]``.
        counts: ``[c]``, number of rows nearest to each centre, without zero rows.
        inertia: scalar, sum of squared distances of those rows to their centres.
    """

    centers: jax.Array
    counts: jax.Array
    inertia: jax.Array


def _squared_distances(x: jax.Array, x_squared: jax.Array, centers: jax.Array) -> jax.Array:
    """``[n, c]`` squared distances; tiny negatives from rounding become zero."""
    distances = x_squared[:, None] - 2 * (x @ centers.T) + jnp.sum(centers**2, axis=1)[None]
    return jnp.maximum(distances, 0)


def seed_centers(key: jax.Array, x: jax.Array, *, num_clusters: int) -> jax.Array:
    """Greedy k-means++: of a few rows drawn by squared distance, keep the one that lowers the inertia most.

    Args:
        key: random key.
        x: ``[n, d]``.
        num_clusters: number of centres ``c``; ``2 + ln(c)`` candidates are drawn for each, as scikit-learn does.

    Returns:
        ``[c, d]``, rows of ``x``.
    """
    chex.assert_rank(x, 2)
    num_candidates = 2 + int(math.log(num_clusters))
    x_squared = jnp.sum(x**2, axis=1)
    num_rows = x.shape[0]
    # All random numbers in one call, see `sampling`.
    numbers = jax.random.uniform(key, (num_rows + (num_clusters - 1) * num_candidates,), x.dtype)
    # Zero rows get distance zero to every centre, so they are never drawn.
    present = x_squared > 0
    first = x[jnp.argmax(jnp.where(present, numbers[:num_rows], -1))]
    centers = jnp.zeros((num_clusters, x.shape[1]), x.dtype).at[0].set(first)
    nearest = jnp.where(present, _squared_distances(x, x_squared, first[None])[:, 0], 0)
    if num_clusters == 1:
        return centers

    def add_center(carry, inputs):
        centers, nearest = carry
        index, quantiles = inputs
        # Inverse transform sampling on the cumulative sum; a categorical draw would cost n Gumbel variates.
        cumulative = jnp.cumsum(nearest)
        candidates = x[jnp.clip(jnp.searchsorted(cumulative, quantiles * cumulative[-1]), 0, num_rows - 1)]
        lowered = jnp.minimum(nearest[:, None], _squared_distances(x, x_squared, candidates))
        best = jnp.argmin(lowered.sum(axis=0))
        return (centers.at[index].set(candidates[best]), lowered[:, best]), None

    inputs = (jnp.arange(1, num_clusters), numbers[num_rows:].reshape(num_clusters - 1, num_candidates))
    (centers, _), _ = jax.lax.scan(add_center, (centers, nearest), inputs)
    return centers


def lloyd(x: jax.Array, centers: jax.Array, *, num_steps: int, spread: bool = False) -> Clusters:
    """Lloyd's iterations from given centres. A centre that loses all its rows stays where it is.

    Args:
        x: ``[n, d]``.
        centers: ``[c, d]``, the start.
        num_steps: number of iterations; fixed, so that a vmapped call does not wait for its slowest lane.
        spread: whether the devices of a mesh's row axis share the rows and add up their sums.
    """
    chex.assert_rank((x, centers), 2)
    chex.assert_equal_shape_suffix((x, centers), 1)
    x = shard(x, ROW) if spread else x
    join = functools.partial(psum, axis=ROW) if spread else lambda sums: sums
    x_squared = jnp.sum(x**2, axis=1)

    present = x_squared > 0
    place = jnp.arange(centers.shape[0], dtype=jnp.int32)[:, None]

    def assign(centers):
        # Centres come first, so that minima vectorise along the rows; an argmin would cost more than the product.
        distances = jnp.sum(centers**2, axis=1)[:, None] - 2 * (centers @ x.T)
        nearest = distances.min(axis=0)
        first = jnp.where(distances == nearest[None], place, centers.shape[0]).min(axis=0)
        # The sums are a matrix product with the one-hot assignment: a scatter-add is slow on some CPU builds and not
        # deterministic on GPU.
        one_hot = ((place == first[None]) & present[None]).astype(x.dtype)
        return one_hot, jnp.where(present, jnp.maximum(nearest + x_squared, 0), 0).sum()

    def step(centers, _):
        one_hot, _ = assign(centers)
        counts, sums = join((one_hot.sum(axis=1), one_hot @ x))
        means = sums / jnp.maximum(counts, 1)[:, None]
        return jnp.where(counts[:, None] > 0, means, centers), None

    centers, _ = jax.lax.scan(step, centers, length=num_steps)
    one_hot, inertia = assign(centers)
    counts, inertia = join((one_hot.sum(axis=1), inertia))
    return Clusters(centers=centers, counts=counts, inertia=inertia)


def kmeans(key: jax.Array, x: jax.Array, *, num_clusters: int, num_steps: int, spread: bool = False) -> Clusters:
    """k-means++ seeding followed by Lloyd's iterations; see `seed_centers` and `lloyd`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.array([[1.0], [1.1], [5.0], [5.1]])
        >>> centers = kmeans(jax.random.key(0), x, num_clusters=2, num_steps=5).centers
        >>> sorted(round(float(center), 2) for center in centers.ravel())
        [1.05, 5.05]
    """
    return lloyd(x, seed_centers(key, x, num_clusters=num_clusters), num_steps=num_steps, spread=spread)
