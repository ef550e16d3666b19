"""What a report shows, measured on held-out rows. No picture is drawn here.

Pictures of the rows that a fit has seen look alike for right and wrong maps, because a fit learns its own rows. So
everything here is about rows that no search has seen, and about what independent searches agree on.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.alignment.fit import prepare
from mv2v_jax.alignment.score import SCALES, fine_agreement
from mv2v_jax.alignment.space import TwoSpaces, split_rows
from mv2v_jax.config import Config
from mv2v_jax.data.inputs import pad_inputs
from mv2v_jax.data.padding import sampled_rows
from mv2v_jax.evaluation.metrics import pair_ranks
from mv2v_jax.linear_map import LinearMap, apply
from mv2v_jax.ops.knn import nearness, top_neighbors
from mv2v_jax.ops.linalg import eigh_descending
from mv2v_jax.ops.masked import center_unit, present_rows, unit_rows
from mv2v_jax.report.regions import Regions, find_regions
from mv2v_jax.report.searches import Searches

# Nearest rows of a held-out row: those that are shown, and those among which the nearest row of a search must be.
NUM_SHOWN, NUM_NEAREST = 3, 10
# Maximum number of held-out rows per side.
MAX_ROWS = 2_000
# Rows of the other space that held-out rows are compared with in the histograms.
_BANK_ROWS = 8_192
# The nulls of the histograms keep the directions of the third scale, which is that of the score.
_KEPT = SCALES[2]


class Cloud(NamedTuple):
    """Held-out rows of both spaces in two coordinates, ``[h, 2]`` and ``[g, 2]``."""

    x: np.ndarray
    y: np.ndarray


class Compared(NamedTuple):
    """One quantity of the same rows in three situations.

    Attributes:
        mapped: under the map of the best search.
        null: after a reflection, which keeps every variance and breaks the geometry.
        within: among rows of one space, as if both encoders were the same.
    """

    mapped: np.ndarray
    null: np.ndarray
    within: np.ndarray


class Measured(NamedTuple):
    """Everything that a report shows about rows. Row numbers are those of the files.

    Attributes:
        rows: ``[h]``, numbers of the held-out rows of X.
        nearest: ``[h, NUM_SHOWN]``, numbers of the rows of Y nearest to each, under the map.
        cosine: ``[h, NUM_SHOWN]``, their cosines.
        agreement: ``[h]``, share of the independent searches whose nearest row of Y is among the `NUM_NEAREST` nearest
            of the map; ``None`` without independent searches.
        chance: what ``agreement`` would be by chance.
        clouds: `Cloud` by name: before, null, after.
        nearness: mean cosine of held-out rows of X with their nearest fitted rows, as in `Evidence`.
        hubs: number of held-out rows of which a row is among the `NUM_NEAREST` nearest, per row; of as many held-out
            rows in all three situations.
        ranks: ``[p]``, rank of each true partner, forth; ``None`` without pairs.
        ranks_back: ``[p]``, the same back.
        regions: `Regions` of the target.
        map_agreement: ``[1 + r, 1 + r]``, agreement in the finer directions of the map and all searches.
        confirmed: median agreement of the map with the independent searches; ``None`` without them.
        lonely: numbers of the held-out rows of X that are farthest from every row of Y, under the map.
    """

    rows: np.ndarray
    nearest: np.ndarray
    cosine: np.ndarray
    agreement: np.ndarray | None
    chance: float
    clouds: dict[str, Cloud]
    nearness: Compared
    hubs: Compared
    ranks: np.ndarray | None
    ranks_back: np.ndarray | None
    regions: Regions
    map_agreement: np.ndarray
    confirmed: float | None
    lonely: np.ndarray


def measure(
    linear_map: LinearMap,
    x: Any,
    y: Any,
    config: Config,
    searches: Searches,
    pairs: tuple[Any, Any] | None = None,
) -> Measured:
    """Measure a map on the rows of ``x [n, d_x]`` and ``y [m, d_y]`` that the searches have not seen.

    Args:
        linear_map: the map of the report.
        x: raw rows of the source, checked.
        y: raw rows of the target, checked.
        config: the config of the searches.
        searches: searches on these rows.
        pairs: true pairs ``[p, d_x]`` and ``[p, d_y]``, if any, that the map is judged on.
    """
    padded = pad_inputs(x, y, (None, None), config)
    numbers = [_file_numbers(rows.shape[0], config.max_rows) for rows in (x, y)]
    seen = _look(linear_map, searches.maps, searches.chosen, *padded, config, num_rows_y=len(numbers[1]))
    seen = jax.tree.map(np.asarray, seen)
    is_other = searches.are_independent
    agreement = seen["found"][is_other].mean(axis=0) if is_other.any() else None
    held_x = numbers[0][seen["held_x"]]
    confirmed = float(np.median(seen["map_agreement"][0, 1:][is_other])) if is_other.any() else None
    order = np.argsort(seen["cosine"][:, 0], kind="stable")
    ranks = None if pairs is None else [np.asarray(part) for part in _ranks(linear_map, *map(jnp.asarray, pairs))]
    return Measured(
        rows=held_x,
        nearest=numbers[1][seen["nearest"]],
        cosine=seen["cosine"],
        agreement=agreement,
        chance=min(1.0, NUM_NEAREST / y.shape[0]),
        clouds={name: Cloud(*seen[name]) for name in ("before", "null", "after")},
        nearness=Compared(*seen["nearness"]),
        hubs=Compared(*(_count_hubs(nearest, seen["num_bank"]) for nearest in seen["hubs"])),
        ranks=None if ranks is None else ranks[0],
        ranks_back=None if ranks is None else ranks[1],
        regions=find_regions(seen["for_regions"], agreement, numbers, held_x),
        map_agreement=seen["map_agreement"],
        confirmed=confirmed,
        lonely=held_x[order[:10]],
    )


def _file_numbers(num_rows: int, max_rows: int) -> np.ndarray:
    sampled = sampled_rows(num_rows, max_rows)
    return np.arange(num_rows) if sampled is None else sampled


def _count_hubs(nearest: np.ndarray, num_bank: np.ndarray) -> np.ndarray:
    return np.bincount(nearest.ravel(), minlength=int(num_bank))


@jax.jit
def _ranks(linear_map: LinearMap, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    mapped = apply(linear_map, x.astype(linear_map.W.dtype))
    target = center_unit(y, linear_map.target.mean)
    return pair_ranks(mapped, target), pair_ranks(target, mapped)


@functools.partial(jax.jit, static_argnames="num_rows_y")
def _look(linear_map: LinearMap, maps: jax.Array, chosen, x, y, config: Config, *, num_rows_y: int) -> dict[str, Any]:
    """Everything that is computed on a device, by name; the rows of Y after ``num_rows_y`` are padding."""
    prepared = prepare(x, y, config)
    source, target, best = prepared.source.rows, prepared.target.rows, maps[chosen]
    (fitted_x, held_x), (fitted_y, held_y) = (split_rows(rows, config.held_out_rows) for rows in (source, target))
    held_x, held_y = held_x[:MAX_ROWS], held_y[:MAX_ROWS]
    fitted_x, fitted_y = fitted_x[:_BANK_ROWS], fitted_y[:_BANK_ROWS]
    # The map itself, with its own means.
    mapped = apply(linear_map, x.rows[held_x].astype(source.dtype))
    raw_target = center_unit(y.rows.astype(target.dtype), linear_map.target.mean)
    nearest = top_neighbors(mapped, raw_target[:num_rows_y], num_neighbors=NUM_NEAREST)

    def nearest_of(W):
        return top_neighbors(unit_rows(source[held_x] @ W), target[:num_rows_y], num_neighbors=1).index

    found = jax.lax.map(lambda W: (nearest_of(W) == nearest.index).any(axis=1), maps)
    # The best search in the principal directions of the target.
    directions = eigh_descending(target.T @ target)[1]
    signs = jax.random.rademacher(jax.random.key(0), (directions.shape[0],), dtype=target.dtype)
    place = jnp.arange(directions.shape[0])
    kept = jnp.where(place < int(_KEPT * min(source.shape[1], target.shape[1])), 1, signs)[None]
    queries = unit_rows(source[held_x] @ best) @ directions
    bank_x, bank_y = unit_rows(source[fitted_x] @ best) @ directions, target[fitted_y] @ directions
    rows_y = target[held_y] @ directions
    forth = (queries, queries * kept, rows_y)
    # Hubs grow with the number of rows that look for others.
    equal = min(held_x.shape[0], held_y.shape[0])
    near = tuple(nearness(rows, bank_y, num_groups=NUM_NEAREST) for rows in forth)
    near_back = tuple(nearness(rows, bank_x, num_groups=NUM_NEAREST) for rows in (rows_y, rows_y * kept, queries))
    own = eigh_descending(source.T @ source)[1][:, :2]
    ours, theirs = mapped @ directions, (raw_target @ directions)[held_y]
    return {
        "held_x": held_x,
        "nearest": nearest.index[:, :NUM_SHOWN],
        "cosine": nearest.similarity[:, :NUM_SHOWN],
        "found": found,
        "before": ((source[held_x] @ own), theirs[:, :2]),
        "null": ((ours * signs[None])[:, :2], theirs[:, :2]),
        "after": (ours[:, :2], theirs[:, :2]),
        "nearness": near,
        "hubs": tuple(top_neighbors(rows[:equal], bank_y, num_neighbors=NUM_NEAREST).index for rows in forth),
        "num_bank": jnp.asarray(bank_y.shape[0]),
        "map_agreement": _compare_maps(linear_map.W, maps, prepared.fitted, prepared.subspace),
        "for_regions": {
            "target": raw_target,
            "present": present_rows(raw_target),
            "mapped": mapped,
            "held_y": held_y,
            "forth": near,
            "back": near_back,
        },
    }


def _compare_maps(W: jax.Array, maps: jax.Array, fitted: TwoSpaces, subspace: Any) -> jax.Array:
    """Agreement of the map and of all searches in the directions that were searched, without the coarse ones."""
    return fine_agreement(jax.vmap(subspace.restrict)(jnp.concatenate([W[None].astype(maps.dtype), maps])), fitted.x)
