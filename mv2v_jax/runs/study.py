"""A stability study: many restarts on all rows, fewer on some of them and on resamples, and how far they agree."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.api import check_restarts, restart_keys
from mv2v_jax.alignment.fit import fit, search
from mv2v_jax.alignment.results import AlignResult
from mv2v_jax.config import Config
from mv2v_jax.data.inputs import check_inputs
from mv2v_jax.data.map_file import save_map
from mv2v_jax.data.padding import PaddedRows, check_divisible, pad_rows, sampled_rows
from mv2v_jax.data.scan import digest
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.stability import Stability
from mv2v_jax.ops.sharding import ROW, is_first, on_host
from mv2v_jax.progress import OnStep
from mv2v_jax.runs.chunked import Chunked
from mv2v_jax.runs.judgement import list_evidence
from mv2v_jax.runs.processes import all_or_none
from mv2v_jax.runs.study_facts import (
    agreement_with_chosen,
    collect_facts,
    compare_searches,
    list_restarts,
    summarize_restarts,
)
from mv2v_jax.runs.study_files import open_study, write_csv, write_json
from mv2v_jax.version import __version__


class Plan(NamedTuple):
    """What a study runs.

    Attributes:
        seed: random seed of the whole study.
        restarts: number of restarts on all rows.
        settled: number of the best restarts that are settled and averaged; after a second search
            ``components.num_settled`` at least.
        chunk: number of restarts per file, and per call of a compiled function.
        sizes: numbers of rows per space, for the curve over sizes.
        size_restarts: number of restarts for each of ``sizes``.
        bootstraps: number of resamples of the rows, with replacement, with one restart each.
    """

    seed: int
    restarts: int
    settled: int
    chunk: int
    sizes: tuple[int, ...]
    size_restarts: int
    bootstraps: int


class Study(NamedTuple):
    """The result of a study.

    Attributes:
        result: `AlignResult`, the average of the best restarts that agree.
        facts: what `write_study` writes as JSON.
        restarts: one dict per restart, the rows of ``restarts.csv``.
        stability: `Stability` of the restarts on all rows.
        row_numbers: ``[p]``, numbers of the rows of X that ``stability.row_stability`` is about.
        partner_numbers: ``[p]``, number of the row of Y that is the most frequent nearest one of each.
        made_by: what the study was made from: numbers of rows, dimensions, config, plan and digests of the data.
        trajectory: per stage, its label-free objective, ``[r, steps]``.
    """

    result: AlignResult
    facts: dict[str, Any]
    restarts: list[dict[str, Any]]
    stability: Stability
    row_numbers: np.ndarray
    partner_numbers: np.ndarray
    made_by: dict[str, Any]
    trajectory: dict[str, np.ndarray]


# ----------------------------------------------------------------------------------------------------------------- run


def run_study(
    x: Any,
    y: Any,
    config: Config,
    plan: Plan,
    folder: Path,
    on_step: OnStep,
    *,
    resume: bool = False,
    mesh: Mesh | None = None,
    pairs: tuple[Any, Any] | None = None,
) -> Study:
    """Run the searches that the folder does not hold yet, and compare all of them.

    A study that was killed and resumed gives the same bits as one that was not.

    Args:
        x: ``[n, d_x]`` raw rows of the source.
        y: ``[m, d_y]`` raw rows of the target.
        config: as for `align_restarts`.
        plan: what to run.
        folder: folder of the study; finished searches are kept there.
        on_step: called with the name of a part, the number of restarts done and the number of restarts to do.
        resume: whether the folder may hold the study already.
        mesh: from `make_mesh`, to spread restarts and rows over devices. All its processes call this together, and the
            first one writes the folder.
        pairs: known pairs, if any, as for `align`; every restart gets all of them, on resampled rows too.

    Raises:
        InputError: rows, config or plan cannot be used, or the folder cannot be used (`open_study`).
    """
    num_rows = min(x.shape[0], y.shape[0])
    check_plan(plan, num_rows, config)
    for size in (*plan.sizes, x.shape[0], y.shape[0]):
        check_divisible(size, config.max_rows, mesh)
    key = jax.random.key(plan.seed)
    x, y, seeds = check_inputs(key, x, y, config, pairs)

    made_by: dict[str, Any] = {}

    def open_folder() -> BinaryIO | None:
        made_by.update(identify_study(x, y, config, plan, mesh, seeds))
        return open_study(folder, made_by, resume=resume) if is_first() else None

    # No other process may run the study as long as its folder is open.
    with all_or_none(open_folder) or contextlib.nullcontext():
        study = _search_and_compare((x, y), seeds, config, plan, folder, on_step, mesh)
    shapes = {"n": x.shape[0], "m": y.shape[0], "d_x": x.shape[1], "d_y": y.shape[1]}
    return study._replace(made_by={**shapes, **made_by})


def _search_and_compare(
    sides: tuple[Any, Any],
    seeds: tuple[Any, Any],
    config: Config,
    plan: Plan,
    folder: Path,
    on_step: OnStep,
    mesh: Mesh | None,
) -> Study:
    """What `run_study` does in the open folder, for arguments that it has checked."""
    (x, y), key = sides, jax.random.key(plan.seed)

    def part(
        name: str, num_restarts: int, draw: Callable[[int], np.ndarray] | None = None
    ) -> tuple[Chunked, jax.Array, PaddedRows, PaddedRows, Config]:
        """The arguments of `fit` for one part of the study; ``draw(n)`` returns which of ``n`` rows take part."""
        run, keys = Chunked(name, plan.chunk, folder, on_step, mesh), restart_keys(key, 0, num_restarts)
        padded_x, padded_y = (
            _pad_drawn(rows, draw, config, mesh, side) for rows, side in zip((x, y), seeds, strict=True)
        )
        return run, keys, padded_x, padded_y, config

    result, searched = on_host(fit(*part("restarts", plan.restarts), plan.settled))
    curve = []
    for size in plan.sizes:
        smaller = search(*part(f"rows-{size}", plan.size_restarts, functools.partial(_sample, plan.seed, size)))
        curve.append({"rows": size, **summarize_restarts(list_restarts(on_host(smaller)))})
    resampled = []
    for index in range(plan.bootstraps):
        again = search(*part(f"bootstrap-{index}", 1, functools.partial(_resample, plan.seed, index)))
        resampled.append(float(agreement_with_chosen(again, searched, config)))

    numbers_x, numbers_y = (_row_numbers(rows.shape[0], config.max_rows) for rows in (x, y))
    stability = on_host(compare_searches(searched, config, num_rows_y=len(numbers_y)))
    # The first rows, without the padding.
    numbers = numbers_x[: len(stability.row_stability)]
    probed = {name: getattr(stability, name)[: len(numbers)] for name in ("row_stability", "row_partner")}
    stability = dataclasses.replace(stability, **probed)
    listed = list_restarts(searched, stability.basin)
    curve.append({"rows": min(x.shape[0], y.shape[0]), **summarize_restarts(listed)})
    return Study(
        result=result,
        facts=collect_facts(result, int(searched.choice.chosen), listed, stability, curve, resampled),
        restarts=listed,
        stability=stability,
        row_numbers=numbers,
        partner_numbers=numbers_y[stability.row_partner],
        made_by={},
        trajectory={name: np.asarray(values) for name, values in searched.found.trajectory.items()},
    )


def _row_numbers(num_rows: int, max_rows: int) -> np.ndarray:
    """The numbers of the rows of the data that take part in a fit."""
    sampled = sampled_rows(num_rows, max_rows)
    return np.arange(num_rows) if sampled is None else sampled


def check_plan(plan: Plan, num_rows: int, config: Config) -> None:
    """Raise `InputError` if a size exceeds the data, or there are too few restarts or held-out rows to compare."""
    if plan.restarts < 2:
        raise InputError(f"a study must have at least 2 restarts to compare, found {plan.restarts}")
    check_restarts(plan.restarts, num_rows, config, plan.settled)
    for size in plan.sizes:
        if size >= num_rows:
            raise InputError(f"sizes must be below the {num_rows} rows of the smaller space, found {size}")


def identify_study(
    x: Any, y: Any, config: Config, plan: Plan, mesh: Mesh | None = None, seeds: tuple[Any, Any] = (None, None)
) -> dict[str, Any]:
    """Everything that the result of a study depends on, as JSON values: two studies are the same if these are equal."""
    return {
        "mv2v_jax_version": __version__,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
        # A restart has the same bits on any device, but a sum over rows depends on the number of devices that share it.
        "row_devices": 1 if mesh is None else mesh.shape[ROW],
        "config": dataclasses.asdict(config),
        "plan": plan._asdict() | {"sizes": list(plan.sizes)},
        "digest_x": digest(x),
        "digest_y": digest(y),
        "digest_pairs": None if seeds[0] is None else [digest(side) for side in seeds],
    }


def _sample(seed: int, size: int, num_rows: int) -> np.ndarray:
    """The numbers of ``size`` of the rows, in ascending order."""
    return np.sort(np.random.default_rng([seed, size, num_rows]).choice(num_rows, size, replace=False))


def _resample(seed: int, index: int, num_rows: int) -> np.ndarray:
    """The numbers of ``num_rows`` rows drawn with replacement."""
    return np.random.default_rng([seed, index, num_rows, 1]).integers(num_rows, size=num_rows)


def _pad_drawn(
    rows: Any, draw: Callable[[int], np.ndarray] | None, config: Config, mesh: Mesh | None, seeds: Any
) -> PaddedRows:
    """Pad the rows that take part in one part of a study; only these are read."""
    index = None
    if draw is not None:
        index = draw(rows.shape[0])
        sampled = sampled_rows(len(index), config.max_rows)
        index = index if sampled is None else index[sampled]
    return pad_rows(rows, config.max_rows, mesh, seeds, index=index)


# --------------------------------------------------------------------------------------------------------------- write


def write_study(study: Study, folder: Path, rows: tuple[Any, Any] | None = None) -> None:
    """Write ``map.safetensors``, ``stability.json``, ``restarts.csv`` and ``rows.csv``, each whole or not at all.

    Args:
        study: the study.
        folder: folder to write to.
        rows: the rows of both spaces, which the map then remembers (`save_map`).
    """
    made_by = {name: value for name, value in study.made_by.items() if value is not None}
    provenance = {**made_by, "evidence": list_evidence(study.result.evidence)}
    save_map(folder / "map.safetensors", study.result.map, {**provenance, **study.facts}, rows=rows)
    write_json(folder / "stability.json", study.facts)
    write_csv(folder / "restarts.csv", study.restarts)
    columns = (study.row_numbers, study.partner_numbers, np.asarray(study.stability.row_stability))
    listed = zip(*(column.tolist() for column in columns), strict=True)
    names = ("row", "partner", "stability")
    write_csv(folder / "rows.csv", [dict(zip(names, values, strict=True)) for values in listed])
