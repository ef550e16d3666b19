"""``mv2v apply``: map rows of any number from a file to a file."""

from pathlib import Path

import click

from mv2v_jax.alignment.score import Verdict
from mv2v_jax.cli.help import Command
from mv2v_jax.cli.options import flag, option, output_option
from mv2v_jax.cli.output import print_text, progress_bar
from mv2v_jax.cli.shared import check_output, load_rows
from mv2v_jax.data.formats import file_of
from mv2v_jax.data.map_file import load_map
from mv2v_jax.frame import Frame
from mv2v_jax.linear_map import invert
from mv2v_jax.runs.apply_shards import apply_to_file, source_files


@click.command(
    "apply",
    cls=Command,
    arguments={
        "MAP": "Map that mv2v align or mv2v stability wrote.",
        "X": "Embeddings of the source encoder, one per row: a file or a folder of .npy shards.",
    },
    examples=[
        "mv2v apply map.safetensors x.npy -o mapped.npy",
        "# Comparable by cosine with the raw vectors of the target encoder.",
        "mv2v apply map.safetensors x.npy -o mapped.npy --frame target",
        "# From the target space back to the source space.",
        "mv2v apply map.safetensors y.npy -o back.npy --inverse",
    ],
)
@click.argument("map_file", metavar="MAP")
@click.argument("x_file", metavar="X")
@output_option("File to write the mapped rows to, in the .npy format.")
@option(
    "--frame",
    type=click.Choice(["centred", "target"]),
    default="centred",
    show_default=True,
    help="Coordinates of the mapped rows. centred: mean removed, unit length. target: comparable by cosine with raw "
    "vectors of the target encoder.",
)
@flag("--inverse", help="Map rows of the target space back into the source space.")
@flag("--resume", help="Continue an earlier run with the same map and X that was interrupted.")
@flag("--accept", help="Accept the map whatever its verdict: no warning is printed.")
def apply_command(
    map_file: str, x_file: str, output: Path, frame: Frame, inverse: bool, resume: bool, accept: bool
) -> None:
    """Map the rows of X into the space of Y.

    X may have any number of rows; the output has the dtype of X. A killed run continues with --resume and ends with
    the same file.
    """
    check_output(output, ".npy", map_file, x_file)
    linear_map, metadata = load_map(map_file)
    if inverse:
        linear_map = invert(linear_map)
    d_x, d_y = linear_map.W.shape
    x = load_rows(x_file, d_x, f"{map_file}{' inverted' if inverse else ''}")
    n = x.shape[0]
    with progress_bar() as on_step:
        source = source_files(file_of(x_file), x)
        done = apply_to_file(linear_map, x, source, output, x_file, frame=frame, resume=resume, on_step=on_step)
    verdict = metadata.get("verdict", Verdict.aligned.name)
    if verdict != Verdict.aligned.name and not accept:
        print_text(
            f"Warning: the fit of {map_file} was judged {verdict}; mv2v info {map_file} shows why.", to_stderr=True
        )
    kept = f", {n - done.num_mapped:,} of them from an earlier run" if done.num_mapped < n else ""
    speed = f"{done.num_mapped / done.seconds:,.0f} rows per second"
    print_text(f"{n:,} rows{kept}, {d_x} to {d_y} dimensions, {frame}, {speed}: {output}")
