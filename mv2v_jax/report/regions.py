"""Regions of the target space: how many rows land in each, how near, and on how many the searches agree."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mv2v_jax.ops.kmeans import kmeans

_NUM_REGIONS, _NUM_STEPS, _FITTED_ROWS = 12, 20, 8_192
# Closeness is the mean over the held-out rows of a region; of fewer it would be noise.
_MIN_ROWS = 10
# The scale from null to within is at least this long, as that of the score.
_SHORTEST_ROOM = 0.02
_NUM_WORDS, _MIN_COUNT, _MIN_RATIO = 4, 3, 3


class Regions(NamedTuple):
    """Regions of the target, the most populous first.

    Attributes:
        share_y: ``[c]``, share of the rows of Y in each.
        share_x: ``[c]``, share of the held-out rows of X that the map brings there.
        closeness: ``[c]``, how close held-out rows come to the other space, 0 for the null, 1 for rows of one space;
            NaN where there are too few.
        agreement: ``[c]``, mean agreement of its rows of X; NaN where there are none, ``None`` where it is unknown.
        region_x: ``[h]``, the region of each held-out row of X.
        members: per region, the numbers of its rows of Y.
    """

    share_y: np.ndarray
    share_x: np.ndarray
    closeness: np.ndarray
    agreement: np.ndarray | None
    region_x: np.ndarray
    members: list[np.ndarray]


@jax.jit
def _assign(target: jax.Array, mapped: jax.Array) -> tuple[jax.Array, jax.Array]:
    centers = kmeans(
        jax.random.key(0), target[:_FITTED_ROWS], num_clusters=min(_NUM_REGIONS, target.shape[0]), num_steps=_NUM_STEPS
    ).centers
    squared = jnp.sum(centers**2, axis=1)[None]
    of_y, of_x = (jnp.argmax(2 * rows @ centers.T - squared, axis=1) for rows in (target, mapped))
    return of_y, of_x


def find_regions(seen: dict[str, Any], agreement: np.ndarray | None, numbers: list[np.ndarray], held_x: np.ndarray):
    """Cluster the target and measure each cluster.

    Args:
        seen: what `measure` computed about rows, by name.
        agreement: ``[h]``, agreement on each held-out row of X, if known.
        numbers: of the rows of X and of Y in their files.
        held_x: ``[h]``, numbers of the held-out rows of X.
    """
    of_y, of_x = (np.asarray(part) for part in _assign(seen["target"], seen["mapped"]))
    held_y = of_y[seen["held_y"]]
    is_row = np.asarray(seen["present"])[: len(numbers[1])]
    of_y = np.where(is_row, of_y[: len(numbers[1])], -1)
    counts = np.bincount(of_y[of_y >= 0], minlength=_NUM_REGIONS)
    order = [region for region in np.argsort(-counts, kind="stable") if counts[region]]
    closeness = [_closeness(seen, of_x == region, held_y == region) for region in order]
    return Regions(
        share_y=np.array([counts[region] / counts.sum() for region in order]),
        share_x=np.array([(of_x == region).mean() for region in order]),
        closeness=np.array(closeness),
        agreement=None if agreement is None else np.array([_mean(agreement[of_x == region]) for region in order]),
        region_x=np.array([order.index(region) if region in order else -1 for region in of_x]),
        members=[numbers[1][of_y == region] for region in order],
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _closeness(seen: dict[str, Any], of_x: np.ndarray, of_y: np.ndarray) -> float:
    if of_x.sum() + of_y.sum() < _MIN_ROWS:
        return math.nan
    # Within a space the rows that look for others are those of the other side: of Y among Y, and of X among X.
    sides = ((of_x, of_y), (of_x, of_y), (of_y, of_x))
    mapped, null, within = (
        np.concatenate([forth[looking], back[looking_back]]).mean()
        for forth, back, (looking, looking_back) in zip(seen["forth"], seen["back"], sides, strict=True)
    )
    return float((mapped - null) / max(within - null, _SHORTEST_ROOM))


def name_regions(regions: Regions, texts: Sequence[str] | None) -> list[str]:
    """A name for each region: the words that are more frequent in it than elsewhere, or its number without texts.

    Example:
        >>> nowhere = np.zeros(2)
        >>> members = [np.array([0, 1, 2]), np.array([3, 4, 5])]
        >>> regions = Regions(nowhere, nowhere, nowhere, None, nowhere, members)
        >>> name_regions(regions, ["red wine", "old wine", "wine", "a tall tree", "the tree", "tree"])
        ['wine', 'tree']
    """
    if texts is None:
        return [f"region {number + 1}" for number in range(len(regions.members))]
    counts = [Counter(word for row in rows for word in _words(texts[row])) for rows in regions.members]
    total = sum(counts, Counter())
    names = []
    for number, count in enumerate(counts):
        size = len(regions.members[number])
        others = max(1, sum(map(len, regions.members)) - size)

        def weight(word: str, count: Counter = count, size: int = size, others: int = others) -> float:
            here, there = count[word] / size, (total[word] - count[word] + 1) / others
            return here * math.log(here / there)

        # Words of grammar are frequent everywhere.
        candidates = [
            word
            for word in count
            if count[word] >= _MIN_COUNT and count[word] * others > _MIN_RATIO * size * (total[word] - count[word])
        ]
        words = sorted(candidates, key=lambda word: (-weight(word), word))[:_NUM_WORDS]
        names.append(", ".join(words) or f"region {number + 1}")
    return names


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{3,}", text.lower()))
