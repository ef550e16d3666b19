"""Seeds: a few known pairs, and how each stage that pairs rows by itself uses them.

Clusters of both spaces are matched with the seeds as fixed points among them (seeded graph matching, Fishkind et al.,
Pattern Recognition 87, 2019): a linear term beside the quadratic one. Each stage adds the cross-covariance of the seeds
to that of the pseudo-pairs. The weight of the seeds grows with their number. It also grows the worse a rotation from
the pseudo-pairs alone retrieves them. If that rotation retrieves all seeds, they hardly change it. If it does not,
thousands of seeds decide alone.
"""

import jax
import jax.numpy as jnp

from mv2v_jax.ops.linalg import polar
from mv2v_jax.ops.masked import present_rows
from mv2v_jax.ops.pytree import pytree

# Number of seeds that measure how good pseudo-pairs are; more would change little.
_JUDGES = 512
# Procrustes on p pairs of MiniLM and WordLlama has a FOSCTTM of 2.6 / p to 5.7 / p, from 100 to 2,000 pairs.
_PAIRS_TIMES_FOSCTTM = 4.0


@pytree
class Seeds:
    """Rows that belong together, in the coordinates of the stage that uses them.

    Attributes:
        x: ``[p, d_x]`` centred unit rows of the source; zero rows are padding.
        y: ``[p, d_y]`` centred unit rows of the target; row i is the partner of row i of ``x``.
    """

    x: jax.Array
    y: jax.Array


def pair_seeds(x: jax.Array | None, y: jax.Array | None) -> Seeds | None:
    """`Seeds` of rows ``[p, d_x]`` and ``[p, d_y]``; ``None`` without pairs. A pair with a zero row becomes padding."""
    if x is None or y is None:
        return None
    both = (present_rows(x) & present_rows(y))[:, None]
    return Seeds(x=jnp.where(both, x, 0), y=jnp.where(both, y, 0))


def worth_in_pairs(rotation: jax.Array, seeds: Seeds) -> jax.Array:
    """Number of known pairs from which Procrustes would make a rotation as good as ``rotation [d_x, d_y]``: a scalar.

    It follows from the rotation's FOSCTTM among the seeds, in both directions: the share of other rows that are closer
    than the true partner. The count of closer rows gets 0.5 added, and the count of compared rows 1, because few seeds
    are weak evidence.
    """
    x, y = seeds.x[:_JUDGES], seeds.y[:_JUDGES]
    present = present_rows(x)
    similarity = x @ rotation @ y.T
    own = jnp.diagonal(similarity)
    others = present[:, None] & present[None] & ~jnp.eye(len(x), dtype=bool)
    closer = (others & (similarity > own[:, None])).sum() + (others & (similarity > own[None])).sum()
    compared = 2 * others.sum()
    return _PAIRS_TIMES_FOSCTTM * (compared.astype(rotation.dtype) + 1) / (closer.astype(rotation.dtype) + 0.5)


def add_seeds(
    cross: jax.Array, num_pseudo: int, seeds: Seeds, rotation: jax.Array, pair_weight: float | jax.Array
) -> jax.Array:
    """A cross-covariance ``[d_x, d_y]`` of ``num_pseudo`` pseudo-pairs with that of the known pairs added.

    Args:
        cross: sum of the products of pseudo-pairs.
        num_pseudo: number of pseudo-pairs.
        seeds: `Seeds`.
        rotation: ``[d_x, d_y]``, polar factor of ``cross`` or an approximation of it. If the number of seeds equals
            `worth_in_pairs` of this rotation, seeds and pseudo-pairs have equal weights (times ``pair_weight``).
        pair_weight: factor of that weight.
    """
    weight = jnp.asarray(pair_weight, cross.dtype) / worth_in_pairs(rotation, seeds)
    return cross + num_pseudo * weight * (seeds.x.T @ seeds.y)


def blend_seeds(cross: jax.Array, num_pseudo: int, seeds: Seeds | None, pair_weight: float | jax.Array) -> jax.Array:
    """A cross-covariance ``[d_x, d_y]`` of pseudo-pairs with that of the seeds added; unchanged without seeds.

    Args:
        cross: sum of the products of pseudo-pairs.
        num_pseudo: number of pseudo-pairs.
        seeds: `Seeds`, if any.
        pair_weight: factor of the seeds' weight.
    """
    if seeds is None:
        return cross
    return add_seeds(cross, num_pseudo, seeds, polar(cross), pair_weight)


def seed_terms(centers_x: jax.Array, centers_y: jax.Array, seeds: Seeds | None) -> jax.Array | None:
    """The linear term ``[c, c]`` for matching centres ``[c, d_x]`` and ``[c, d_y]``: seeds act as matched centres.

    Entry ``i, j`` is what matching centre i with centre j adds to the objective of the quadratic assignment through
    their kernel entries with the seeds. ``None`` without seeds.
    """
    if seeds is None:
        return None
    to_x, to_y = (
        (centers - centers.mean(axis=0, keepdims=True)) @ rows.T
        for centers, rows in ((centers_x, seeds.x), (centers_y, seeds.y))
    )
    # Each of these entries occurs twice in a symmetric kernel.
    return 2 * to_x @ to_y.T
