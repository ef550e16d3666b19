"""Search scores for people and for JSON, as ``mv2v evaluate`` and ``mv2v evaluate-search`` print them."""

from collections.abc import Mapping

from mv2v_jax.cli.output import print_table
from mv2v_jax.evaluation.search import SearchScores

_NAMES = {
    "recall1": ("recall@1", "share of queries whose true partner is the first result"),
    "recall5": ("recall@5", "share with the partner among the first 5"),
    "recall10": ("recall@10", "share with the partner among the first 10"),
    "ndcg10": ("nDCG@10", "mean of 1 / log2(1 + rank of the partner), 0 beyond rank 10; 1 is perfect"),
    "overlap10": ("overlap@10", "share of the 10 results of a search without a map that are among the 10 found"),
}


def print_scores(scores: Mapping[str, SearchScores]) -> None:
    """A table with one column per way to search, each with its 95 % interval."""
    rows = [
        [name, *(str(getattr(each, field)) for each in scores.values()), note] for field, (name, note) in _NAMES.items()
    ]
    print_table(["score (95 % interval)", *scores, "meaning"], rows, notes=True)


def scores_as_json(scores: SearchScores) -> dict[str, list[float]]:
    """Value, lower and upper bound by the names of `SearchScores`."""
    return {name: list(getattr(scores, name)) for name in _NAMES}
