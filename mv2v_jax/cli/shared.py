"""What several commands share: opening rows and known pairs, laying out devices, running a fit."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.api import Keep
from mv2v_jax.alignment.stage_by_stage import expected_stages
from mv2v_jax.cli.options import Devices
from mv2v_jax.cli.output import print_text, progress_bar
from mv2v_jax.config import Config
from mv2v_jax.data.atomic_files import check_writable
from mv2v_jax.data.checks import check_pairs, check_shape
from mv2v_jax.data.output_paths import check_apart, check_suffix
from mv2v_jax.data.padding import padded_shapes
from mv2v_jax.data.row_files import RowFiles
from mv2v_jax.data.scan import CheckedRows, RowStatistics
from mv2v_jax.errors import InputError
from mv2v_jax.ops.sharding import make_mesh
from mv2v_jax.runs.ahead import Ahead
from mv2v_jax.runs.compilation_cache import default_folder, keep_compiled
from mv2v_jax.runs.compiled import TimedFit, align_with_progress
from mv2v_jax.runs.processes import all_or_none, check_same, describe_shares, probe, start
from mv2v_jax.stores.sources import files_of, load_embeddings

Pairs = tuple[np.ndarray, np.ndarray]


def use_cache(named: str | None) -> None:
    """Keep what is compiled in a folder that a user named, or in the default one; nowhere if its name is empty.

    Raises:
        InputError: the named folder cannot be made or written to.
    """
    if named:
        folder: Path | None = Path(named)
        make_folder(Path(named), "--compilation-cache")
        if not os.access(named, os.W_OK):
            raise InputError(
                f"--compilation-cache: {named} must be a folder that can be written to, found it read-only; name "
                "another"
            )
    elif named == "" or jax.config.values["jax_compilation_cache_dir"]:
        # A folder that JAX's own variable names is used by JAX.
        return
    else:
        folder = default_folder()
    if folder is not None:
        keep_compiled(folder, lambda text: print_text(f"Warning: {text}", to_stderr=True))


def lay_out(restarts: int, devices: Devices) -> Mesh | None:
    """Join the other processes, if any, and make the mesh; ``None`` for one device."""
    placed = {
        "--coordinator": devices.coordinator,
        "--num-processes": devices.num_processes,
        "--process": devices.process,
    }
    given = [name for name, value in placed.items() if value is not None]
    if given and not devices.distributed:
        raise InputError(f"{given[0]} must come with --distributed, found it alone; add --distributed")
    if devices.distributed:
        start(devices.coordinator, devices.num_processes, devices.process)
    elif not devices.all_devices:
        if devices.row_devices is not None:
            raise InputError(
                "--row-devices must come with --all-devices or --distributed, found it alone; add one of them"
            )
        return None
    return make_mesh(restarts, row_devices=devices.row_devices)


def check_output(output: Path, suffixes: tuple[str, ...], *sources: str) -> None:
    """Raise `InputError` if ``output`` cannot be written, lacks a suffix, or would overwrite what is read."""
    check_writable(output)
    check_suffix(output, *suffixes)
    check_apart(output, (file for source in sources for file in files_of(source)))


def open_fitting_rows(source: str, config: Config, column: str | None = None) -> Any:
    """Rows to fit, of which no more than the shape is checked."""

    def load() -> Any:
        rows = load_embeddings(source, column)
        check_shape(rows, source, min_rows=config.anchors.num_clusters)
        return rows

    return all_or_none(load)


def check_rows(rows: Any, source: str) -> tuple[CheckedRows, RowStatistics]:
    """Rows of `open_fitting_rows`, checked and described in one pass over them."""
    check_same({source: all_or_none(lambda: probe(rows))})
    with progress_bar() as on_step:
        statistics = describe_shares(rows, source, lambda done, total: on_step(f"reading {source}", done, total))
    return CheckedRows(rows=rows, mean=statistics.mean, digest=statistics.digest), statistics


def read_rows(source: str, config: Config, column: str | None = None) -> tuple[CheckedRows, RowStatistics]:
    """`open_fitting_rows` and `check_rows`."""
    return check_rows(open_fitting_rows(source, config, column), source)


def read_pairs(sources: tuple[str, str] | None, x: Any, y: Any) -> Pairs | None:
    """Known pairs of rows like those of ``x`` and ``y``, the same in every process; ``None`` without files of them."""
    if sources is None:
        return None

    def load() -> Pairs:
        x_pairs, y_pairs = check_pairs(tuple(np.asarray(load_embeddings(source)) for source in sources), x, y, sources)
        return x_pairs, y_pairs

    pairs = all_or_none(load)
    check_same(
        {source: all_or_none(functools.partial(probe, rows)) for source, rows in zip(sources, pairs, strict=True)}
    )
    return pairs


def load_rows(source: str, columns: int, wanted_by: str, column: str | None = None) -> np.ndarray | RowFiles:
    """Rows to be mapped or to evaluate on, which must have the dimension of a map."""
    rows = load_embeddings(source, column)
    check_row_shape(rows, source, columns, wanted_by)
    return rows


def check_row_shape(rows: Any, source: str, columns: int, wanted_by: str) -> None:
    """Raise `InputError` unless rows have the dimension of a map."""
    check_shape(rows, source)
    if rows.shape[1] != columns:
        raise InputError(
            f"{source} must have {columns} columns for {wanted_by}, found {rows.shape[1]}; use rows of the encoder "
            "that the map was fitted on"
        )


@contextlib.contextmanager
def compile_ahead(
    x: Any, y: Any, config: Config, restarts: int, settled: int, mesh: Mesh | None = None, pairs: Any = None
) -> Iterator[Ahead | None]:
    """Compile the stages of a fit of these rows in the background; ``None`` over a mesh and with known pairs."""
    if mesh is not None or pairs is not None:
        yield None
        return
    shapes_x, shapes_y = (padded_shapes(rows, config.max_rows) for rows in (x, y))
    with Ahead(shapes_x, shapes_y, config, restarts, settled) as ahead:
        yield ahead


def run_fit(
    x: Any,
    y: Any,
    config: Config,
    seed: int,
    restarts: int,
    settled: int = 1,
    mesh: Mesh | None = None,
    pairs: Pairs | None = None,
    keep: Keep = "summary",
    ahead: Ahead | None = None,
) -> TimedFit:
    """Fit with a progress bar, on one device, perhaps by what was compiled ahead for these rows, or over a mesh."""
    key = jax.random.key(seed)
    rows = min(x.shape[0], y.shape[0])
    get_compiled = (lambda _: None) if ahead is None else ahead.get
    with progress_bar(expected_stages(config, rows, restarts, settled, mesh)) as on_step:
        return align_with_progress(key, x, y, config, on_step, restarts, settled, pairs, keep, get_compiled, mesh)


def device_name() -> str:
    """Platform and kind of the first device."""
    device = jax.devices()[0]
    return f"{device.platform}:{device.device_kind}"


def make_folder(folder: Path, option: str) -> None:
    """Make a folder that an option names, where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{option}: {folder} must be a folder or the name of a new one, found that it cannot be made: "
            f"{error.strerror}; name another folder"
        ) from error
