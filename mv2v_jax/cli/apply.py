"""``mv2v apply``: map rows of any number from a file to a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mv2v_jax.alignment.score import Verdict
from mv2v_jax.cli.guard import guard_rows, strict_option
from mv2v_jax.cli.help import Command
from mv2v_jax.cli.lengths import dims_option, metric_option, warn_of_lengths
from mv2v_jax.cli.options import column_option, flag, id_column_option, option, output_option, text_column_option
from mv2v_jax.cli.output import print_text, progress_bar
from mv2v_jax.cli.shared import check_output, load_rows
from mv2v_jax.data.map_file import load_map
from mv2v_jax.data.map_tensors import read_profiles
from mv2v_jax.errors import InputError
from mv2v_jax.finish import Finish, make_finish
from mv2v_jax.frame import Frame
from mv2v_jax.linear_map import LinearMap, invert
from mv2v_jax.portable.numpy_map import from_map
from mv2v_jax.runs.apply_shards import Applied, apply_to_file, source_files
from mv2v_jax.runs.map_batches import apply_to_table
from mv2v_jax.similarity import Metric
from mv2v_jax.stores.address import parse_address
from mv2v_jax.stores.sources import files_of, open_source
from mv2v_jax.tables import write

Guard = Callable[[Any], None]


@click.command(
    "apply",
    cls=Command,
    arguments={
        "MAP": "Map that mv2v align or mv2v stability wrote.",
        "X": "Embeddings of the source encoder, one per row: a file, a folder, a table or a store.",
    },
    examples=[
        "mv2v apply map.safetensors x.npy -o mapped.npy",
        "# Comparable by cosine with the raw vectors of the target encoder.",
        "mv2v apply map.safetensors x.npy -o mapped.npy --frame target",
        "# For an index that compares by dot product.",
        "mv2v apply map.safetensors x.npy -o mapped.npy --metric dot",
        "# From the target space back to the source space.",
        "mv2v apply map.safetensors y.npy -o back.npy --inverse",
    ],
)
@click.argument("map_file", metavar="MAP")
@click.argument("x_file", metavar="X")
@output_option(
    "File to write the mapped rows to: .npy, or a table in .parquet, .arrow or .feather, which keeps the other columns "
    "of X."
)
@option(
    "--frame",
    type=click.Choice(["centred", "target"]),
    show_default="centred; target with --metric dot or l2",
    help="Coordinates of the mapped rows. centred: mean removed, unit length. target: comparable by cosine with raw "
    "vectors of the target encoder.",
)
@metric_option
@dims_option
@column_option
@id_column_option
@text_column_option
@flag("--inverse", help="Map rows of the target space back into the source space.")
@strict_option
@flag("--resume", help="Continue an earlier run with the same map and X that was interrupted.")
@flag("--accept", help="Accept the map whatever its verdict: no warning is printed.")
def apply_command(
    map_file: str,
    x_file: str,
    output: Path,
    frame: Frame | None,
    metric: Metric,
    dims: int | None,
    column: str | None,
    id_column: str | None,
    text_column: str | None,
    inverse: bool,
    strict: bool,
    resume: bool,
    accept: bool,
) -> None:
    """Map the rows of X into the space of Y.

    X may have any number of rows; the output has the dtype of X. A killed run continues with --resume and ends with
    the same file.
    """
    check_output(output, (".npy", *write.SUFFIXES), map_file, x_file)
    linear_map, metadata = load_map(map_file)
    profiles = read_profiles(Path(map_file))
    profile = profiles[0 if inverse else 1]
    if inverse:
        linear_map = invert(linear_map)
    d_x, d_y = linear_map.W.shape
    frame = frame or ("centred" if metric == "cosine" else "target")
    finish = make_finish(frame, metric, dims, profile, d_y, f"{map_file}; fit it again")

    def guard(rows: Any) -> None:
        guard_rows(profiles, map_file, rows, x_file, inverse=inverse, strict=strict)
        warn_of_lengths(profile, metric, rows, x_file)

    if output.suffix.lower() in write.SUFFIXES:
        columns = {"vector": column, "id": id_column, "text": text_column}
        n, done = _write_table(linear_map, x_file, columns, output, finish, resume, guard)
    else:
        wanted_by = f"{map_file}{' inverted' if inverse else ''}"
        n, done = _write_array(linear_map, x_file, column, output, finish, resume, wanted_by, guard)
    verdict = metadata.get("verdict", Verdict.aligned.name)
    if verdict != Verdict.aligned.name and not accept:
        print_text(
            f"Warning: the fit of {map_file} was judged {verdict}; mv2v info {map_file} shows why.", to_stderr=True
        )
    kept = f", {n - done.num_mapped:,} of them from an earlier run" if done.num_mapped < n else ""
    described = finish.frame if metric == "cosine" else f"{finish.frame} for {metric}"
    speed = f"{done.num_mapped / done.seconds:,.0f} rows per second"
    print_text(f"{n:,} rows{kept}, {d_x} to {dims or d_y} dimensions, {described}, {speed}: {output}")


def _write_array(
    linear_map: LinearMap,
    x_file: str,
    column: str | None,
    output: Path,
    finish: Finish,
    resume: bool,
    wanted_by: str,
    guard: Guard,
) -> tuple[int, Applied]:
    """Write .npy; the number of rows and what was done."""
    x = load_rows(x_file, linear_map.W.shape[0], wanted_by, column)
    guard(x)
    source = source_files(next(iter(files_of(x_file)), Path()), x)
    with progress_bar() as on_step:
        done = apply_to_file(linear_map, x, source, output, x_file, finish=finish, resume=resume, on_step=on_step)
    return x.shape[0], done


def _write_table(
    linear_map: LinearMap,
    x_file: str,
    columns: dict[str, str | None],
    output: Path,
    finish: Finish,
    resume: bool,
    guard: Guard,
) -> tuple[int, Applied]:
    """Write a table; the number of rows and what was done."""
    if resume:
        raise InputError(f"--resume continues a .npy file only, found {output}; leave --resume out, or write .npy")
    source = open_source(parse_address(x_file, **columns))
    first, _ = next(source.batches(), (None, None))
    if first is not None and first.shape[1] == linear_map.W.shape[0]:
        guard(first)
    with progress_bar() as on_step:
        done = apply_to_table(from_map(linear_map), source, output, finish=finish, on_step=on_step)
    return done.num_mapped, done
