"""CSLS: similarity corrected for hubs (Conneau et al., arXiv 1710.04087), in both directions at once.

``csls(x, y) = 2 cos(x, y) - r(x) - r(y)``, with ``r`` the mean similarity of a row with its nearest rows of the other
space. A hub is near to everything, so its ``r`` is large and it stops being everyone's nearest neighbour.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.candidates import Matches, find_candidates
from mv2v_jax.neighbors import Neighbors

# Neighbours behind r, as in the papers that introduced it. CSLS orders as many candidates anew, or half as many more
# than are wanted: that needs one pass over the similarities where an exact search needs two.
NUM_LOCAL = 10


def _local_density(similarity: jax.Array) -> jax.Array:
    """Mean of the first `NUM_LOCAL` columns, without a slice: XLA turns a sliced `top_k` into a whole sort on CPU."""
    num_local = min(NUM_LOCAL, similarity.shape[1])
    return jnp.where(jnp.arange(similarity.shape[1])[None] < num_local, similarity, 0).sum(axis=1) / num_local


def _reorder(candidates: Neighbors, own_density: jax.Array, other_density: jax.Array, num_neighbors: int) -> Neighbors:
    csls = 2 * candidates.similarity - own_density[:, None] - other_density[candidates.index]
    similarity, order = jax.lax.top_k(csls, num_neighbors)
    return Neighbors(similarity=similarity, index=jnp.take_along_axis(candidates.index, order, axis=1))


def match_csls(x: jax.Array, y: jax.Array, *, num_neighbors: int) -> Matches:
    """Nearest rows by CSLS from ``x [n, d]`` to ``y [m, d]`` and back, both of unit rows in the same space.

    Each row's `NUM_LOCAL` nearest rows by cosine, or its ``num_neighbors + NUM_LOCAL // 2`` nearest if those are more,
    are ordered anew by CSLS; ``num_neighbors`` of them are returned, with their CSLS for similarity.
    """
    num_candidates = max(NUM_LOCAL, num_neighbors + NUM_LOCAL // 2)
    candidates = find_candidates(x, y, num_neighbors=num_candidates)
    forward, backward = candidates.x_to_y, candidates.y_to_x
    density_x, density_y = (_local_density(found.similarity) for found in (forward, backward))
    return Matches(
        x_to_y=_reorder(forward, density_x, density_y, min(num_neighbors, forward.index.shape[1])),
        y_to_x=_reorder(backward, density_y, density_x, min(num_neighbors, backward.index.shape[1])),
    )


def mean_csls(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean CSLS of every row with its nearest row of the other space, over both directions: a label-free objective."""
    matches = match_csls(x, y, num_neighbors=1)
    return (matches.x_to_y.similarity.mean() + matches.y_to_x.similarity.mean()) / 2
