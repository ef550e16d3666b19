"""``mv2v align``: fit a map on two files of embeddings and write it with its verdict."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from mv2v_jax.alignment.api import Keep
from mv2v_jax.alignment.fit import max_settled
from mv2v_jax.alignment.score import Verdict
from mv2v_jax.cli.help import Command
from mv2v_jax.cli.options import (
    Devices,
    accept_option,
    column_option,
    count,
    json_option,
    option,
    output_option,
    pairs_option,
    preset_option,
    restarts_option,
    seed_option,
    settled_option,
    text_column_option,
    with_config,
    with_devices,
)
from mv2v_jax.cli.output import print_command, print_facts, print_text
from mv2v_jax.cli.report import check_page, read_texts, texts_option
from mv2v_jax.cli.report_page import Files, report_on_fit
from mv2v_jax.cli.shared import (
    check_output,
    check_rows,
    compile_ahead,
    device_name,
    lay_out,
    open_fitting_rows,
    read_pairs,
    run_fit,
)
from mv2v_jax.cli.verdict_text import NOT_ALIGNED_EXIT, describe_verdict, judge_fit, next_steps
from mv2v_jax.config import Config
from mv2v_jax.data.map_file import save_map
from mv2v_jax.data.scan import RowStatistics, digest
from mv2v_jax.ops.sharding import is_first
from mv2v_jax.report.page import Texts
from mv2v_jax.runs.compiled import TimedFit
from mv2v_jax.runs.judgement import list_evidence
from mv2v_jax.runs.processes import all_or_none, check_same


@click.command(
    "align",
    cls=Command,
    arguments={
        "X": "Embeddings of the source encoder, one per row: a file or a folder of .npy shards.",
        "Y": "Embeddings of the target encoder. No row of Y needs a partner in X.",
    },
    examples=[
        "mv2v align x.npy y.npy -o map.safetensors",
        "# Better and slower: more restarts, the best of them averaged.",
        "mv2v align x.npy y.npy -o map.safetensors --restarts 8 --settled 4",
    ],
)
@click.argument("x_file", metavar="X")
@click.argument("y_file", metavar="Y")
@output_option("File to write the map to, in the .safetensors format.")
@preset_option
@seed_option
@restarts_option
@settled_option(1)
@pairs_option
@column_option
@text_column_option
@count(
    "--index-size",
    type=click.IntRange(1, 10**12),
    help="Number of rows of the index that the map is meant for. Recall@1 and recall@10 at this size are estimated, in "
    "both directions.",
)
@option(
    "--report",
    type=click.Path(path_type=Path),
    help="File to write a page to, in HTML, that shows whether the map works and where. It needs bokeh.",
)
@texts_option("x")
@texts_option("y")
@accept_option
@json_option()
@with_devices
@with_config
def align_command(
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
    text_column: str | None,
    index_size: int | None,
    report: Path | None,
    texts_x: str | None,
    texts_y: str | None,
    devices: Devices,
    accept: bool,
    as_json: bool,
) -> int:
    """Learn the map from the space of X to the space of Y.

    No known pair is needed; a few of them help. The map is written with a verdict: aligned, uncertain or not_aligned,
    and with the reason for it. The verdict uses no known pair either. The exit code is 3 if it is not_aligned.
    """
    mesh = lay_out(restarts, devices)
    sources = (x_file, y_file, *(pairs or ()))
    all_or_none(lambda: check_output(output, (".safetensors",), *sources) if is_first() else None)
    if report is not None:
        all_or_none(lambda: check_page(report, *sources, texts_x, texts_y) if is_first() else None)
    check_same({"options": (config, seed, restarts, settled, devices.row_devices, report is None)})
    rows_x, rows_y = (open_fitting_rows(file, config, column) for file in (x_file, y_file))
    with compile_ahead(rows_x, rows_y, config, restarts, settled, mesh, pairs) as ahead:
        (x, of_x), (y, of_y) = check_rows(rows_x, x_file), check_rows(rows_y, y_file)
        known = read_pairs(pairs, x, y)
        texts = Texts(None, None)
        if report is not None:
            texts = all_or_none(lambda: read_texts((texts_x, texts_y), (x_file, y_file), (x, y), column, text_column))
        keep: Keep = "summary" if report is None else "all"
        fit = run_fit(x, y, config, seed, restarts, settled, mesh, known, keep, ahead)
    judged = judge_fit(fit, index_size)
    shapes = {"n": x.shape[0], "m": y.shape[0], "d_x": x.shape[1], "d_y": y.shape[1]}
    run = {"preset": preset, "seed": seed, **judged, "settled": _count_settled(fit, config, restarts, settled)}
    run |= {"second_search": _describe_second_search(fit), "device": device_name()}
    provenance: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "digest_x": of_x.digest,
        "digest_y": of_y.digest,
        "evidence": list_evidence(fit.result.best.evidence),
    }
    if known is not None:
        provenance |= {"pairs": len(known[0]), "digest_pairs": [digest(rows) for rows in known]}
    metadata = {**shapes, **run, **provenance}
    all_or_none(lambda: save_map(output, fit.result.best.map, metadata, rows=(x, y)) if is_first() else None)
    times = {"seconds": fit.seconds, "compile_seconds": fit.compile_seconds}
    facts = {**times, **shapes, **run, **_count_odd_rows(of_x, of_y)}
    is_good = accept or judged["verdict"] == Verdict.aligned.name
    if is_first():
        if report is not None:
            files = Files(x_file, y_file, output)
            report_on_fit(report, fit.result, config, data=(x, y, texts), facts={**facts, **provenance}, files=files)
        answer = judged | {"held_out_rows": int(fit.result.best.evidence.num_rows)}
        if not is_good:
            print_text(f"Warning: {describe_verdict(answer)}", to_stderr=True)
        if as_json:
            print(json.dumps(facts))
        else:
            if is_good:
                print_text(f"Verdict: {describe_verdict(answer)}")
                print()
            for purpose, words in next_steps(answer, x_file, y_file, output):
                print_text(purpose)
                print_command(*words)
            print()
            print_facts({**facts, "map": output})
    return 0 if is_good or judged["verdict"] != Verdict.not_aligned.name else NOT_ALIGNED_EXIT


def _count_settled(fit: TimedFit, config: Config, restarts: int, settled: int) -> int:
    """Number of searches that were settled; their average weighs them by their agreement."""
    if fit.result.best.info.components.used:
        return max_settled(config, restarts, settled)
    return min(settled, restarts)


def _describe_second_search(fit: TimedFit) -> str:
    """Whether the chosen restart was searched again by independent components, and whether that gave its map."""
    components = fit.result.best.info.components
    if not components.tried:
        return "not needed"
    return "used" if components.used else "tried, not better"


def _count_odd_rows(of_x: RowStatistics, of_y: RowStatistics) -> dict[str, Any]:
    return {
        "zero_rows_x": of_x.num_zero,
        "zero_rows_y": of_y.num_zero,
        "duplicate_rows_x": of_x.num_duplicates,
        "duplicate_rows_y": of_y.num_duplicates,
        "mean_norm_x": of_x.mean_norm,
        "mean_norm_y": of_y.mean_norm,
    }
