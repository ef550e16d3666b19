"""``mv2v demo``: align the bundled embeddings and compare the map with the best one that known pairs give."""

import json
from pathlib import Path

import click
import numpy as np

from mv2v_jax.alignment.api import Keep
from mv2v_jax.cli.evaluate import METRIC_NOTES, score_map
from mv2v_jax.cli.help import Command
from mv2v_jax.cli.options import json_option, option, restarts_option, seed_option
from mv2v_jax.cli.output import print_command, print_table, print_text
from mv2v_jax.cli.report import check_page
from mv2v_jax.cli.report_page import Files, report_on_fit
from mv2v_jax.cli.shared import compile_ahead, device_name, make_folder, run_fit
from mv2v_jax.cli.verdict_text import describe_verdict, judge_fit
from mv2v_jax.config import Config
from mv2v_jax.data.atomic_files import atomic_path, save_npy
from mv2v_jax.data.demo import DemoData, DemoTexts, load_demo_data, load_demo_texts
from mv2v_jax.data.row_files import open_rows
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import oracle
from mv2v_jax.paths import exists
from mv2v_jax.report.page import Texts


@click.command(
    "demo",
    cls=Command,
    examples=[
        "mv2v demo",
        "# Keep the data and its texts, to try the other commands on them.",
        "mv2v demo --export demo",
        "# Look at the map.",
        "mv2v demo --report report.html",
    ],
)
@seed_option
@restarts_option
@option(
    "--export",
    type=click.Path(path_type=Path),
    help="Folder to write the data to as .npy files as well: x, y, x_eval and y_eval; and their texts as .txt files.",
)
@option(
    "--report",
    type=click.Path(path_type=Path),
    help="File to write a page to, in HTML, that shows whether the map works and where. It needs bokeh.",
)
@json_option("Print one JSON line on standard output instead of text and a table.")
def demo_command(seed: int, restarts: int, export: Path | None, report: Path | None, as_json: bool) -> None:
    """Align the bundled real embeddings and measure the map.

    The map is compared on held-out texts with the oracle, the best orthogonal map, which is fitted on true pairs.
    """
    data, texts = load_demo_data(), load_demo_texts()
    if report is not None:
        check_page(report)
    if export is not None:
        _export(data, texts, export)
    keep: Keep = "summary" if report is None else "all"
    with compile_ahead(data.x, data.y, Config(), restarts, 1) as ahead:
        fit = run_fit(data.x, data.y, Config(), seed, restarts, keep=keep, ahead=ahead)
    ours = score_map(fit.result.best.map, data.x_eval, data.y_eval)
    best = score_map(oracle(data.x, data.y_true, data.y), data.x_eval, data.y_eval)
    judged = judge_fit(fit)
    if report is not None:
        rows = {"n": len(data.x), "m": len(data.y), "d_x": data.x.shape[1], "d_y": data.y.shape[1]}
        report_on_fit(
            report,
            fit.result,
            Config(),
            data=(data.x, data.y, Texts(x=texts.x, y=texts.y)),
            facts={**judged, **rows, "preset": "default", "seed": seed, "device": device_name()},
            files=Files(x="demo/x.npy", y="demo/y.npy", map=Path("map.safetensors")),
            pairs=(data.x_eval, data.y_eval),
        )
    if as_json:
        times = {"seconds": fit.seconds, "compile_seconds": fit.compile_seconds, "device": device_name()}
        print(json.dumps({"seed": seed, **times, "mv2v": ours, "oracle": best, **judged}))
        return
    held_out = int(fit.result.best.evidence.num_rows)
    print_text(f"Verdict: {describe_verdict(judged | {'held_out_rows': held_out})}")
    print_text(
        f"True pairs: {ours['top1']:.0%} of {len(data.x_eval):,} held-out texts find their partner first. The oracle, "
        f"the best orthogonal map fitted on true pairs, reaches {best['top1']:.0%}."
    )
    print()
    print_text("Next, align your own embeddings:")
    print_command("mv2v", "align", "X", "Y", "-o", "map.safetensors")
    print()
    print_text(
        f"Data: MiniLM embeddings of {len(data.x):,} texts and WordLlama embeddings of {len(data.y):,} other texts, "
        "without any known pair."
    )
    print_table(
        ["score", "mv2v", "oracle", "meaning"],
        [[name, ours[name], best[name], METRIC_NOTES[name]] for name in ours],
        notes=True,
    )
    print_text(f"{fit.seconds:.1f} s to fit, {fit.compile_seconds:.1f} s to compile, on {device_name()}")


def _export(data: DemoData, texts: DemoTexts, folder: Path) -> None:
    make_folder(folder, "--export")
    files = {folder / f"{name}.npy": getattr(data, name) for name in ("x", "y", "x_eval", "y_eval")}
    sides = {"x": texts.x, "y": texts.y, "x_eval": texts.evaluated, "y_eval": texts.evaluated}
    lines = {folder / f"{name}.txt": "".join(f"{text}\n" for text in side) for name, side in sides.items()}
    for path, rows in files.items():
        if exists(path) and not _holds(path, rows):
            raise InputError(f"--export: {path} must not exist, found a file with other rows; name another folder")
    for path, text in lines.items():
        if exists(path) and (not path.is_file() or path.read_bytes() != text.encode()):
            raise InputError(f"--export: {path} must not exist, found a file of other texts; name another folder")
    for path, rows in files.items():
        save_npy(path, rows)
    for path, text in lines.items():
        with atomic_path(path) as temporary:
            temporary.write_bytes(text.encode())


def _holds(path: Path, rows: np.ndarray) -> bool:
    """Whether a file holds these rows; false if it cannot be read."""
    try:
        return np.array_equal(open_rows(path), rows)
    except InputError:
        return False
