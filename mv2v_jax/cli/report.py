"""``mv2v report``: write a page that shows whether a map works and where."""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from mv2v_jax.alignment.score import INDEX_SIZE
from mv2v_jax.alignment.stage_by_stage import expected_stages
from mv2v_jax.cli.help import Command
from mv2v_jax.cli.options import (
    Decorator,
    column_option,
    count,
    json_option,
    option,
    output_option,
    seed_option,
    text_column_option,
)
from mv2v_jax.cli.output import print_text, progress_bar
from mv2v_jax.cli.report_page import Files, make_heading
from mv2v_jax.cli.shared import check_output, check_row_shape, load_rows, read_rows
from mv2v_jax.cli.verdict_text import read_facts
from mv2v_jax.config import PRESETS, Config
from mv2v_jax.data.checks import check_paired, check_values
from mv2v_jax.data.map_file import load_map
from mv2v_jax.data.texts import load_texts
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.report.measure import Measured, measure
from mv2v_jax.report.page import Heading, Texts, write_page
from mv2v_jax.report.pictures import check_bokeh
from mv2v_jax.report.searches import search_again
from mv2v_jax.stores.sources import load_texts_beside

# The rows of X and of Y.
Sides = tuple[Any, Any]
_PAGE_SUFFIXES = (".html", ".htm")


def texts_option(side: str) -> Decorator:
    """The texts of one file of rows, for a report."""
    return option(
        f"--texts-{side}",
        metavar="FILE",
        help=f"Texts of the rows of {side.upper()}, for the report: a .txt file with one per line, or a .json or "
        ".json.gz file with a list.",
    )


@click.command(
    "report",
    cls=Command,
    arguments={
        "MAP": "Map that mv2v align or mv2v stability wrote.",
        "X": "Embeddings of the source encoder, best those that the map was fitted on.",
        "Y": "Embeddings of the target encoder, likewise.",
    },
    examples=[
        "mv2v report map.safetensors x.npy y.npy -o report.html",
        "# With texts to read instead of row numbers.",
        "mv2v report map.safetensors x.npy y.npy --texts-x x.txt -o report.html",
    ],
)
@click.argument("map_file", metavar="MAP")
@click.argument("x_file", metavar="X")
@click.argument("y_file", metavar="Y")
@output_option("File to write the page to, in HTML. It loads nothing from anywhere.")
@texts_option("x")
@texts_option("y")
@option(
    "--pairs",
    nargs=2,
    metavar="PX PY",
    help="Two files of true pairs that the map is judged on: row i of PX, in the space of X, and row i of PY, in the "
    "space of Y, belong together.",
)
@column_option
@text_column_option
@count(
    "--index-size",
    type=click.IntRange(1, 10**12),
    help=f"Number of rows of the index that recall is estimated for. By default {INDEX_SIZE:,}.",
)
@count(
    "--searches",
    type=click.IntRange(1, 1_000),
    default=4,
    show_default=True,
    help="Number of new searches that the map is compared with.",
)
@option(
    "--preset",
    metavar="NAME",
    type=click.Choice(PRESETS),
    default="fast",
    show_default=True,
    help="Preset of the new searches.",
)
@seed_option
@json_option("Print one JSON line on standard output instead of text.")
def report_command(
    map_file: str,
    x_file: str,
    y_file: str,
    output: Path,
    texts_x: str | None,
    texts_y: str | None,
    pairs: tuple[str, str] | None,
    column: str | None,
    text_column: str | None,
    index_size: int | None,
    searches: int,
    preset: str,
    seed: int,
    as_json: bool,
) -> None:
    """Write a page that shows whether a map works and where.

    A few new searches of X and Y are made, which have not seen some held-out rows. Where they find the same neighbours
    as the map, it can be trusted; where they do not, it cannot.
    """
    linear_map, metadata = load_map(map_file)
    check_page(output, map_file, x_file, y_file, *(pairs or ()), texts_x, texts_y)
    config = Config.preset(preset)
    (x, of_x), (y, of_y) = (read_rows(file, config, column) for file in (x_file, y_file))
    for file, rows, size in ((x_file, x, linear_map.W.shape[0]), (y_file, y, linear_map.W.shape[1])):
        check_row_shape(rows, file, size, map_file)
    texts = read_texts((texts_x, texts_y), (x_file, y_file), (x, y), column, text_column)
    true_pairs = None if pairs is None else _read_true_pairs(pairs, linear_map, map_file)
    expected = expected_stages(config, min(x.shape[0], y.shape[0]), searches, num_settled=0)
    # A search is not finished as a fit is.
    del expected["polish"], expected["finish"]
    with progress_bar(expected) as on_step:
        found = search_again(x, y, config, seed, searches, on_step)
    measured = measure(linear_map, x, y, config, found, true_pairs)
    facts = read_facts(metadata) | ({} if index_size is None else {"index_size": index_size})
    cautions = []
    if any(
        facts.get(name, digest) != digest for name, digest in (("digest_x", of_x.digest), ("digest_y", of_y.digest))
    ):
        cautions.append("X or Y is not the file that this map was fitted on, or it has changed since.")
    if "pairs" in facts:
        cautions.append(f"This map was fitted with {facts['pairs']} known pairs. The searches of this page had none.")
    heading = make_heading(facts, measured, found, Files(x_file, y_file, Path(map_file)), cautions)
    write_page(output, heading, measured, found, texts)
    if as_json:
        print(json.dumps(_summarize(heading, measured)))
    else:
        print_text(f"{heading.word}. {' '.join(heading.sentences)}")
        for caution in heading.cautions:
            print_text(f"Note: {caution}")
        print_text(f"written: {output}")


def _summarize(heading: Heading, measured: Measured) -> dict[str, Any]:
    """What programs read."""
    agreement = measured.agreement
    return {
        "light": heading.light,
        "held_out_rows": len(measured.rows),
        "row_agreement": None if agreement is None else float(agreement.mean()),
        "chance_agreement": measured.chance,
        "map_agreement": measured.confirmed,
        "top1": None if measured.ranks is None else float((measured.ranks <= 1).mean()),
    }


def check_page(output: Path, *sources: str | None) -> None:
    """Raise `InputError` if a report cannot be drawn or written, before the work that it shows."""
    check_bokeh()
    check_output(output, _PAGE_SUFFIXES, *(source for source in sources if source is not None))


def read_texts(
    files: tuple[str | None, str | None], sources: tuple[str, str], sides: Sides, column: str | None, named: str | None
) -> Texts:
    """The texts of both sides: from ``files``, or else from the column of their sources that is ``named``, if any."""
    return Texts(
        *(
            load_texts_beside(source, column, named) if file is None else load_texts(file, rows.shape[0])
            for file, source, rows in zip(files, sources, sides, strict=True)
        )
    )


def _read_true_pairs(files: tuple[str, str], linear_map: LinearMap, map_file: str) -> tuple[np.ndarray, np.ndarray]:
    sides = []
    for file, size in zip(files, linear_map.W.shape, strict=True):
        rows = load_rows(file, size, map_file)
        check_values(rows, file)
        sides.append(np.asarray(rows))
    check_paired(sides[0], sides[1], files)
    return sides[0], sides[1]
