"""CSLS: similarity corrected for hubs (Conneau et al., arXiv 1710.04087), in both directions at once.

``csls(x, y) = 2 cos(x, y) - r(x) - r(y)``, with ``r`` the mean similarity of a row with its nearest rows of the other
space. A hub is near to everything, so its ``r`` is large and it stops being everyone's nearest neighbour.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.ops.knn import Neighbors, largest, merge_neighbors
from mv2v_jax.ops.mutual_knn import find_candidates
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import ROW, pmax

# Similarities behind r, as many as in the papers that introduced it.
NUM_LOCAL = 10


@pytree
class Matches:
    """Partners in both directions.

    Attributes:
        x_to_y: `Neighbors` of the rows of X.
        y_to_x: `Neighbors` of the rows of Y.
    """

    x_to_y: Neighbors
    y_to_x: Neighbors


def _local_density(candidates: Neighbors, is_spread: bool = False) -> jax.Array:
    """How near a row is to the other space: the mean of its candidates' largest similarities, ``[n]``.

    Few candidates are the nearest rows, of which the first count. Many are the nearest rows of groups, and the nearest
    of each of `NUM_LOCAL` bundles of groups count: about as many, found without a sort. Where they ``is_spread`` over
    devices, the nearest of a bundle is that of all of them.
    """
    similarity = candidates.similarity
    num_rows, num_candidates = similarity.shape
    bundle = num_candidates // NUM_LOCAL
    if bundle < 2:
        # Without a slice: XLA turns a sliced `top_k` into a whole sort on CPU.
        num_local = min(NUM_LOCAL, num_candidates)
        return jnp.where(jnp.arange(num_candidates)[None] < num_local, similarity, 0).sum(axis=1) / num_local
    bundles = similarity[:, : NUM_LOCAL * bundle].reshape(num_rows, bundle, NUM_LOCAL)
    maxima = bundles.max(axis=1)
    return (pmax(maxima, ROW) if is_spread else maxima).mean(axis=1)


def _reorder(candidates: Neighbors, own_density: jax.Array, other_density: jax.Array, num_neighbors: int) -> Neighbors:
    csls = 2 * candidates.similarity - own_density[:, None] - other_density[candidates.index]
    similarity, order = largest(csls, min(num_neighbors, csls.shape[1]))
    return Neighbors(similarity=similarity, index=jnp.take_along_axis(candidates.index, order, axis=1))


def match_csls(x: jax.Array, y: jax.Array, *, num_neighbors: int) -> Matches:
    """Nearest rows by CSLS from ``x [n, d]`` to ``y [m, d]`` and back, both of unit rows in the same space.

    Each row's candidates by cosine (`find_candidates`) are ordered anew by CSLS; ``num_neighbors`` of them are
    returned, with their CSLS for similarity. Where only one direction is used the other is not computed.
    """
    wanted = max(NUM_LOCAL, num_neighbors + NUM_LOCAL // 2)
    candidates = find_candidates(x, y, num_neighbors=num_neighbors, min_candidates=wanted)
    forward, backward = candidates.x_to_y, candidates.y_to_x
    density_x, density_y = _local_density(forward), _local_density(backward, candidates.is_spread)
    x_to_y = candidates.all_of_x(_reorder(forward, density_x, density_y, num_neighbors))
    y_to_x = _reorder(backward, density_y, candidates.all_of_x(density_x), num_neighbors)
    return Matches(x_to_y=x_to_y, y_to_x=merge_neighbors(y_to_x, num_neighbors) if candidates.is_spread else y_to_x)


def mean_csls(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean CSLS of every row with its nearest row of the other space, over both directions: a label-free objective.

    Where rows are many their places are kept in the last bits of similarities, which have no gradient:
    `losses.csls_loss` is what to differentiate.
    """
    matches = match_csls(x, y, num_neighbors=1)
    return (matches.x_to_y.similarity.mean() + matches.y_to_x.similarity.mean()) / 2
