"""``mv2v stability``: search many times, compare the maps, and write a folder with the result."""

import json
from pathlib import Path
from typing import Any

import click

from mv2v_jax.alignment.score import Verdict
from mv2v_jax.cli.help import Command
from mv2v_jax.cli.options import (
    Devices,
    accept_option,
    column_option,
    count,
    flag,
    json_option,
    option,
    output_option,
    pairs_option,
    preset_option,
    seed_option,
    settled_option,
    with_config,
    with_devices,
)
from mv2v_jax.cli.output import print_command, print_table, print_text, progress_bar
from mv2v_jax.cli.shared import lay_out, read_pairs, read_rows
from mv2v_jax.cli.verdict_text import NOT_ALIGNED_EXIT, describe_verdict
from mv2v_jax.config import Config
from mv2v_jax.data.output_paths import check_apart
from mv2v_jax.errors import InputError
from mv2v_jax.ops.sharding import RESTART, is_first
from mv2v_jax.runs.processes import all_or_none, check_same
from mv2v_jax.runs.study import Plan, Study, run_study, write_study
from mv2v_jax.runs.study_plots import check_plotting, plot_study
from mv2v_jax.stores.sources import files_of

# An interruption loses at most this number of restarts per device.
_CHUNK = 8
# Basins that are printed; all of them are in the files.
_MAX_BASINS = 10


@click.command(
    "stability",
    cls=Command,
    arguments={
        "X": "Embeddings of the source encoder, one per row: a file or a folder of .npy shards.",
        "Y": "Embeddings of the target encoder. No row of Y needs a partner in X.",
    },
    examples=[
        "mv2v stability x.npy y.npy -o study",
        "# Continue after an interruption, on all devices.",
        "mv2v stability x.npy y.npy -o study --restarts 256 --all-devices --resume",
    ],
)
@click.argument("x_file", metavar="X")
@click.argument("y_file", metavar="Y")
@output_option("Folder to write the study to, made if it is missing.")
@preset_option
@seed_option
@count(
    "--restarts",
    type=click.IntRange(2, 100_000),
    default=32,
    show_default=True,
    help="Number of searches on all rows.",
)
@settled_option(8)
@pairs_option
@column_option
@flag("--resume", help="Continue the study in the folder. Its finished files are kept.")
@option(
    "--plots/--no-plots",
    default=True,
    show_default=True,
    help="Whether to write pictures as well, which needs matplotlib.",
)
@json_option("Print one JSON line on standard output instead of text and tables.")
@count(
    "--chunk",
    type=click.IntRange(1, 100_000),
    section="Plan of the study",
    help="Number of restarts per file; an interruption loses one file at most. By default 8 for each device over which "
    "restarts are distributed.",
)
@option(
    "--sizes",
    metavar="N,N,...",
    section="Plan of the study",
    help="Numbers of rows per space at which fewer restarts run, for the curve of success over size. By default 1/8, "
    "1/4 and 1/2 of all rows.",
)
@count(
    "--size-restarts",
    type=click.IntRange(2, 10_000),
    default=8,
    show_default=True,
    section="Plan of the study",
    help="Number of searches at each of the --sizes.",
)
@count(
    "--bootstraps",
    type=click.IntRange(0, 10_000),
    default=4,
    show_default=True,
    section="Plan of the study",
    help="Number of resamples of the rows, with replacement; each is searched once.",
)
@accept_option
@with_devices
@with_config
def stability_command(
    x_file: str,
    y_file: str,
    output: Path,
    preset: str,
    config: Config,
    seed: int,
    restarts: int,
    settled: int,
    pairs: tuple[str, str] | None,
    column: str | None,
    resume: bool,
    plots: bool,
    as_json: bool,
    chunk: int | None,
    sizes: str | None,
    size_restarts: int,
    bootstraps: int,
    accept: bool,
    devices: Devices,
) -> int:
    """Search many times and compare the maps that are found.

    The study shows how many restarts find the same map, which rows are mapped to the same place by all of them, and
    how many rows are enough. It also writes the average of the best maps that agree. A killed study continues with
    --resume and ends with the same result. The exit code is 3 if the average is not_aligned.
    """
    if plots:
        check_plotting()
    mesh = lay_out(chunk or restarts, devices)
    sources = [file for source in (x_file, y_file, *(pairs or ())) for file in files_of(source)]
    all_or_none(lambda: check_apart(output, sources) if is_first() else None)
    chunk = chunk or _CHUNK * (1 if mesh is None else mesh.shape[RESTART])
    (x, _), (y, _) = (read_rows(file, config, column) for file in (x_file, y_file))
    plan = Plan(
        seed=seed,
        restarts=restarts,
        settled=settled,
        chunk=chunk,
        sizes=_parse_sizes(sizes, min(len(x), len(y)), config),
        size_restarts=size_restarts,
        bootstraps=bootstraps,
    )
    check_same({"options": (config, plan, devices.row_devices)})
    known = read_pairs(pairs, x, y)
    # Searches of fewer rows take less time.
    expected = {"restarts": float(restarts)}
    expected |= {f"rows-{size}": size_restarts * size / min(len(x), len(y)) for size in plan.sizes}
    expected |= {f"bootstrap-{index}": 1.0 for index in range(bootstraps)}
    with progress_bar(expected) as on_step:
        study = run_study(x, y, config, plan, output, on_step, resume=resume, mesh=mesh, pairs=known)
    all_or_none(lambda: _write(study, output, plots, (x, y)) if is_first() else None)
    is_good = accept or study.facts["verdict"] == Verdict.aligned.name
    if is_first():
        if not is_good:
            print_text(f"Warning: {describe_verdict(study.facts)}", to_stderr=True)
        if as_json:
            print(json.dumps(study.facts))
        else:
            if is_good:
                print_text(f"Verdict: {describe_verdict(study.facts)}")
            _print_study(study, x_file, output)
    return 0 if is_good or study.facts["verdict"] != Verdict.not_aligned.name else NOT_ALIGNED_EXIT


def _write(study: Study, folder: Path, plots: bool, rows: tuple[Any, Any]) -> None:
    write_study(study, folder, rows)
    if plots:
        plot_study(study, folder)


def _parse_sizes(text: str | None, num_rows: int, config: Config) -> tuple[int, ...]:
    """Rows per space of the curve, ascending; by default those parts of the data that can be clustered."""
    num_clusters = config.anchors.num_clusters
    if text is None:
        return tuple(size for size in (num_rows // 8, num_rows // 4, num_rows // 2) if size >= 10 * num_clusters)
    try:
        sizes = sorted({int(size) for size in text.split(",")})
    except ValueError:
        raise InputError(
            f"--sizes must be whole numbers with commas between, found {text!r}; write for example --sizes 1000,2000"
        ) from None
    if sizes[0] < num_clusters:
        raise InputError(
            f"--sizes must be at least anchors.num_clusters ({num_clusters}), found {sizes[0]}; use larger sizes or "
            "fewer clusters"
        )
    return tuple(sizes)


def _print_study(study: Study, x_file: str, folder: Path) -> None:
    facts = study.facts
    sizes = [basin["size"] for basin in facts["basins"]]
    print_text(
        f"{max(sizes)} of {facts['restarts']} restarts found nearly the same map. All maps fall into {len(sizes)} "
        f"{'basin' if len(sizes) == 1 else 'basins'}."
    )
    print()
    if facts["verdict"] == Verdict.aligned.name:
        print_text("Next, map rows of X into the space of Y by the average of the best maps:")
        print_command("mv2v", "apply", folder / "map.safetensors", x_file, "-o", "mapped.npy")
    print_text("If you have true pairs that the study has not seen, measure the map on them:")
    print_command("mv2v", "evaluate", folder / "map.safetensors", "X_EVAL", "Y_EVAL")
    print()
    basins = [[f"basin {basin['basin']}", basin["size"], *basin["score"].values()] for basin in facts["basins"]]
    print_table(["", "restarts", "score, median", "lowest", "highest"], basins[:_MAX_BASINS])
    curve = [[f"{size['rows']:,}", size["aligned"], size["score"]["median"]] for size in facts["sizes"]]
    print_table(["rows per space", "share called aligned", "score, median"], curve)
    print_text(f"written: {folder}")
