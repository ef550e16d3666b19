"""Compare a moved collection with its source."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.errors import InputError
from mv2v_jax.progress import OnStep
from mv2v_jax.similarity import paired_similarities, similarities
from mv2v_jax.stores.protocol import Batch, Description, ReadStore, Store

_BATCH_ROWS = 4096
# Rows whose vectors and payloads are compared, and those that are searched for.
_SAMPLE, _QUERIES, _NEIGHBORS = 200, 50, 10
# Vectors whose directions differ more than by rounding to float16 are wrong.
_MIN_COSINE = 0.999


class Checked(NamedTuple):
    """What was found when both collections were compared.

    Attributes:
        rows: number of rows, the same in both.
        sampled: number of rows whose vectors and payloads were compared.
        recall: share of the ten nearest rows that a search in the new collection finds; ``None`` without ids.
    """

    rows: int
    sampled: int
    recall: float | None


def compare(
    source: ReadStore, described: Description, target: Store, mapper: Callable[[Batch], Batch], on_step: OnStep
) -> Checked:
    """Compare a moved collection with its source: number of rows, ids, vectors and payloads of a sample, and searches.

    Raises:
        InputError: they differ.
    """
    count = target.count()
    if count != described.count:
        raise InputError(
            f"{target.name} must hold the {described.count:,} rows of {source.name}, found {count:,}; do ids occur "
            "twice, or was the source changed meanwhile"
        )
    ids, sample = _read_ids(source)
    if ids != _read_ids(target)[0] and described.id_name is not None:
        raise InputError(f"{target.name} must hold the ids of {source.name}, found others; was the source changed")
    taken = source.take(sample)
    wanted, found = mapper(taken), target.take(sample)
    cosines = paired_similarities(wanted.vectors.astype(np.float32), found.vectors.astype(np.float32), "cosine")
    if cosines.min() < _MIN_COSINE:
        worst = sample[int(cosines.argmin())]
        raise InputError(f"{target.name} must hold the mapped vector at id {worst!r}, found another")
    _compare_payloads(taken, found, target.name)
    if described.id_name is None:
        return Checked(rows=count, sampled=len(sample), recall=None)
    recall = _measure_recall(target, wanted.vectors[:_QUERIES], described, on_step)
    return Checked(rows=count, sampled=len(sample), recall=recall)


def _read_ids(store: ReadStore) -> tuple[tuple[int, int], list[Any]]:
    """A sum of hashes of all ids that does not depend on their order, their number, and ids drawn from all."""
    total, count, sample = 0, 0, []
    for ids in store.read_ids():
        for key in ids:
            hashed = int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "big")
            total = (total + hashed) % 2**64
            sample.append((hashed, key))
        count += len(ids)
        # The smallest hashes are a random sample that both collections agree on.
        sample = sorted(sample, key=lambda pair: pair[0])[:_SAMPLE]
    return (total, count), [key for _, key in sample]


def _compare_payloads(taken: Batch, found: Batch, name: str) -> None:
    for key, old, new in zip(taken.ids, taken.dicts(), found.dicts(), strict=True):
        new = new.get("payload", new) if "payload" not in old else new
        lost = [field for field, value in old.items() if not _same(value, new.get(field))]
        if lost:
            raise InputError(f"{name} must hold the payload of id {key!r}, found another {lost[0]}")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else one == other or str(one) == str(other)


def _measure_recall(target: Store, queries: np.ndarray, described: Description, on_step: OnStep) -> float:
    """Share of the nearest rows, found by comparing with all, that a search finds."""
    k = min(_NEIGHBORS, described.count)
    best_scores = np.full((len(queries), 0), 0.0)
    best_ids: list[list[str]] = [[] for _ in queries]
    seen = 0
    for batch in target.read(_BATCH_ROWS):
        scores = similarities(queries.astype(np.float32), batch.vectors.astype(np.float32), described.compares_by)
        names = [str(key) for key in batch.ids]
        joined = np.concatenate([best_scores, scores], axis=1)
        order = np.argsort(-joined, axis=1, kind="stable")[:, :k]
        best_ids = [[(old + names)[place] for place in row] for old, row in zip(best_ids, order.tolist(), strict=True)]
        best_scores = np.take_along_axis(joined, order, axis=1)
        seen += len(names)
        on_step("rows checked", seen, described.count)
    found = target.search(queries, k)
    hits = sum(len(set(map(str, one)) & set(other)) for one, other in zip(found, best_ids, strict=True))
    return hits / (k * len(queries))
