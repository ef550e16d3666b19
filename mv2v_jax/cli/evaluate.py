"""``mv2v evaluate``: measure a map on true pairs."""

import dataclasses
import json
from typing import Any

import click
import jax.numpy as jnp
import numpy as np

from mv2v_jax.cli.help import Command
from mv2v_jax.cli.options import column_option, id_column_option, json_option
from mv2v_jax.cli.output import print_table, print_text
from mv2v_jax.cli.search_text import print_scores, scores_as_json
from mv2v_jax.cli.shared import check_row_shape, load_rows
from mv2v_jax.data.checks import check_values
from mv2v_jax.data.map_file import load_map
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import Metrics, evaluate
from mv2v_jax.evaluation.search import evaluate_search
from mv2v_jax.linear_map import LinearMap, invert
from mv2v_jax.stores.sources import load_with_ids
from mv2v_jax.tables.ids import match_ids

METRIC_NOTES = {
    "top1": "share of rows whose true partner is the most similar row",
    "top5": "share with the partner among the 5 most similar rows",
    "top10": "share with the partner among the 10 most similar rows",
    "mean_rank": "mean rank of the true partner; 1 is perfect",
    "mrr": "mean of 1 / rank; 1 is perfect",
    "foscttm": "share of rows closer than the true partner; 0 is perfect, 0.5 is chance",
    "cosine": "mean cosine of the true pairs",
}


def score_map(linear_map: LinearMap, x: Any, y: Any) -> dict[str, float]:
    """Scores of a map on true pairs, by the names of `Metrics`."""
    scores = evaluate(linear_map, jnp.asarray(x), jnp.asarray(y))
    return {field.name: float(getattr(scores, field.name)) for field in dataclasses.fields(Metrics)}


def _load_matched(
    sides: list[tuple[str, str]], linear_map: LinearMap, column: str | None, id_column: str
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both files that have an id in common."""
    (x, x_ids), (y, y_ids) = (load_with_ids(file, column, id_column) for file, _ in sides)
    for rows, (file, wanted_by), d in zip((x, y), sides, linear_map.W.shape, strict=True):
        check_row_shape(rows, file, d, wanted_by)
    in_x, in_y = match_ids(x_ids, y_ids, (sides[0][0], sides[1][0]))
    return x[in_x], y[in_y]


@click.command(
    "evaluate",
    cls=Command,
    arguments={
        "MAP": "Map that mv2v align or mv2v stability wrote.",
        "X_EVAL": "Embeddings of the source encoder, of texts that no fit has seen.",
        "Y_EVAL": "Embeddings of the same texts by the target encoder, in the same order.",
    },
    examples=["mv2v evaluate map.safetensors x_eval.npy y_eval.npy"],
)
@click.argument("map_file", metavar="MAP")
@click.argument("x_file", metavar="X_EVAL")
@click.argument("y_file", metavar="Y_EVAL")
@column_option
@id_column_option
@json_option("Print one JSON line on standard output instead of a table.")
def evaluate_command(
    map_file: str, x_file: str, y_file: str, column: str | None, id_column: str | None, as_json: bool
) -> None:
    """Measure a map on true pairs.

    Row i of X_EVAL and row i of Y_EVAL belong together; with --id-column, rows with the same id do. Each mapped row is
    compared with all rows of Y_EVAL, and the other way round. Intervals are bootstrap intervals over the rows.
    """
    linear_map, _ = load_map(map_file)
    sides = [(x_file, f"the source of {map_file}"), (y_file, f"the target of {map_file}")]
    if id_column is None:
        loaded = zip(sides, linear_map.W.shape, strict=True)
        x, y = (load_rows(file, d, wanted_by, column) for (file, wanted_by), d in loaded)
    else:
        x, y = _load_matched(sides, linear_map, column, id_column)
    for rows, source in ((x, x_file), (y, y_file)):
        check_values(rows, source)
    if x.shape[0] != y.shape[0]:
        raise InputError(
            f"{y_file} must have a row for each of the {x.shape[0]} of {x_file}, found {y.shape[0]}; give true pairs, "
            "row i of one file the partner of row i of the other"
        )
    scores = score_map(linear_map, x, y)
    there, back = evaluate_search(linear_map, x, y), evaluate_search(invert(linear_map), y, x)
    if as_json:
        searches = {"search": scores_as_json(there), "search_back": scores_as_json(back)}
        print(json.dumps({**scores, "n": x.shape[0], **searches}))
        return
    print_text(
        f"{scores['top1']:.1%} of {x.shape[0]:,} mapped rows find their true partner first; by chance it would be "
        f"{1 / x.shape[0]:.2%}."
    )
    print_scores({"X to Y": there, "Y to X": back})
    print_table(
        ["score", "value", "meaning"],
        [[name, value, METRIC_NOTES[name]] for name, value in scores.items() if not name.startswith("top")],
        notes=True,
    )
