"""``mv2v evaluate-search``: measure what a map does to an index, from some documents that were embedded again."""

import json

import click
import numpy as np

from mv2v_jax.cli.guard import guard_rows, strict_option
from mv2v_jax.cli.help import Command
from mv2v_jax.cli.options import column_option, json_option, option
from mv2v_jax.cli.output import print_text, progress_bar
from mv2v_jax.cli.search_text import print_scores, scores_as_json
from mv2v_jax.cli.shared import load_rows
from mv2v_jax.data.checks import check_values
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.index_search import evaluate_index
from mv2v_jax.portable import load
from mv2v_jax.similarity import Metric


@click.command(
    "evaluate-search",
    cls=Command,
    arguments={
        "MAP": "Map from the encoder of the index to the new encoder.",
        "INDEX": "Embeddings in the index, by the encoder of the source.",
        "DOCS": "Embeddings of some of its documents by the encoder of the target. A few hundred are enough.",
    },
    examples=[
        "mv2v evaluate-search map.safetensors index.npy docs.npy",
        "# For an index that compares by squared distance.",
        "mv2v evaluate-search map.safetensors index.npy docs.npy --metric l2",
    ],
)
@click.argument("map_file", metavar="MAP")
@click.argument("index_file", metavar="INDEX")
@click.argument("docs_file", metavar="DOCS")
@option(
    "--rows",
    "rows_file",
    metavar="FILE",
    help="File of whole numbers, from 0: the row of INDEX of each row of DOCS. By default DOCS are the first rows of "
    "INDEX, in order.",
)
@option(
    "--metric",
    type=click.Choice(["cosine", "dot", "l2"]),
    default="cosine",
    show_default=True,
    help="How the index compares rows.",
)
@column_option
@strict_option
@json_option("Print one JSON line on standard output instead of a table.")
def evaluate_search_command(
    map_file: str,
    index_file: str,
    docs_file: str,
    rows_file: str | None,
    metric: Metric,
    column: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Measure how an index is searched with a map, before anything is written.

    Every row of DOCS looks for its own row among all rows of INDEX, in both ways to use a map: queries are mapped and
    the index stays as it is, or the index is moved. overlap@10 compares with a search of DOCS by DOCS.
    """
    linear_map = load(map_file)
    d_x, d_y = linear_map.W.shape
    index = load_rows(index_file, d_x, f"the source of {map_file}", column)
    docs = np.asarray(load_rows(docs_file, d_y, f"the target of {map_file}", column))
    check_values(index, index_file)
    check_values(docs, docs_file)
    guard_rows(linear_map.profiles, map_file, index, index_file, inverse=False, strict=strict)
    guard_rows(linear_map.profiles, map_file, docs, docs_file, inverse=True, strict=strict)
    if len(docs) > index.shape[0]:
        raise InputError(f"{docs_file} must be documents of {index_file}, found {len(docs)} of {index.shape[0]} rows")
    numbers = np.arange(len(docs)) if rows_file is None else _read_numbers(rows_file)
    with progress_bar() as on_step:
        scores = evaluate_index(
            linear_map, index, docs, numbers, metric=metric, on_rows=lambda done, n: on_step("rows searched", done, n)
        )
    if as_json:
        facts = {"n": index.shape[0], "documents": len(docs), "metric": metric}
        print(json.dumps({**facts, **{name: scores_as_json(each) for name, each in scores._asdict().items()}}))
        return
    print_text(
        f"{len(docs):,} documents look for their own row among {index.shape[0]:,}, by {metric}; by chance "
        f"{1 / index.shape[0]:.2%} would find it first."
    )
    print_scores({"queries mapped": scores.queries_mapped, "index moved": scores.index_moved})


def _read_numbers(file: str) -> np.ndarray:
    try:
        return np.load(file, allow_pickle=False)
    except Exception as error:
        # NumPy evaluates the header, which can raise anything.
        found = "no such file" if isinstance(error, FileNotFoundError) else "another kind of file"
        raise InputError(f"--rows must be a .npy file of whole numbers, found {found}: {file}") from error
