"""Anchor sets: k-means of both spaces, matched to each other by quadratic assignment, and the sets that agree."""

import jax
import jax.numpy as jnp

from mv2v_jax.alignment.seeds import seed_terms
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.config import AnchorConfig
from mv2v_jax.ops.kmeans import kmeans
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.qap import assignment_objective, centered_kernel, search_assignment
from mv2v_jax.ops.sampling import draw_rows, order_rows
from mv2v_jax.ops.sharding import ROW, all_gather, shard


@pytree
class AnchorSets:
    """Matched centres of both spaces, one set per draw.

    Attributes:
        x: ``[s, c, d_x]``.
        y: ``[s, c, d_y]``; centre i of a set is matched with centre i of ``x``.
        objective: ``[s]``, linear CKA of the matched centres: 1 where both sets have the same geometry.
    """

    x: jax.Array
    y: jax.Array
    objective: jax.Array


@pytree
class AnchorInfo:
    """How well the anchor sets were matched.

    Attributes:
        objective: ``[s]``, linear CKA of the matched centres of each set.
        agreement: ``[s]``, cosine of each set's cross-covariance with the sum of the others', see `set_agreement`.
        kept: ``[s]`` bool, the sets that were used.
    """

    objective: jax.Array
    agreement: jax.Array
    kept: jax.Array


def match_anchor_sets(
    key: jax.Array, rows: TwoSpaces, *, config: AnchorConfig, sets: jax.Array | None = None
) -> AnchorSets:
    """Draw rows, cluster both spaces and match the centres, once per anchor set.

    Args:
        key: random key; set ``i`` depends on ``fold_in(key, i)`` alone.
        rows: centred unit rows of both spaces. Known pairs among them help to match the centres.
        config: an `AnchorConfig`.
        sets: ``[s]`` numbers of the sets to make; all of ``config.num_sets`` by default.
    """
    sets = jnp.arange(config.num_sets) if sets is None else sets
    orders = order_rows(key, rows.x, rows.y)

    def cluster(index):
        draw, cluster_x, cluster_y, match = jax.random.split(jax.random.fold_in(key, index), 4)
        drawn_x, drawn_y = draw_rows(draw, (rows.x, rows.y), (config.rows, config.rows), orders)

        def centers(key, drawn):
            return kmeans(key, drawn, num_clusters=config.num_clusters, num_steps=config.lloyd_steps).centers

        return centers(cluster_x, drawn_x), centers(cluster_y, drawn_y), match

    def match(centers_x, centers_y, key):
        kernel_x, kernel_y = centered_kernel(centers_x), centered_kernel(centers_y)
        found = search_assignment(
            key,
            kernel_x,
            kernel_y,
            linear=seed_terms(centers_x, centers_y, rows.seeds),
            num_starts=config.num_starts,
            num_steps=config.search_steps,
        )
        largest = jnp.linalg.norm(kernel_x) * jnp.linalg.norm(kernel_y)
        objective = assignment_objective(kernel_x, kernel_y, found.permutation)
        cka = objective / jnp.where(largest > 0, largest, 1)
        return AnchorSets(x=centers_x, y=centers_y[found.permutation], objective=cka)

    # Sets are independent, so the devices of a mesh's row axis have some each.
    # One set after the other: a batch of k-means is slower than its members on CPU, and each fills an accelerator.
    centers_x, centers_y, match_keys = jax.lax.map(cluster, shard(sets, ROW))
    # The searches are tiny, so all of them run together.
    return all_gather(jax.vmap(match)(centers_x, centers_y, match_keys), ROW, sets.shape[0])


def set_agreement(sets: AnchorSets) -> jax.Array:
    """Cosine of every set's cross-covariance of matched centres with the sum of the others': ``[s]``.

    Wrong matchings are wrong in different ways, so right ones agree with each other and wrong ones with none.
    """
    centered_x = sets.x - sets.x.mean(axis=1, keepdims=True)
    centered_y = sets.y - sets.y.mean(axis=1, keepdims=True)
    cross = jnp.einsum("scx,scy->sxy", centered_x, centered_y).reshape(sets.x.shape[0], -1)
    lengths = jnp.linalg.norm(cross, axis=1, keepdims=True)
    cross = cross / jnp.where(lengths > 0, lengths, 1)
    others = cross.sum(axis=0, keepdims=True) - cross
    lengths = jnp.linalg.norm(others, axis=1)
    return jnp.sum(cross * others, axis=1) / jnp.where(lengths > 0, lengths, 1)


def select_anchors(sets: AnchorSets, *, config: AnchorConfig) -> tuple[TwoSpaces, AnchorInfo]:
    """Concatenate the ``config.kept_sets`` anchor sets that agree best with the others.

    Returns:
        The anchors, ``[a, d_x]`` and ``[a, d_y]``, where anchor i of X and anchor i of Y are matched; and `AnchorInfo`.
    """
    agreement = set_agreement(sets)
    num_sets = agreement.shape[0]
    _, index = jax.lax.top_k(agreement, min(config.kept_sets, num_sets))
    anchors = TwoSpaces(x=sets.x[index].reshape(-1, sets.x.shape[-1]), y=sets.y[index].reshape(-1, sets.y.shape[-1]))
    kept = jnp.isin(jnp.arange(num_sets, dtype=index.dtype), index)
    return anchors, AnchorInfo(objective=sets.objective, agreement=agreement, kept=kept)
