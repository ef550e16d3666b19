"""CSLS: cosine similarity corrected for hubs (Conneau et al., arXiv 1710.04087), in both directions.

``csls(x, y) = 2 cos(x, y) - r(x) - r(y)``, where the density ``r`` is the mean similarity of a row with its nearest
rows of the other space. A hub is near to every row, so its density is large and it is no longer the nearest neighbour
of every row.

`match_csls` is for many rows: it compares candidates only and is not differentiable. `dense_csls` is for batches: it
compares all pairs and is differentiable.
"""

import chex
import jax
import jax.numpy as jnp

from mv2v_jax.ops.knn import Neighbors, largest, merge_neighbors
from mv2v_jax.ops.masked import present_rows
from mv2v_jax.ops.mutual_knn import find_candidates
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import ROW, pmax, psum, shard

# Number of similarities in a density, as in the paper.
NUM_LOCAL = 10

# For two opposite rows whose densities are both 1.
_MIN_CSLS = -4


@pytree
class Matches:
    """Partners in both directions.

    Attributes:
        x_to_y: `Neighbors` of the rows of X.
        y_to_x: `Neighbors` of the rows of Y.
    """

    x_to_y: Neighbors
    y_to_x: Neighbors


def _csls(similarity: jax.Array, own_density: jax.Array, other_density: jax.Array) -> jax.Array:
    """CSLS from ``similarity [n, k]``, the density of each row ``[n]``, and that of its partners ``[n or 1, k]``."""
    return 2 * similarity - own_density[:, None] - other_density


def _bundle_maxima(similarity: jax.Array, axis: int = 1) -> jax.Array:
    """Maxima over `NUM_LOCAL` bundles of the entries of each row (axis 1) or column (0): ``[n, NUM_LOCAL]``.

    Their mean approximates the mean of the `NUM_LOCAL` largest entries, without a sort. A bundle of a row is every
    tenth entry, so that neighbours in a file, which are often alike, are in different bundles. A bundle of a column is
    consecutive entries, which takes a quarter less time than every tenth.
    """
    num_entries = similarity.shape[axis]
    num_bundles = min(NUM_LOCAL, num_entries)
    size = num_entries // num_bundles
    if axis == 0:
        return similarity[: num_bundles * size].reshape(num_bundles, size, -1).max(axis=1).T
    return similarity[:, : num_bundles * size].reshape(-1, size, num_bundles).max(axis=1)


def _candidate_density(candidates: Neighbors, is_spread: bool = False) -> jax.Array:
    """Density of each row, ``[n]``, from its candidates.

    Up to 19 candidates are sorted, and the first ten count. Of more candidates the nearest of each bundle counts; they
    are usually the nearest rows of groups, in no order. With ``is_spread``, each device has some of the candidates, and
    a bundle is the union of the devices' bundles.
    """
    similarity = candidates.similarity
    num_candidates = similarity.shape[1]
    if num_candidates < 2 * NUM_LOCAL:
        # A mask instead of a slice: XLA turns a sliced `top_k` into a full sort on CPU.
        num_local = min(NUM_LOCAL, num_candidates)
        return jnp.where(jnp.arange(num_candidates)[None] < num_local, similarity, 0).sum(axis=1) / num_local
    maxima = _bundle_maxima(similarity)
    return (pmax(maxima, ROW) if is_spread else maxima).mean(axis=1)


def _dense_density(similarity: jax.Array, axis: int, exact: bool) -> jax.Array:
    """Density of each row (axis 1) or column (0) of ``similarity [n, m]``; entries of minus infinity do not count."""
    if exact:
        local, _ = jax.lax.top_k(similarity if axis else similarity.T, min(NUM_LOCAL, similarity.shape[axis]))
    else:
        local = _bundle_maxima(similarity, axis)
    counted = jnp.isfinite(local)
    return jnp.where(counted, local, 0).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1).astype(similarity.dtype)


def dense_csls(x: jax.Array, y: jax.Array, *, exact: bool = True) -> jax.Array:
    """CSLS of all pairs of unit rows, ``[b, c]``; differentiable.

    Args:
        x: ``[b, d]`` unit rows, float32 or float64.
        y: ``[c, d]`` unit rows of the same space and dtype.
        exact: whether a density is the mean of the ten largest similarities, as in the paper. Otherwise it is the mean
            of the maxima of ten bundles of rows, which is a little smaller and needs no sort. Rows of ``x`` must then
            be in random order.

    Returns:
        ``[b, c]``, same dtype. Pairs with a zero row do not count in any density and get -4, the minimum of CSLS.

    Example:
        >>> import jax.numpy as jnp
        >>> dense_csls(jnp.eye(2), jnp.eye(2)).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    chex.assert_rank((x, y), 2)
    chex.assert_equal_shape_suffix((x, y), 1)
    both = present_rows(x)[:, None] & present_rows(y)[None]
    similarity = x @ y.T
    counted = jnp.where(both, similarity, -jnp.inf)
    csls = _csls(similarity, _dense_density(counted, 1, exact), _dense_density(counted, 0, exact)[None])
    return jnp.where(both, csls, _MIN_CSLS)


def _rank(candidates: Neighbors, own_density: jax.Array, other_density: jax.Array, num_neighbors: int) -> Neighbors:
    """The candidates of largest CSLS, best first."""
    csls = _csls(candidates.similarity, own_density, other_density[candidates.index])
    similarity, order = largest(csls, min(num_neighbors, csls.shape[1]))
    return Neighbors(similarity=similarity, index=jnp.take_along_axis(candidates.index, order, axis=1))


def match_csls(x: jax.Array, y: jax.Array, *, num_neighbors: int) -> Matches:
    """Nearest rows by CSLS, from ``x`` to ``y`` and back.

    The candidates of each row, which are near by cosine (`find_candidates`), are ranked by CSLS. No array pairs all
    rows. XLA leaves out a direction that is not used.

    Args:
        x: ``[n, d]`` unit rows, float32 or float64.
        y: ``[m, d]`` unit rows of the same space and dtype.
        num_neighbors: ``k``, number of partners per row.

    Returns:
        `Matches`: up to ``k`` partners per row, best first, with their CSLS as similarity. The partner of a zero row
        has no meaning; a zero row is a partner only where there are not enough others.

    Example:
        >>> import jax.numpy as jnp
        >>> match_csls(jnp.eye(3), jnp.eye(3)[::-1], num_neighbors=1).x_to_y.index.ravel().tolist()
        [2, 1, 0]
    """
    wanted = max(NUM_LOCAL, num_neighbors + NUM_LOCAL // 2)
    candidates = find_candidates(x, y, num_neighbors=num_neighbors, min_candidates=wanted)
    forward, backward = candidates.x_to_y, candidates.y_to_x
    density_x, density_y = _candidate_density(forward), _candidate_density(backward, candidates.is_spread)
    x_to_y = candidates.all_of_x(_rank(forward, density_x, density_y, num_neighbors))
    y_to_x = _rank(backward, density_y, candidates.all_of_x(density_x), num_neighbors)
    return Matches(x_to_y=x_to_y, y_to_x=merge_neighbors(y_to_x, num_neighbors) if candidates.is_spread else y_to_x)


def sum_pairs(x: jax.Array, y: jax.Array, matches: Matches, voting_x: jax.Array, voting_y: jax.Array) -> jax.Array:
    """Cross-covariance ``[d_x, d_y]`` of the pseudo-pairs of both directions, each the mean over its rows.

    Args:
        x: ``[n, d_x]`` rows.
        y: ``[m, d_y]`` rows.
        matches: `Matches` of them.
        voting_x: ``[n, d_x]``, ``x`` with each row scaled by its vote.
        voting_y: ``[m, d_y]``, likewise.
    """
    # Over a mesh's row axis each device pairs its share of the rows.
    rows_x, index_x = shard((voting_x, matches.x_to_y.index), ROW)
    rows_y, index_y = shard((voting_y, matches.y_to_x.index), ROW)
    return psum(rows_x.T @ y[index_x].mean(axis=1) / x.shape[0] + x[index_y].mean(axis=1).T @ rows_y / y.shape[0], ROW)


def mean_csls(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean CSLS of every row with its nearest row of the other space, over both directions: a label-free objective.

    Do not differentiate it: with many rows, the last bits of a similarity hold an index (`mutual_knn`).
    Differentiate `training.csls_loss` instead.

    Args:
        x: ``[n, d]`` unit rows.
        y: ``[m, d]`` unit rows of the same space and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> float(mean_csls(jnp.eye(2), jnp.eye(2)))
        1.0
    """
    matches = match_csls(x, y, num_neighbors=1)
    return (matches.x_to_y.similarity.mean() + matches.y_to_x.similarity.mean()) / 2
