"""The command line: ``mv2v demo | align | stability | apply | evaluate | info``."""

import dataclasses
import functools
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.score import Verdict
from mv2v_jax.cli.output import describe_verdict, print_facts, print_table, progress_bar
from mv2v_jax.config import PRESETS, Config, check_config
from mv2v_jax.data.checks import check_finite, check_pairs, check_shape
from mv2v_jax.data.demo import load_demo_data
from mv2v_jax.data.files import check_writable, save_npy
from mv2v_jax.data.formats import file_of, load_embeddings
from mv2v_jax.data.map_file import load_map, save_map
from mv2v_jax.data.npy_rows import RowFiles
from mv2v_jax.data.scan import CheckedRows, RowStatistics, digest
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.metrics import Metrics, evaluate, oracle
from mv2v_jax.linear_map import Frame, LinearMap, invert
from mv2v_jax.ops.sharding import RESTART, is_first, make_mesh
from mv2v_jax.runs.apply_shards import apply_to_file, source_files
from mv2v_jax.runs.compiled import TimedFit, align_on_mesh, align_with_progress
from mv2v_jax.runs.processes import (
    LostProcess,
    all_or_none,
    check_same,
    describe_shares,
    exit_together,
    probe,
    start,
    translate_process_loss,
)
from mv2v_jax.runs.study import Plan, Study, run_study, write_study
from mv2v_jax.runs.study_plots import check_plotting, plot_study
from mv2v_jax.version import __version__

_NOT_ALIGNED_EXIT = 3


_LOST_EXIT = 4


# Restarts that are lost at most where a study is interrupted.
_CHUNK = 8


Pairs = tuple[np.ndarray, np.ndarray]


_DEFAULT_RESTARTS = 2


_restarts_option = click.option(
    "--restarts",
    type=click.IntRange(1, 10_000),
    default=_DEFAULT_RESTARTS,
    show_default=True,
    help="Searches from different draws, of which the best is kept. No label is used.",
)


def _device_options(command):
    """Flags that say over which devices restarts and rows are spread."""
    options = (
        click.option("--all-devices", is_flag=True, help="Whitening restarts, and the rows of each, over all devices."),
        click.option(
            "--distributed",
            is_flag=True,
            help="Over those of several processes, each of which runs this same command. Under Slurm, Open MPI and on "
            "TPU they find each other.",
        ),
        click.option("--coordinator", metavar="HOST:PORT", help="Elsewhere: where process 0 can be reached."),
        click.option("--num-processes", type=click.IntRange(1), help="Elsewhere: how many processes there are."),
        click.option("--process", type=click.IntRange(0), help="Elsewhere: number of this one, from 0."),
        click.option(
            "--row-devices",
            type=click.IntRange(1),
            help="Devices that share the rows of one restart.  [default: as few as keep all busy]",
        ),
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def _device_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Take the flags of `_device_options` out of all ``flags``; those of the config are left."""
    names = ("all_devices", "distributed", "coordinator", "num_processes", "process", "row_devices")
    return {name: flags.pop(name) for name in names}


def _mesh(
    restarts: int,
    all_devices: bool,
    distributed: bool,
    coordinator: str | None,
    num_processes: int | None,
    process: int | None,
    row_devices: int | None,
) -> Mesh | None:
    """Join the other processes, if any, and lay out the devices; none where there is but one to use."""
    placed = {"--coordinator": coordinator, "--num-processes": num_processes, "--process": process}
    given = [name for name, value in placed.items() if value is not None]
    if given and not distributed:
        raise InputError(f"{given[0]} must come with --distributed")
    if distributed:
        start(coordinator, num_processes, process)
    elif not all_devices:
        if row_devices is not None:
            raise InputError("--row-devices must come with --all-devices or --distributed")
        return None
    return make_mesh(restarts, row_devices=row_devices)


_pairs_option = click.option(
    "--pairs",
    nargs=2,
    metavar="PX PY",
    help="Known pairs, if there are any: row i of PX, of the source encoder, and row i of PY belong together.",
)


def _settled_option(default: int):
    text = "Of the best restarts so many are settled and averaged, as far as they agree: better, and slower."
    return click.option("--settled", type=click.IntRange(1, 10_000), default=default, show_default=True, help=text)


@click.group(
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="mv2v")
@click.option(
    "--compilation-cache",
    type=click.Path(path_type=Path),
    envvar="MV2V_COMPILATION_CACHE",
    show_envvar=True,
    help="Folder of compiled functions, made where missing: the next run on data of similar size compiles nothing.",
)
@click.pass_context
def cli(context: click.Context, compilation_cache: Path | None) -> None:
    """Learn a linear map between two embedding spaces without a single known pair.

    Embeddings are read from .npy, .npz, .safetensors, .parquet (a list column) and .pt files, and from folders of .npy
    shards; FILE:KEY names one of several arrays.
    """
    if compilation_cache is not None:
        _use_cache(compilation_cache)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _use_cache(folder: Path) -> None:
    """Let JAX keep everything it compiles in ``folder``, also what takes less than the second that it asks for."""
    _make_folder(folder, "--compilation-cache")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--compilation-cache: {folder} cannot be written to")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _make_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option}: {folder} cannot be made: {error.strerror}") from error


def _config_flags(command):
    """One flag per field of `Config`; those not given keep the preset's value."""
    for field in reversed(dataclasses.fields(Config)):
        flag = field.name.replace("_", "-")
        # A default would hide whether the flag was given.
        options: dict[str, Any] = {
            "default": None,
            "help": f"{field.metadata['help']}  [default preset: {field.default}]",
        }
        if field.type is bool:
            command = click.option(f"--{flag}/--no-{flag}", **options)(command)
        else:
            command = click.option(f"--{flag}", type=field.type, **options)(command)
    return command


def _config(preset: str, flags: dict[str, Any]) -> Config:
    """A preset with the fields changed that were given as flags."""
    given = {name: value for name, value in flags.items() if value is not None}
    config = dataclasses.replace(PRESETS[preset](), **given)
    check_config(config)
    return config


def _open(source: str, config: Config) -> Any:
    rows = load_embeddings(source)
    check_shape(rows, source, min_rows=config.num_clusters)
    return rows


def _measure(source: str, config: Config) -> tuple[CheckedRows, RowStatistics]:
    """Rows to fit, and what one pass over them tells."""
    rows = all_or_none(functools.partial(_open, source, config))
    check_same({source: all_or_none(lambda: probe(rows))})
    with progress_bar() as on_step:
        statistics = describe_shares(rows, source, lambda done, total: on_step(f"reading {source}", done, total))
    return CheckedRows(rows=rows, mean=statistics.mean, digest=statistics.digest), statistics


def _load_pairs(sources: tuple[str, str] | None, x: Any, y: Any) -> Pairs | None:
    """Known pairs of rows like those of ``x`` and ``y``, the same in every process."""
    if sources is None:
        return None

    def load() -> Pairs:
        left, right = check_pairs(tuple(np.asarray(load_embeddings(source)) for source in sources), x, y, sources)
        return left, right

    known = all_or_none(load)
    check_same(
        {source: all_or_none(functools.partial(probe, side)) for source, side in zip(sources, known, strict=True)}
    )
    return known


def _fit(
    x: Any,
    y: Any,
    config: Config,
    seed: int,
    restarts: int,
    settled: int = 1,
    mesh: Mesh | None = None,
    pairs: Pairs | None = None,
) -> TimedFit:
    key = jax.random.key(seed)
    with progress_bar() as on_step:
        if mesh is not None:
            return align_on_mesh(key, x, y, config, on_step, mesh, restarts, settled, pairs)
        return align_with_progress(key, x, y, config, on_step, restarts, settled, pairs)


def _judged(fit: TimedFit) -> dict[str, Any]:
    """The verdict on a fit and what it rests on, for people and for JSON."""
    best, scores = fit.result.best, fit.result.evidence.score
    chosen = int(fit.result.chosen)
    others = np.delete(np.asarray(fit.result.agreement)[chosen], chosen)
    return {
        "verdict": Verdict(int(best.verdict)).name,
        "confidence": float(best.confidence),
        "estimated_top1": float(best.estimated_top1),
        "score": float(best.evidence.score),
        "restarts": len(scores),
        "restart_scores": [float(score) for score in scores],
        "restart_chosen": chosen,
        "restart_agreement": float(np.median(others)) if len(others) else None,
    }


def _scores(linear_map: LinearMap, x: Any, y: Any) -> dict[str, float]:
    scores = evaluate(linear_map, jnp.asarray(x), jnp.asarray(y))
    return {field.name: float(getattr(scores, field.name)) for field in dataclasses.fields(Metrics)}


def _load_rows(source: str, columns: int, wanted_by: str) -> np.ndarray | RowFiles:
    """Rows to be mapped or judged, of the dimension a map wants."""
    rows = load_embeddings(source)
    check_shape(rows, source)
    if rows.shape[1] != columns:
        raise InputError(f"{source} must have {columns} columns for {wanted_by}, found {rows.shape[1]}")
    return rows


@cli.command()
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed.")
@_restarts_option
@click.option("--export", type=click.Path(path_type=Path), help="Also write the data as .npy files to this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of a table.")
def demo(seed: int, restarts: int, export: Path | None, as_json: bool) -> None:
    """Align the bundled real embeddings, judge the map, compare it with the best orthogonal map on true pairs."""
    data = load_demo_data()
    if export is not None:
        _export(export, {name: getattr(data, name) for name in ("x", "y", "x_eval", "y_eval")})
    fit = _fit(data.x, data.y, PRESETS["default"](), seed, restarts)
    ours = _scores(fit.result.best.map, data.x_eval, data.y_eval)
    best = _scores(oracle(data.x, data.y_true, data.y), data.x_eval, data.y_eval)
    if as_json:
        times = {"seconds": fit.seconds, "compile_seconds": fit.compile_seconds, "device": _device()}
        print(json.dumps({"seed": seed, **times, "mv2v": ours, "oracle": best, **_judged(fit)}))
        return
    print(
        f"MiniLM ({len(data.x):,} texts) to WordLlama ({len(data.y):,} other texts), no pair known.\n"
        f"Judged on {len(data.x_eval):,} held-out texts; the oracle is the best orthogonal map, fitted on true pairs."
    )
    print_table(["", *ours], [["mv2v", *ours.values()], ["oracle", *best.values()]])
    print(f"Without labels: {describe_verdict(_judged(fit))}")
    print(f"{fit.seconds:.1f} s to fit, {fit.compile_seconds:.1f} s to compile, on {_device()}")


def _export(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    _make_folder(folder, "--export")
    for name, rows in arrays.items():
        save_npy(folder / f"{name}.npy", rows)


def _device() -> str:
    device = jax.devices()[0]
    return f"{device.platform}:{device.device_kind}"


@cli.command()
@click.argument("x_file", metavar="X")
@click.argument("y_file", metavar="Y")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Map to write, .safetensors.")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="default", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed.")
@_restarts_option
@_settled_option(1)
@_pairs_option
@_device_options
@click.option("--accept", is_flag=True, help="Take the map whatever the verdict: no warning, exit code 0.")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON line.")
@_config_flags
def align(
    x_file: str,
    y_file: str,
    output: Path,
    preset: str,
    seed: int,
    restarts: int,
    settled: int,
    pairs: tuple[str, str] | None,
    accept: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Learn the map from the space of X to the space of Y. No row of X needs a partner in Y; a few known ones help.

    The map is written with a verdict, which no label goes into. Exit code 3 where the verdict is not_aligned.
    """
    devices = _device_flags(flags)
    config = _config(preset, flags)
    mesh = _mesh(restarts, **devices)
    all_or_none(lambda: check_writable(output) if is_first() else None)
    check_same({"options": (config, seed, restarts, settled, devices["row_devices"])})
    (x, of_x), (y, of_y) = (_measure(file, config) for file in (x_file, y_file))
    known = _load_pairs(pairs, x, y)
    fit = _fit(x, y, config, seed, restarts, settled, mesh, known)
    shapes = {"n": x.shape[0], "m": y.shape[0], "d_x": x.shape[1], "d_y": y.shape[1]}
    judged = _judged(fit)
    run = {"preset": preset, "seed": seed, **judged, "settled": min(settled, restarts), "device": _device()}
    provenance: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "digest_x": of_x.digest,
        "digest_y": of_y.digest,
    }
    if known is not None:
        provenance |= {"pairs": len(known[0]), "digest_pairs": [digest(side) for side in known]}
    all_or_none(lambda: save_map(output, fit.result.best.map, {**shapes, **run, **provenance}) if is_first() else None)
    odd_rows = {
        "zero_rows_x": of_x.num_zero,
        "zero_rows_y": of_y.num_zero,
        "duplicate_rows_x": of_x.num_duplicates,
        "duplicate_rows_y": of_y.num_duplicates,
        "mean_norm_x": of_x.mean_norm,
        "mean_norm_y": of_y.mean_norm,
    }
    facts = {"seconds": fit.seconds, "compile_seconds": fit.compile_seconds, **shapes, **run, **odd_rows}
    good = judged["verdict"] == Verdict.aligned.name or accept
    if is_first():
        _print_fit(facts, judged, output, good, as_json)
    if not good and judged["verdict"] == Verdict.not_aligned.name:
        raise NotAligned


def _print_fit(facts: dict[str, Any], judged: dict[str, Any], output: Path, good: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        print_facts({**facts, "map": output})
    if not good:
        print(f"Warning: {describe_verdict(judged)}", file=sys.stderr)
    elif not as_json:
        print(describe_verdict(judged))


@cli.command()
@click.argument("x_file", metavar="X")
@click.argument("y_file", metavar="Y")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--restarts", type=click.IntRange(2, 100_000), default=32, show_default=True, help="Searches on all rows."
)
@click.option(
    "--chunk",
    type=click.IntRange(1, 100_000),
    help="Restarts a file.  [default: 8 for each device they are spread over]",
)
@click.option(
    "--sizes", metavar="N,N,...", help="Rows a side of the curve over sizes.  [default: 1/8, 1/4, 1/2 of all]"
)
@_settled_option(8)
@_pairs_option
@click.option("--size-restarts", type=click.IntRange(2, 10_000), default=8, show_default=True, help="At each of them.")
@click.option(
    "--bootstraps", type=click.IntRange(0, 10_000), default=4, show_default=True, help="Resamples of the rows."
)
@click.option("--resume", is_flag=True, help="Go on with the study that is in the folder; what is there is kept.")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Also write pictures; needs matplotlib.")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), default="default", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed.")
@_device_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of tables.")
@_config_flags
def stability(
    x_file: str,
    y_file: str,
    output: Path,
    restarts: int,
    settled: int,
    pairs: tuple[str, str] | None,
    chunk: int | None,
    sizes: str | None,
    size_restarts: int,
    bootstraps: int,
    resume: bool,
    plots: bool,
    preset: str,
    seed: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Search many times and see how far the answers agree: basins, stable rows, sizes that suffice.

    Finished chunks are on disk: killed at any moment, the same command with --resume goes on and ends the same.
    """
    if plots:
        check_plotting()
    devices = _device_flags(flags)
    config = _config(preset, flags)
    mesh = _mesh(chunk or restarts, **devices)
    chunk = chunk or _CHUNK * (1 if mesh is None else mesh.shape[RESTART])
    (x, _), (y, _) = (_measure(file, config) for file in (x_file, y_file))
    num_rows = min(len(x), len(y))
    plan = Plan(
        seed=seed,
        restarts=restarts,
        settled=settled,
        chunk=chunk,
        sizes=_sizes(sizes, num_rows, config),
        size_restarts=size_restarts,
        bootstraps=bootstraps,
    )
    check_same({"options": (config, plan, devices["row_devices"])})
    known = _load_pairs(pairs, x, y)
    with progress_bar() as on_step:
        study = run_study(x, y, config, plan, output, on_step, resume=resume, mesh=mesh, pairs=known)
    all_or_none(lambda: _write_study(study, output, plots) if is_first() else None)
    if not is_first():
        return
    if as_json:
        print(json.dumps(study.facts))
        return
    basins = [[f"basin {basin['basin']}", basin["size"], *basin["score"].values()] for basin in study.facts["basins"]]
    print_table(["", "restarts", "score, median", "lowest", "highest"], basins[:10])
    curve = [[f"{size['rows']:,}", size["aligned"], size["score"]["median"]] for size in study.facts["sizes"]]
    print_table(["rows a side", "share called aligned", "score, median"], curve)
    print(f"{describe_verdict(study.facts)}")
    print(f"written: {output}")


def _write_study(study: Study, folder: Path, plots: bool) -> None:
    write_study(study, folder)
    if plots:
        plot_study(study, folder)


def _sizes(text: str | None, num_rows: int, config: Config) -> tuple[int, ...]:
    """Rows a side of the curve, in order; by default those parts of the data that can be clustered."""
    if text is None:
        return tuple(size for size in (num_rows // 8, num_rows // 4, num_rows // 2) if size >= 10 * config.num_clusters)
    try:
        sizes = sorted({int(size) for size in text.split(",")})
    except ValueError:
        raise InputError(f"--sizes must be whole numbers with commas between, found {text!r}") from None
    if sizes[0] < config.num_clusters:
        raise InputError(f"--sizes must be at least num_clusters ({config.num_clusters}), found {sizes[0]}")
    return tuple(sizes)


@cli.command("apply")
@click.argument("map_file", metavar="MAP")
@click.argument("x_file", metavar="X")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Rows to write, .npy.")
@click.option(
    "--frame",
    type=click.Choice(["centred", "target"]),
    default="centred",
    show_default=True,
    help="centred: mean removed, unit rows. target: comparable by cosine with raw vectors of the target encoder.",
)
@click.option("--inverse", is_flag=True, help="Map rows of the target space back into the source space.")
@click.option("--resume", is_flag=True, help="Go on where an earlier run with the same map and X was interrupted.")
@click.option("--accept", is_flag=True, help="Do not warn where the map's own verdict is not aligned.")
def apply_command(
    map_file: str, x_file: str, output: Path, frame: Frame, inverse: bool, resume: bool, accept: bool
) -> None:
    """Map the rows of X, of any number, and write them in the dtype they came in.

    Killed at any moment, the same command with --resume goes on, and ends the same.
    """
    linear_map, metadata = load_map(map_file)
    if inverse:
        linear_map = invert(linear_map)
    check_writable(output)
    x = _load_rows(x_file, linear_map.W.shape[0], f"{map_file}{' inverted' if inverse else ''}")
    with progress_bar() as on_step:
        source = source_files(file_of(x_file), x)
        done = apply_to_file(linear_map, x, source, output, x_file, frame=frame, resume=resume, on_step=on_step)
    n, (d_x, d_y) = x.shape[0], linear_map.W.shape
    kept = f", {n - done.num_mapped:,} were there" if done.num_mapped < n else ""
    speed = f"{done.num_mapped / done.seconds:,.0f} rows a second"
    print(f"{n:,} rows{kept}, {d_x} to {d_y} dimensions, {frame}, {speed}: {output}")
    verdict = metadata.get("verdict", Verdict.aligned.name)
    if verdict != Verdict.aligned.name and not accept:
        print(f"Warning: the fit of {map_file} was judged {verdict}; mv2v info shows why.", file=sys.stderr)


@cli.command("evaluate")
@click.argument("map_file", metavar="MAP")
@click.argument("x_file", metavar="X_EVAL")
@click.argument("y_file", metavar="Y_EVAL")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of a table.")
def evaluate_command(map_file: str, x_file: str, y_file: str, as_json: bool) -> None:
    """Judge a map on true pairs: row i of X_EVAL and row i of Y_EVAL belong together, and no fit has seen them."""
    linear_map, _ = load_map(map_file)
    d_x, d_y = linear_map.W.shape
    x = _load_rows(x_file, d_x, f"the source of {map_file}")
    y = _load_rows(y_file, d_y, f"the target of {map_file}")
    for rows, source in ((x, x_file), (y, y_file)):
        check_finite(rows, source)
    if x.shape[0] != y.shape[0]:
        raise InputError(f"{y_file} must have a row for each of the {x.shape[0]} of {x_file}, found {y.shape[0]}")
    scores = {**_scores(linear_map, x, y), "n": x.shape[0]}
    if as_json:
        print(json.dumps(scores))
    else:
        print_table(list(scores), [list(scores.values())])


@cli.command()
@click.argument("map_file", metavar="MAP")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line.")
def info(map_file: str, as_json: bool) -> None:
    """Show what a map is and where it came from."""
    linear_map, metadata = load_map(map_file)
    facts = {"W": list(linear_map.W.shape), **dict(sorted(metadata.items()))}
    if as_json:
        print(json.dumps(facts))
    else:
        print_facts(facts)


class NotAligned(Exception):
    """A fit whose verdict is ``not_aligned``: its map is written and its warning printed."""


def main() -> None:
    """Entry point of ``mv2v``: user errors end in one sentence and exit code 2, ``not_aligned`` in 3, Ctrl-C in 130.

    Where another process of the run is gone it is 4.
    """
    try:
        with translate_process_loss():
            code = cli.main(prog_name="mv2v", standalone_mode=False)
        exit_together(code if isinstance(code, int) else 0)
    except NotAligned:
        exit_together(_NOT_ALIGNED_EXIT)
    except InputError as error:
        message, code = str(error), 2
    except LostProcess as error:
        message, code = str(error), _LOST_EXIT
    except click.ClickException as error:
        message, code = error.format_message(), error.exit_code
    except click.Abort:
        message, code = "interrupted; no file is left half-written", 130
    except Exception:
        # A defect of ours; of several processes this one must still end, or the others would wait for it.
        traceback.print_exc()
        exit_together(1)
    print(f"Error: {message}", file=sys.stderr)
    exit_together(code)
