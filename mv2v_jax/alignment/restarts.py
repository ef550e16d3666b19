"""Several restarts, the best of them chosen without a label, and a consensus of those that agree with it.

A fit can end in a basin that is not the right one, more often where rows are few. Restarts differ in every draw; each
one's search is scored on rows that none of them has seen, and by how far its anchor sets agree. Only the best is
settled, which is half of the work; or the best few, whose average is better than any of them.
"""

import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.fit import Searched, SearchRows, as_map, finish, lift_search, prepare_search, search_map, settle
from mv2v_jax.alignment.results import AlignResult
from mv2v_jax.alignment.score import Evidence
from mv2v_jax.alignment.space import Space, fit_space, num_held_out
from mv2v_jax.config import Config, check_config
from mv2v_jax.data.checks import check_fitting_rows, check_pairs
from mv2v_jax.data.padding import PaddedRows, pad_rows, row_specs
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.knn import BLOCK_ENTRIES, BLOCK_ROWS
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import EVERYWHERE, RESTART, all_gather, from_first, over_mesh, shard

Keep = Literal["best", "summary", "all"]


@pytree
class Restarts:
    """What `align_restarts` returns.

    Attributes:
        best: `AlignResult` of the chosen restart; where several were settled its map is their average.
        chosen: int32 scalar, which restart it is; its key was ``fold_in(key, chosen)``.
        evidence: `Evidence` of every restart, each field ``[r]``.
        agreement: ``[r, r]``, cosine of the restarts' maps with each other on the directions of the data.
        trajectory: per stage of the search, its label-free objective, ``[r, steps]``; ``None`` unless kept.
        maps: `LinearMap` of every restart before it was settled, in the directions that were searched, each field
            ``[r, ...]``; ``None`` unless kept.
    """

    best: AlignResult
    chosen: jax.Array
    evidence: Evidence
    agreement: jax.Array
    trajectory: dict[str, jax.Array] | None
    maps: LinearMap | None


@pytree
class Choice:
    """Which of several searches is kept, and how much each counts beside it.

    Attributes:
        chosen: int32 scalar, the search of the best score.
        order: ``[r]`` int32, all searches by their score, the chosen one first.
        weights: ``[r]``, square of the agreement with the chosen one, 0 where that is negative: those that found
            another alignment hardly count.
        agreement: ``[r, r]``, see `Restarts`.
        with_others: scalar, median agreement of the chosen search with the others; ``None`` where there are none.
    """

    chosen: jax.Array
    order: jax.Array
    weights: jax.Array
    agreement: jax.Array
    with_others: jax.Array | None


def select(evidence: Evidence) -> jax.Array:
    """Which of several fits of the same data to keep: the one of the best score, an int32 scalar.

    Args:
        evidence: `Evidence` with fields ``[r]``, one entry a fit.
    """
    return order_by_score(evidence)[0]


def order_by_score(evidence: Evidence) -> jax.Array:
    """Fits of the same data from the best score to the worst, then those whose score is not finite: ``[r]`` int32."""
    score = jnp.where(jnp.isfinite(evidence.score), evidence.score, -jnp.inf)
    return jnp.argsort(-score, stable=True).astype(jnp.int32)


def map_agreement(maps: jax.Array, x: jax.Array) -> jax.Array:
    """Cosine of ``maps [r, d_x, d_y]`` with each other as they move the rows ``x [n, d_x]``: ``[r, r]``."""
    moved = jnp.einsum("ab,rbc->rac", x.T @ x / x.shape[0], maps)
    inner = jnp.einsum("rac,sac->rs", moved, maps)
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(inner), jnp.finfo(maps.dtype).tiny))
    return inner / (lengths[:, None] * lengths[None])


def agreement_with_others(agreement: jax.Array, chosen: jax.Array) -> jax.Array | None:
    """Median of ``agreement [r, r]`` between the chosen restart and the others; ``None`` where there are none."""
    if agreement.shape[0] == 1:
        return None
    is_other = jnp.arange(agreement.shape[0]) != chosen
    return jnp.nanmedian(jnp.where(is_other, agreement[chosen], jnp.nan))


def choose(searches: Searched, x: jax.Array, *, config: Config) -> Choice:
    """Choose among searches, whose leaves are ``[r, ...]``, by what rows held out of ``x [n, r_x]`` and Y said."""
    order = order_by_score(searches.evidence)
    chosen = order[0]
    agreement = map_agreement(jax.vmap(lambda matrix: as_map(matrix, config=config))(searches.matrix), x)
    return Choice(
        chosen=chosen,
        order=order,
        weights=jnp.square(jnp.maximum(jnp.nan_to_num(agreement[chosen].at[chosen].set(1)), 0)),
        agreement=agreement,
        with_others=agreement_with_others(agreement, chosen),
    )


def num_averaged(num_settled: int, num_restarts: int, config: Config) -> int:
    """How many searches are settled: a published refinement ends in a map, which is not averaged with others."""
    return min(num_settled, num_restarts) if config.returns_cross else 1


def average(matrices: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted mean of the finite ones among cross-covariances ``[s, d_x, d_y]``, the first of which weighs 1.

    Maps that found the same alignment differ by the noise of their draws, which averages out.
    """
    finite = jnp.isfinite(matrices).all(axis=(1, 2))
    weights = jnp.where(finite, weights, 0)
    mean = jnp.einsum("s,sab->ab", weights, jnp.nan_to_num(matrices)) / jnp.where(finite[0], weights.sum(), 1)
    # Where the best is not finite nothing is made up.
    return jnp.where(finite[0], mean, matrices[0])


def restart_keys(key: jax.Array, first: int, num_restarts: int) -> jax.Array:
    """Keys of the restarts ``first``, ``first + 1``, ...: a restart's key depends on its number alone."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(num_restarts))


def search_restarts(keys: jax.Array, rows: SearchRows, *, config: Config, batch_size: int = 1) -> Searched:
    """Search once for every one of ``keys [r]``, ``batch_size`` of them side by side; every leaf is ``[r, ...]``.

    Over a mesh's restart axis each device searches for its share of them.
    """
    mine = keys[shard(jnp.arange(keys.shape[0]), RESTART)]
    searches = jax.lax.map(lambda key: search_map(key, rows, config=config), mine, batch_size=batch_size)
    return all_gather(searches, RESTART, keys.shape[0])


def searched_maps(
    matrices: jax.Array, space_x: Space, space_y: Space, rows: SearchRows, *, config: Config
) -> LinearMap:
    """The maps ``[r, d_x, d_y]`` that searches found, before they are settled, as a `LinearMap` of ``[r, ...]``."""
    W = jax.vmap(lambda matrix: lift_search(as_map(matrix, config=config), rows))(matrices)
    sides = (space_x.mean, space_y.mean, space_x.scale, space_y.scale)
    mean_x, mean_y, scale_x, scale_y = (jnp.broadcast_to(side, (len(matrices), *side.shape)) for side in sides)
    return LinearMap(W=W, mean_x=mean_x, mean_y=mean_y, scale_x=scale_x, scale_y=scale_y)


def settle_restarts(
    keys: jax.Array,
    space_x: Space,
    space_y: Space,
    rows: SearchRows,
    searches: Searched,
    choice: Choice,
    *,
    config: Config,
    num_settled: int,
) -> AlignResult:
    """Settle the best of the searches of ``keys [r]``, each with its key, average what agrees, and pack the result."""
    settled = choice.order[: num_averaged(num_settled, len(keys), config)]

    def settle_one(index):
        return settle(keys[index], space_x, space_y, rows, searches.matrix[index], config=config)

    matrices, trajectories = all_gather(jax.lax.map(settle_one, shard(settled, RESTART)), RESTART, settled.shape[0])
    matrix = average(matrices, choice.weights[settled])
    chosen, trajectory = (
        jax.tree.map(lambda leaf, index=index: leaf[index], tree)
        for tree, index in ((searches, choice.chosen), (trajectories, 0))
    )
    return finish(space_x, space_y, matrix, chosen, trajectory, choice.with_others, config=config)


@functools.partial(jax.jit, static_argnames=("num_restarts", "batch_size", "keep", "num_settled", "mesh"))
def fit_restarts(key, x: PaddedRows, y: PaddedRows, config: Config, *, mesh: Mesh | None, **choices) -> Restarts:
    """What `align_restarts` compiles, for rows and choices that `ready_restarts` has checked."""
    fit = functools.partial(_fit_restarts, **choices)
    return over_mesh(fit, mesh, EVERYWHERE, row_specs(x), row_specs(y), EVERYWHERE)(key, x, y, config)


def _fit_restarts(
    key,
    x: PaddedRows,
    y: PaddedRows,
    config: Config,
    *,
    num_restarts: int,
    batch_size: int,
    keep: Keep,
    num_settled: int,
) -> Restarts:
    space_x, space_y = fit_space(*x), fit_space(*y)
    rows = prepare_search(space_x, space_y, config=config)
    keys = restart_keys(key, 0, num_restarts)
    searches = search_restarts(keys, rows, config=config, batch_size=batch_size)
    choice = choose(searches, rows.x.fitted, config=config)
    best = settle_restarts(keys, space_x, space_y, rows, searches, choice, config=config, num_settled=num_settled)
    return Restarts(
        best=best,
        chosen=choice.chosen,
        evidence=searches.evidence,
        agreement=choice.agreement,
        trajectory=None if keep == "best" else searches.trajectory,
        maps=searched_maps(searches.matrix, space_x, space_y, rows, config=config) if keep == "all" else None,
    )


def align_restarts(
    key: jax.Array,
    x: Any,
    y: Any,
    num_restarts: int,
    config: Config | None = None,
    *,
    batch_size: int | None = None,
    keep: Keep = "summary",
    num_settled: int = 1,
    mesh: Mesh | None = None,
    pairs: tuple[Any, Any] | None = None,
) -> Restarts:
    """Search several times from different draws, and settle the best search by its `Evidence`, or the best few.

    Args:
        key: random key; restart ``i`` is what `align` does with ``fold_in(key, i)``.
        x: ``[n, d_x]`` raw rows of the source encoder.
        y: ``[m, d_y]`` raw rows of the target encoder.
        num_restarts: how many.
        config: a `Config`; the default preset if none. It must hold rows out.
        batch_size: restarts searched side by side on each device; by default as `restart_batch` finds they fit its
            memory. One after the other is faster on CPU.
        keep: what to return of every restart besides its evidence and its agreement with the others: ``"best"``
            nothing, ``"summary"`` its trajectory, ``"all"`` its trajectory and its map (``d_x * d_y`` numbers each).
        num_settled: how many of the best restarts are settled and averaged, as far as they agree with the best: a
            consensus that is better than any of them, for half of a fit's time each. At most all are.
        mesh: of `make_mesh`, to spread restarts and rows over devices, of several processes as well; all of them call
            this with the same arguments, and each holds of ``x`` and ``y`` what its own devices need. The result is
            that of one device, up to rounding.
        pairs: known pairs, if any, as for `align`.

    Raises:
        InputError: as `align`, where nothing is held out to choose by, where ``keep`` is none of the three, and where
            the devices of the row axis do not divide the padded rows.
    """
    config = Config() if config is None else config
    x, y, choices = ready_restarts(
        x,
        y,
        config,
        num_restarts=num_restarts,
        batch_size=batch_size,
        keep=keep,
        num_settled=num_settled,
        mesh=mesh,
        pairs=pairs,
    )
    return fit_restarts(key, x, y, config, **choices)


def ready_restarts(
    x: Any,
    y: Any,
    config: Config,
    *,
    num_restarts: int,
    batch_size: int | None = None,
    keep: Keep = "summary",
    num_settled: int,
    mesh: Mesh | None,
    pairs: tuple[Any, Any] | None = None,
) -> tuple[PaddedRows, PaddedRows, dict[str, Any]]:
    """Check what `align_restarts` is given: both spaces' rows in their sizes, and the keywords of `fit_restarts`."""
    check_config(config)
    if keep not in get_args(Keep):
        raise InputError(f"keep must be one of {', '.join(get_args(Keep))}, found {keep!r}")
    x, y = check_fitting_rows(x, "x", config), check_fitting_rows(y, "y", config)
    check_restarts(num_restarts, min(x.shape[0], y.shape[0]), config, num_settled)
    known = check_pairs(pairs, x, y)
    x, y = (pad_rows(rows, config.max_rows, mesh, side) for rows, side in zip((x, y), known, strict=True))
    if batch_size is None:
        num_rows, num_dims = map(max, zip(x.rows.shape, y.rows.shape, strict=True))
        batch_size = restart_batch(num_restarts, num_rows, config.search_dims or num_dims, config, mesh)
    choices = {"num_restarts": num_restarts, "batch_size": batch_size, "keep": keep, "num_settled": num_settled}
    return x, y, {**choices, "mesh": mesh}


def search_bytes(num_rows: int, num_dims: int, config: Config) -> int:
    """Memory a search takes at most beside the rows that all share, in bytes; XLA's own count is 0.7 to 0.85 of it."""
    similarities = min(BLOCK_ENTRIES, BLOCK_ROWS * num_rows)
    drawn = min(num_rows, max(config.anchor_rows, config.anneal_rows, config.match_rows))
    return 4 * (3 * similarities + 12 * drawn * num_dims)


def restart_batch(num_restarts: int, num_rows: int, num_dims: int, config: Config, mesh: Mesh | None = None) -> int:
    """Restarts to search side by side on each device: as many as fit half of its memory; 1 on CPU.

    Free memory would be a matter of the moment, and a batch of another size may round in another way.

    Args:
        num_restarts: how many there are in all.
        num_rows: rows of the larger side.
        num_dims: their dimensions.
        config: as for `align_restarts`.
        mesh: over which they are spread.
    """
    device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
    memory = device.memory_stats() if device.platform != "cpu" else None
    if not memory or "bytes_limit" not in memory:
        return 1
    on_each = -(-num_restarts // (1 if mesh is None else mesh.shape[RESTART]))
    batch = max(1, min(on_each, memory["bytes_limit"] // 2 // search_bytes(num_rows, num_dims, config)))
    # All processes compile the same program.
    return batch if mesh is None else int(from_first(np.asarray(batch)))


def check_restarts(num_restarts: int, num_rows: int, config: Config, num_settled: int = 1) -> None:
    """Raise `InputError` where there is no restart, none to settle, or nothing to choose among several by."""
    for name, number in (("num_restarts", num_restarts), ("num_settled", num_settled)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(f"{name} must be a whole number of at least 1, found {number!r}")
    if num_restarts > 1 and num_held_out(num_rows, config.held_out_rows) < 1:
        raise InputError(
            "several restarts need held-out rows to choose by: held_out_rows of at least 1 and 10 rows a side, found "
            f"held_out_rows={config.held_out_rows} and {num_rows} rows"
        )
