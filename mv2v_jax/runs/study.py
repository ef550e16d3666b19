"""A stability study on disk: many restarts in chunks, each a file, so that an interruption costs at most a chunk.

A restart depends on its number alone, and every chunk runs in one compiled function of one size. So a study that was
killed and resumed ends with the same bits as one that was not.
"""

import csv
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.fit import Searched, SearchRows, as_map, lift_search, prepare_search
from mv2v_jax.alignment.restarts import (
    Choice,
    agreement_with_others,
    check_restarts,
    choose,
    map_agreement,
    restart_batch,
    restart_keys,
    search_restarts,
    settle_restarts,
)
from mv2v_jax.alignment.results import AlignResult
from mv2v_jax.alignment.score import Verdict, judge
from mv2v_jax.alignment.space import Space, fit_space
from mv2v_jax.alignment.subspace import in_directions
from mv2v_jax.config import Config
from mv2v_jax.data.checks import check_pairs
from mv2v_jax.data.files import atomic_path, load_arrays, save_arrays
from mv2v_jax.data.map_file import save_map
from mv2v_jax.data.npy_rows import RowChoice
from mv2v_jax.data.padding import PaddedRows, check_divisible, pad_rows, row_specs, sampled_rows
from mv2v_jax.data.scan import digest
from mv2v_jax.errors import InputError
from mv2v_jax.evaluation.stability import Stability, measure_stability
from mv2v_jax.ops.sharding import EVERYWHERE, ROW, from_first, is_first, over_mesh
from mv2v_jax.runs.compiled import OnStep
from mv2v_jax.runs.processes import all_or_none

_MANIFEST, _CHUNKS = "study.json", "chunks"


T = TypeVar("T")


# Both sides of the known pairs, if any.
Known = tuple[Any, Any]


class Plan(NamedTuple):
    """What a study runs.

    Attributes:
        seed: of all of it.
        restarts: restarts on all rows.
        settled: how many of the best of them are settled and averaged.
        chunk: restarts in one file, and in one call of a compiled function.
        sizes: numbers of rows a side at which fewer restarts run, for the curve over sizes.
        size_restarts: how many at each of them.
        bootstraps: resamples of the rows, with replacement, one restart each.
    """

    seed: int
    restarts: int
    settled: int
    chunk: int
    sizes: tuple[int, ...]
    size_restarts: int
    bootstraps: int


class Study(NamedTuple):
    """What came out.

    Attributes:
        result: `AlignResult`, the average of the best restarts that agree.
        facts: what `write_study` writes as JSON.
        restarts: one dict a restart, the rows of the CSV.
        stability: `Stability` of the restarts on all rows.
        row_numbers: which rows of X its ``row_stability`` is of.
        trajectory: per stage, ``[r, steps]``.
    """

    result: AlignResult
    facts: dict[str, Any]
    restarts: list[dict[str, Any]]
    stability: Stability
    row_numbers: np.ndarray
    trajectory: dict[str, np.ndarray]


def _prepare_spaces(x: PaddedRows, y: PaddedRows, config: Config) -> tuple[Space, Space, SearchRows]:
    space_x, space_y = fit_space(*x), fit_space(*y)
    return space_x, space_y, prepare_search(space_x, space_y, config=config)


@functools.partial(jax.jit, static_argnames="mesh")
def _prepare(x: PaddedRows, y: PaddedRows, config: Config, mesh: Mesh | None) -> tuple[Space, Space, SearchRows]:
    return over_mesh(_prepare_spaces, mesh, row_specs(x), row_specs(y), EVERYWHERE)(x, y, config)


@functools.partial(jax.jit, static_argnames=("batch_size", "mesh"))
def _search_chunk(keys: jax.Array, rows: SearchRows, config: Config, batch_size: int, mesh: Mesh | None) -> Searched:
    def search(keys, rows, config):
        return search_restarts(keys, rows, config=config, batch_size=batch_size)

    return over_mesh(search, mesh, EVERYWHERE, EVERYWHERE, EVERYWHERE)(keys, rows, config)


@jax.jit
def _choose(searches: Searched, rows: SearchRows, config: Config) -> Choice:
    return choose(searches, rows.x.fitted, config=config)


@functools.partial(jax.jit, static_argnames=("num_settled", "mesh"))
def _settle(
    keys, space_x, space_y, rows, searches, choice, config: Config, num_settled: int, mesh: Mesh | None
) -> AlignResult:
    def settle(keys, space_x, space_y, rows, searches, choice, config):
        return settle_restarts(keys, space_x, space_y, rows, searches, choice, config=config, num_settled=num_settled)

    arguments = (keys, space_x, space_y, rows, searches, choice, config)
    return over_mesh(settle, mesh, *[EVERYWHERE] * len(arguments))(*arguments)


@jax.jit
def _stability(matrices, space_x: Space, space_y: Space, rows: SearchRows, config: Config) -> Stability:
    """In the directions that were searched, on the rows in the order of the data."""
    maps = jax.vmap(lambda matrix: as_map(matrix, config=config))(matrices)
    x, y = in_directions(space_x.rows, rows.directions_x), in_directions(space_y.rows, rows.directions_y)
    return measure_stability(maps, x, y)


@jax.jit
def _judge_all(searches: Searched, agreement: jax.Array):
    """Confidence and verdict of every restart, as if it had been the chosen one: ``[r]`` each."""

    def one(evidence, index):
        return judge(evidence, agreement_with_others(agreement, index))

    return jax.vmap(one)(searches.evidence, jnp.arange(agreement.shape[0]))


@jax.jit
def _agreement_with_chosen(matrix, rows: SearchRows, chosen, sampled_rows: SearchRows, space_x: Space, config: Config):
    """Cosine of a search of resampled rows with the chosen one, each in its own directions, on the rows of the data."""
    both = (matrix, rows), (chosen, sampled_rows)
    maps = jnp.stack([lift_search(as_map(found, config=config), where) for found, where in both])
    return map_agreement(maps, space_x.rows)[0, 1]


def check_plan(plan: Plan, num_rows: int, config: Config) -> None:
    """Raise `InputError` where a size is no part of the data, or restarts cannot be compared."""
    if plan.restarts < 2:
        raise InputError(f"a study must have at least 2 restarts to compare, found {plan.restarts}")
    check_restarts(plan.restarts, num_rows, config, plan.settled)
    for size in plan.sizes:
        if size >= num_rows:
            raise InputError(f"sizes must be smaller than the smaller side, of {num_rows} rows, found {size}")


def open_study(
    folder: Path,
    x: Any,
    y: Any,
    config: Config,
    plan: Plan,
    *,
    resume: bool,
    mesh: Mesh | None = None,
    known: Known = (None, None),
) -> None:
    """Make the folder of a study, or find it as it was left.

    Raises:
        InputError: there is a study already and ``resume`` is not given, or it is one of other rows, another config or
            another plan, or the folder cannot be written to.
    """
    from mv2v_jax.version import __version__

    wanted = {
        "mv2v_jax_version": __version__,
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
        # Restarts have the same bits wherever they run; a sum over rows depends on how many devices share them.
        "row_devices": 1 if mesh is None else mesh.shape[ROW],
        "config": dataclasses.asdict(config),
        "plan": plan._asdict() | {"sizes": list(plan.sizes)},
        "digest_x": digest(x),
        "digest_y": digest(y),
        "digest_pairs": None if known[0] is None else [digest(side) for side in known],
    }
    manifest, chunks = folder / _MANIFEST, folder / _CHUNKS
    if manifest.is_file():
        try:
            found = json.loads(manifest.read_text())
        except ValueError as error:
            raise InputError(f"{manifest} must be that of a study, found damaged JSON; use another folder") from error
        if found != wanted:
            other = sorted(name for name in wanted if found.get(name) != wanted[name])
            raise InputError(f"{folder} holds a study with another {', '.join(other)}; use another folder")
        if not resume:
            raise InputError(f"{folder} holds a study already; go on with it by --resume or use another folder")
    elif folder.is_dir() and any(not _is_left(path) for path in folder.iterdir()):
        raise InputError(f"{folder} must be empty or hold a study, found other files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not manifest.is_file():
            # Before anything else is in the folder, or a kill in between would leave what is no study.
            with atomic_path(manifest) as temporary:
                temporary.write_text(json.dumps(wanted))
        chunks.mkdir(exist_ok=True)
        for path in (*folder.iterdir(), *chunks.iterdir()):
            if _is_left(path):
                path.unlink()
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from error


def _is_left(path: Path) -> bool:
    """Whether a killed process left a file half-written."""
    return path.name.startswith(".") and path.name.endswith(".part")


def _sample(seed: int, size: int, num_rows: int) -> np.ndarray:
    """``size`` rows, in their order."""
    return np.sort(np.random.default_rng([seed, size, num_rows]).choice(num_rows, size, replace=False))


def _resample(seed: int, index: int, num_rows: int) -> np.ndarray:
    """As many rows as there are, with replacement."""
    return np.random.default_rng([seed, index, num_rows, 1]).integers(num_rows, size=num_rows)


class _Runner:
    """Runs parts of a study: restarts that share their rows. What its calls share."""

    def __init__(
        self, x: Any, y: Any, config: Config, plan: Plan, chunks: Path, on_step: OnStep, mesh: Mesh | None, known: Known
    ) -> None:
        self.x, self.y, self.config, self.plan, self.known = x, y, config, plan, known
        self.chunks, self.on_step, self.mesh = chunks, on_step, mesh

    def prepare(self, draw: Callable[[int], np.ndarray] | None) -> tuple[Space, Space, SearchRows]:
        """Both spaces and their searched rows; ``draw`` says which of ``n`` rows take part, all where it is none."""
        most = self.config.max_rows

        def drawn(rows, draw):
            index = draw(rows.shape[0])
            chosen = sampled_rows(len(index), most)
            # Drawn once and again before any row is read.
            return RowChoice(rows, index if chosen is None else index[chosen])

        sides = (self.x, self.y) if draw is None else (drawn(self.x, draw), drawn(self.y, draw))
        sized = (pad_rows(rows, most, self.mesh, known) for rows, known in zip(sides, self.known, strict=True))
        return _prepare(*sized, self.config, self.mesh)

    def search(self, name: str, restarts: int, rows: SearchRows) -> Searched:
        """Restarts ``0 .. restarts - 1`` on some rows: from their files where these exist, else run and written.

        Of several processes the first has the files.
        """
        key, chunk = jax.random.key(self.plan.seed), min(self.plan.chunk, restarts)
        num_rows, num_dims = map(max, zip(rows.x.fitted.shape, rows.y.fitted.shape, strict=True))
        batch_size = restart_batch(chunk, num_rows, num_dims, self.config, self.mesh)
        run = functools.partial(_search_chunk, config=self.config, batch_size=batch_size, mesh=self.mesh)
        leaves, structure = jax.tree.flatten(jax.eval_shape(run, restart_keys(key, 0, chunk), rows))
        self.on_step(name, 0, restarts)
        paths = {first: self.chunks / f"{name}-{first:06d}.safetensors" for first in range(0, restarts, chunk)}
        kept = [first for first, path in paths.items() if from_first(path.is_file())]
        for first in kept:
            # What is damaged in this part is told before its other chunks are searched for, not after.
            all_or_none(functools.partial(self._read, paths[first], leaves))
        for first, path in paths.items():
            if first not in kept:
                # The last chunk is a whole one as well, so that it runs in the same function.
                searched = _on_host(run(restart_keys(key, first, chunk), rows))
                all_or_none(functools.partial(self._write, path, searched))
            self.on_step(name, min(first + chunk, restarts), restarts)
        # Read back even where just written, so that a resumed study sees the same; and only now, so that memory does
        # not grow while restarts are searched for.
        found = []
        for first, path in paths.items():
            arrays = all_or_none(functools.partial(self._read, path, leaves))
            found.append([array[: restarts - first] for array in from_first(arrays)])
        return jax.tree.unflatten(structure, [np.concatenate(parts) for parts in zip(*found, strict=True)])

    def _write(self, path: Path, searched: Searched) -> None:
        if is_first():
            save_arrays(path, jax.tree.leaves(searched))

    def _read(self, path: Path, leaves: list[Any]) -> list[np.ndarray]:
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        return load_arrays(path, shapes) if is_first() else [np.zeros(*shape) for shape in shapes]


def _summary(values: np.ndarray) -> dict[str, float]:
    return {"median": float(np.median(values)), "lowest": float(values.min()), "highest": float(values.max())}


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
    """Run what is not in the folder yet, and compare: nothing that goes into the result depends on the time.

    Args:
        x: ``[n, d_x]`` raw rows of the source.
        y: ``[m, d_y]`` raw rows of the target.
        config: as for `align_restarts`.
        plan: what to run.
        folder: where chunks are kept.
        on_step: called with the name of a part, the restarts done and the restarts to do.
        resume: whether a study may be there already.
        mesh: of `make_mesh`, over which restarts and rows are spread; all processes of it call this together, and the
            folder is the first one's.
        pairs: known pairs, if any, as for `align`; every restart gets them, and every resample.
    """
    num_rows = min(x.shape[0], y.shape[0])
    check_plan(plan, num_rows, config)
    for size in (*plan.sizes, x.shape[0], y.shape[0]):
        check_divisible(size, config.max_rows, mesh)
    known = check_pairs(pairs, x, y)
    chunks = folder / _CHUNKS
    find = functools.partial(open_study, folder, x, y, config, plan, resume=resume, mesh=mesh, known=known)
    all_or_none(lambda: find() if is_first() else None)
    runner = _Runner(x, y, config, plan, chunks, on_step, mesh, known)

    space_x, space_y, rows = runner.prepare(None)
    searches = runner.search("restarts", plan.restarts, rows)
    choice = _on_host(_choose(searches, rows, config))
    chosen = int(choice.chosen)
    keys = restart_keys(jax.random.key(plan.seed), 0, plan.restarts)
    result = _on_host(_settle(keys, space_x, space_y, rows, searches, choice, config, plan.settled, mesh))
    found = _on_host(_stability(searches.matrix, space_x, space_y, rows, config))
    # Without the padding.
    numbers = sampled_rows(x.shape[0], config.max_rows)
    numbers = (np.arange(x.shape[0]) if numbers is None else numbers)[: len(found.row_stability)]
    found = found.replace(row_stability=found.row_stability[: len(numbers)])
    listed = _list_restarts(searches, choice, found.basin)

    curve = []
    for size in plan.sizes:
        _, _, some = runner.prepare(functools.partial(_sample, plan.seed, size))
        smaller = runner.search(f"rows-{size}", plan.size_restarts, some)
        listed_smaller = _list_restarts(smaller, _on_host(_choose(smaller, some, config)))
        curve.append({"rows": size, **_success(listed_smaller)})
    curve.append({"rows": num_rows, **_success(listed)})

    resampled = []
    for index in range(plan.bootstraps):
        _, _, some = runner.prepare(functools.partial(_resample, plan.seed, index))
        matrix = runner.search(f"bootstrap-{index}", 1, some).matrix[0]
        agreement = _agreement_with_chosen(matrix, some, searches.matrix[chosen], rows, space_x, config)
        resampled.append(float(agreement))

    compared = {name: _off_diagonal(getattr(found, name)) for name in ("agreement", "distance", "angle", "neighbors")}
    facts = {
        "restarts": plan.restarts,
        "verdict": Verdict(int(result.verdict)).name,
        "confidence": float(result.confidence),
        "estimated_top1": float(result.estimated_top1),
        "chosen": chosen,
        "basins": _list_basins(listed),
        **{name: _summary(values) for name, values in compared.items()},
        "row_stability": _summary(found.row_stability),
        "sizes": curve,
        "bootstrap_agreement": _summary(np.asarray(resampled)) if resampled else None,
    }
    trajectory = {name: np.asarray(values) for name, values in searches.trajectory.items()}
    return Study(
        result=result,
        facts=facts,
        restarts=listed,
        stability=found,
        row_numbers=numbers,
        trajectory=trajectory,
    )


def _on_host(tree: T) -> T:
    """Arrays of every device as NumPy's, which any process can look into."""
    return jax.tree.map(np.asarray, tree)


def _off_diagonal(pairs: np.ndarray) -> np.ndarray:
    return pairs[~np.eye(len(pairs), dtype=bool)]


def _list_restarts(searches: Searched, choice: Choice, basins: np.ndarray | None = None) -> list[dict[str, Any]]:
    """One dict a restart: its scores, and the verdict on it as if it had been the chosen one."""
    judged = _judge_all(searches, choice.agreement)
    columns = {
        "score": searches.evidence.score,
        "closeness": searches.evidence.closeness,
        "anchor_agreement": searches.evidence.anchor_agreement,
        "confidence": judged.confidence,
        "agreement_with_chosen": choice.agreement[choice.chosen],
    }
    values = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    return [
        {
            "restart": index,
            **({} if basins is None else {"basin": int(basins[index])}),
            "verdict": Verdict(int(verdict)).name,
            **{name: float(column[index]) for name, column in values.items()},
        }
        for index, verdict in enumerate(np.asarray(judged.verdict))
    ]


def _list_basins(listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    basins = sorted({row["basin"] for row in listed})
    scores = [np.array([row["score"] for row in listed if row["basin"] == basin]) for basin in basins]
    return [
        {"basin": basin, "size": len(found), "score": _summary(found)}
        for basin, found in zip(basins, scores, strict=True)
    ]


def _success(listed: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "restarts": len(listed),
        "aligned": sum(row["verdict"] == Verdict.aligned.name for row in listed) / len(listed),
        "score": _summary(np.array([row["score"] for row in listed])),
    }


def write_study(study: Study, folder: Path) -> None:
    """Write ``map.safetensors``, ``stability.json``, ``restarts.csv`` and ``rows.csv``, each whole or not at all."""
    save_map(folder / "map.safetensors", study.result.map, study.facts)
    with atomic_path(folder / "stability.json") as temporary:
        temporary.write_text(json.dumps(study.facts, indent=2) + "\n")
    _write_csv(folder / "restarts.csv", study.restarts)
    stable = np.asarray(study.stability.row_stability)
    _write_csv(
        folder / "rows.csv",
        [{"row": int(row), "stability": float(share)} for row, share in zip(study.row_numbers, stable, strict=True)],
    )


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
