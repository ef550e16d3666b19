"""What a map does to an index: some documents, embedded again by the new encoder, look for themselves among all."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from mv2v_jax.data.scan import read_blocks
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.search import SearchScores, overlaps, partner_ranks, score_search
from mv2v_jax.finish import remembers_lengths
from mv2v_jax.portable import PortableMap
from mv2v_jax.similarity import Metric

# Numbers per block of the index.
_BLOCK_NUMBERS = 2**22


class IndexScores(NamedTuple):
    """How well an index is searched in two ways. ``overlap10`` is among the documents that were embedded again.

    Attributes:
        queries_mapped: the index stays as it is; queries of the new encoder are mapped into it.
        index_moved: all rows of the index are mapped; queries of the new encoder search them as they are.
    """

    queries_mapped: SearchScores
    index_moved: SearchScores


def evaluate_index(
    linear_map: PortableMap,
    index: Any,
    documents: np.ndarray,
    numbers: np.ndarray,
    *,
    metric: Metric = "cosine",
    seed: int = 0,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> IndexScores:
    """Measure an index of the old encoder, searched by documents that the new encoder embedded again.

    Every document is a query whose true partner is its own row of the index.

    Args:
        linear_map: from the old encoder to the new one.
        index: ``[n, d_x]`` raw rows of the old encoder; they are read in blocks.
        documents: ``[q, d_y]`` raw rows of the new encoder.
        numbers: ``[q]``, the row of the index of each document.
        metric: how the index compares rows.
        seed: seed of the bootstrap.
        on_rows: called with the number of rows compared and their number.

    Raises:
        InputError: a number is no row of the index, or is there twice.
    """
    _check_numbers(numbers, len(documents), index.shape[0])
    order = np.argsort(numbers)
    numbers, documents = numbers[order], documents[order].astype(np.float32)
    partners = np.asarray(index[numbers]).astype(np.float32)

    def blocks(first: int, transform: Callable[[np.ndarray], np.ndarray]) -> Iterator[np.ndarray]:
        total = index.shape[0]
        for start, block in read_blocks(index, max(1, _BLOCK_NUMBERS // index.shape[1])):
            yield transform(block.astype(np.float32))
            on_rows(first + start + len(block), 2 * total)

    # What `mv2v apply --metric` writes; a map that remembers no lengths leaves rows as they are.
    of_source, of_target = (metric if remembers_lengths(profile) else "cosine" for profile in linear_map.profiles)

    def move(rows: np.ndarray) -> np.ndarray:
        return linear_map.apply(rows, frame="target", metric=of_target)

    mapped = linear_map.apply(documents, frame="target", inverse=True, metric=of_source)
    moved = move(partners)
    of_mapped = partner_ranks(mapped, partners, blocks(0, lambda rows: rows), metric)
    of_moved = partner_ranks(documents, moved, blocks(index.shape[0], move), metric)
    return IndexScores(
        queries_mapped=score_search(of_mapped, overlaps(mapped, partners, documents, metric), seed),
        index_moved=score_search(of_moved, overlaps(documents, moved, documents, metric), seed),
    )


def _check_numbers(numbers: np.ndarray, num_documents: int, num_rows: int) -> None:
    if numbers.shape != (num_documents,) or not np.issubdtype(numbers.dtype, np.integer):
        raise InputError(
            f"the row numbers must be {num_documents} whole numbers, one per document, found {numbers.dtype} "
            f"{list(numbers.shape)}"
        )
    if num_documents and not (numbers.min() >= 0 and numbers.max() < num_rows):
        raise InputError(f"the row numbers must be from 0 to {num_rows - 1}, found {numbers.min()} to {numbers.max()}")
    if len(np.unique(numbers)) < num_documents:
        raise InputError(f"the row numbers must name each row once, found {len(np.unique(numbers))} different ones")
