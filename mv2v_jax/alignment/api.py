"""`align` and `align_restarts`: what users call."""

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.choose import order_by_score, searched_maps
from mv2v_jax.alignment.components import component_numbers
from mv2v_jax.alignment.fit import fit
from mv2v_jax.alignment.results import AlignResult, Search
from mv2v_jax.alignment.run import Inline
from mv2v_jax.alignment.score import Evidence, Reason, Verdict
from mv2v_jax.alignment.space import num_held_out
from mv2v_jax.alignment.stage_by_stage import OverMesh, StageByStage, expected_stages
from mv2v_jax.config import Config
from mv2v_jax.data.inputs import check_inputs, pad_inputs, prepare_inputs
from mv2v_jax.data.padding import PaddedRows, row_specs
from mv2v_jax.errors import AlignmentWarning, InputError
from mv2v_jax.linear_map import LinearMap
from mv2v_jax.ops.knn import BLOCK_ENTRIES, BLOCK_ROWS
from mv2v_jax.ops.pytree import pytree
from mv2v_jax.ops.sharding import EVERYWHERE, RESTART, from_first, on_host, over_mesh
from mv2v_jax.progress import OnStep, show_progress
from mv2v_jax.settings import as_config

Keep = Literal["best", "summary", "all"]


@pytree
class Restarts:
    """What `align_restarts` returns.

    Attributes:
        best: `AlignResult` of the chosen restart; where several were settled its map is their average.
        chosen: int32 scalar, number of the chosen restart; its key was ``fold_in(key, chosen)``.
        evidence: `Evidence` of every restart, each field ``[r]``.
        agreement: ``[r, r]``, agreement of every two restarts in the finer directions, see `score.fine_agreement`.
        trajectory: per stage of the search, its label-free objective, ``[r, steps]``; ``None`` unless kept.
        maps: `LinearMap` of every restart before it was settled, in the directions that were searched, each field
            ``[r, ...]``; ``None`` unless kept.
    """

    best: AlignResult
    chosen: jax.Array
    evidence: Evidence
    agreement: jax.Array
    trajectory: dict[str, jax.Array] | None
    maps: LinearMap | None

    def __repr__(self) -> str:
        number = self.evidence.score.shape[-1]
        if isinstance(self.chosen, jax.core.Tracer) or self.chosen.ndim:
            return f"Restarts({number} restarts)"
        scores = ", ".join(f"{score:.3f}" for score in np.asarray(self.evidence.score)[:8])
        more = ", ..." if number > 8 else ""
        return f"Restarts: {number}, number {int(self.chosen)} chosen by its score of {scores}{more}\n{self.best!r}"


@jax.jit
def _align(key: jax.Array, x: PaddedRows, y: PaddedRows, config: Config) -> AlignResult:
    return fit(Inline(), key[None], x, y, config)[0]


def align(
    key: jax.Array, x: Any, y: Any, config: Config | None = None, *, pairs: tuple[Any, Any] | None = None
) -> AlignResult:
    """Learn a linear map from one embedding space to another without a single known pair, or with a few.

    One pure function: it jits, vmaps over keys, exports, and compiles once per shapes and static config. A single
    search cannot be called `Verdict.aligned`, because nothing confirms it: use `align_restarts` for a verdict.

    Args:
        key: random key, from `jax.random.key`.
        x: ``[n, d_x]`` raw rows of the source encoder; float16, bfloat16, float32 or float64. Also `RowFiles` from
            `open_rows`, which may be larger than memory.
        y: ``[m, d_y]`` raw rows of the target encoder, of other texts of the same kind.
        config: a `Config`; the default preset if none. Its integers are static, its floats traced.
        pairs: raw rows ``[p, d_x]`` and ``[p, d_y]`` of which row i and row i belong together, if any are known. They
            need not be rows of ``x`` and ``y``.

    Returns:
        `AlignResult`: the map, the verdict on it with its evidence, and the trajectory of every stage.

    Raises:
        InputError: a `ValueError`; shapes, dtypes or config out of range, and, where the arrays are concrete, NaN,
            infinity, rows too long or too short to square, or all equal.

    Example:
        >>> import jax, mv2v_jax
        >>> x = jax.random.normal(jax.random.key(0), (300, 8)) ** 3
        >>> few_steps = {"anchors": {"num_sets": 2}, "annealing": {"steps": 1}, "settling": {"whole_steps": 0}}
        >>> few_steps["components"] = {"num_runs": 0}
        >>> config = mv2v_jax.Config.fast().replace(**few_steps)  # So that this example compiles quickly.
        >>> result = mv2v_jax.align(jax.random.key(1), x[:150], x[150:, ::-1], config)
        >>> result.map.W.shape
        (8, 8)

    Source: mini-vec2vec (arXiv 2510.02348); the default preset departs from it as `refine_annealed` says.
    """
    config = as_config(config, Config)
    padded = prepare_inputs(key, x, y, config, pairs)
    return _align(key, *padded, config)


def select(evidence: Evidence) -> jax.Array:
    """Which of several fits of the same data to keep: the one of the best score, an int32 scalar.

    Args:
        evidence: `Evidence` with fields ``[r]``, one entry per fit.

    Example:
        >>> import dataclasses, jax.numpy as jnp
        >>> scores = jnp.array([0.2, 0.7, 0.4])
        >>> int(select(Evidence(**{field.name: scores for field in dataclasses.fields(Evidence)})))
        1
    """
    return order_by_score(evidence.score)[0]


@functools.partial(jax.jit, static_argnames=("num_restarts",))
def restart_keys(key: jax.Array, first: int, num_restarts: int) -> jax.Array:
    """Keys of the restarts ``first``, ``first + 1``, ...: a restart's key depends on its number alone."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(num_restarts))


def _pack(best: AlignResult, searched: Search, config: Config, keep: Keep) -> Restarts:
    return Restarts(
        best=best,
        chosen=searched.choice.chosen,
        evidence=searched.found.evidence,
        agreement=searched.choice.agreement,
        trajectory=None if keep == "best" else searched.found.trajectory,
        maps=restart_maps(searched, config) if keep == "all" else None,
    )


def fit_in_stages(
    on_step: OnStep,
    key: jax.Array,
    x: PaddedRows,
    y: PaddedRows,
    config: Config,
    choices: dict[str, Any],
    get_compiled: Callable[[Any], Any] = lambda _: None,
) -> tuple[Restarts, StageByStage]:
    """`fit_restarts` by a run that reports what it does, and that run; it cannot be traced.

    ``choices`` are of `prepare_restarts`, ``get_compiled`` is of `StageByStage`.
    """
    mesh = choices["mesh"]
    run = StageByStage(on_step, get_compiled) if mesh is None else OverMesh(on_step, mesh, choices["batch_size"])
    fitted = fit(run, restart_keys(key, 0, choices["num_restarts"]), x, y, config, choices["num_settled"])
    # Of a mesh of several processes, each can compute with NumPy arrays only by itself.
    best, searched = fitted if mesh is None else on_host(fitted)
    packed = _pack(best, searched, config, choices["keep"])
    return packed if mesh is not None else jax.device_put(packed), run


def _warn_unless_aligned(best: AlignResult) -> None:
    """Warn of a map that should not be used unchecked; traced results have no verdict yet."""
    if isinstance(best.verdict, jax.core.Tracer) or int(best.verdict) == Verdict.aligned.value:
        return
    verdict, reason = Verdict(int(best.verdict)).name, Reason(int(best.reason)).name
    warnings.warn(
        f"the map is {verdict.replace('_', ' ')} (confidence {float(best.confidence):.2f}): "
        f"{reason.replace('_', ' ')}; check it on true pairs before you use it",
        AlignmentWarning,
        stacklevel=3,
    )


def restart_maps(searched: Search, config: Config) -> LinearMap:
    """The maps of all searches before they are settled, each field ``[r, ...]``."""
    prepared = searched.prepared
    W = jax.vmap(prepared.subspace.extend)(searched_maps(searched.found, config))
    sides = (prepared.source.centering, prepared.target.centering)
    source, target = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (W.shape[0], *leaf.shape)), sides)
    return LinearMap(W=W, source=source, target=target)


@functools.partial(jax.jit, static_argnames=("num_restarts", "batch_size", "keep", "num_settled", "mesh"))
def fit_restarts(
    key: jax.Array,
    x: PaddedRows,
    y: PaddedRows,
    config: Config,
    *,
    num_restarts: int,
    batch_size: int,
    keep: Keep,
    num_settled: int,
    mesh: Mesh | None,
) -> Restarts:
    """What `align_restarts` compiles, for rows and choices that `prepare_restarts` has checked."""

    def run(key, x, y, config):
        keys = restart_keys(key, 0, num_restarts)
        best, searched = fit(Inline(batch_size), keys, x, y, config, num_settled)
        return _pack(best, searched, config, keep)

    return over_mesh(run, mesh, EVERYWHERE, row_specs(x), row_specs(y), EVERYWHERE)(key, x, y, config)


def align_restarts(
    key: jax.Array,
    x: Any,
    y: Any,
    num_restarts: int,
    config: Config | None = None,
    *,
    batch_size: int | None = None,
    keep: Keep = "summary",
    num_settled: int = 1,
    mesh: Mesh | None = None,
    pairs: tuple[Any, Any] | None = None,
    progress: bool | OnStep = False,
) -> Restarts:
    """Search several times from different draws, and settle the best search by its `Evidence`, or the best few.

    A fit can end in a basin that is not the right one, more often where rows are few. Restarts differ in every draw;
    each search is scored on rows that no search has seen. Only the best search
    is settled, or the best few. Settling is half of the work of a fit. The average of the best few is better than each.

    Args:
        key: random key; restart ``i`` is what `align` does with ``fold_in(key, i)``.
        x: ``[n, d_x]`` raw rows of the source encoder.
        y: ``[m, d_y]`` raw rows of the target encoder.
        num_restarts: number of searches.
        config: a `Config`; the default preset if none. It must hold rows out.
        batch_size: number of restarts searched side by side on each device; by default as many as `restart_batch`
            finds to fit its memory. One after the other is faster on CPU.
        keep: what to return of every restart besides its evidence and its agreement with the others: ``"best"``
            nothing, ``"summary"`` its trajectory, ``"all"`` its trajectory and its map (``d_x * d_y`` numbers each).
        num_settled: number of best restarts that are settled and averaged, each weighted by its agreement with the
            best. Each costs half of a fit's time. Capped at ``num_restarts``. Where the map is that of a second search,
            at least ``config.components.num_settled``.
        mesh: from `make_mesh`, to spread restarts and rows over devices, of several processes as well. All processes
            call this with the same arguments, and each holds of ``x`` and ``y`` what its own devices need. The result
            is that of one device, up to rounding.
        pairs: known pairs, if any, as for `align`.
        progress: ``True`` for a bar on standard error with the current stage, the time passed and the time left, which
            needs the extra ``cli``; or a function that is called with a stage's name, its steps done and its steps to
            do. Stages are then compiled one by one, over a mesh whole searches: the result is the same up to rounding.

    Returns:
        `Restarts`: the best result, and the evidence of every restart.

    Raises:
        InputError: as `align`; also where nothing is held out to choose by, where ``keep`` is none of the three, and
            where the devices of the row axis do not divide the padded rows.

    Warns:
        AlignmentWarning: the verdict is not ``aligned``.

    Example:
        >>> import jax, mv2v_jax
        >>> x = jax.random.normal(jax.random.key(0), (300, 8)) ** 3
        >>> few_steps = {"anchors": {"num_sets": 2}, "annealing": {"steps": 1}, "settling": {"whole_steps": 0}}
        >>> few_steps["components"] = {"num_runs": 0}
        >>> config = mv2v_jax.Config.fast().replace(**few_steps)  # So that this example compiles quickly.
        >>> fits = mv2v_jax.align_restarts(jax.random.key(1), x[:150], x[150:, ::-1], 2, config)
        >>> fits.agreement.shape
        (2, 2)
    """
    config = as_config(config, Config)
    x, y, choices = prepare_restarts(
        key,
        x,
        y,
        config,
        num_restarts=num_restarts,
        batch_size=batch_size,
        keep=keep,
        num_settled=num_settled,
        mesh=mesh,
        pairs=pairs,
    )
    if progress is False:
        result = fit_restarts(key, x, y, config, **choices)
    else:
        expected = expected_stages(config, min(len(x.rows), len(y.rows)), num_restarts, num_settled, mesh)
        with contextlib.nullcontext(progress) if callable(progress) else show_progress(expected) as on_step:
            result, _ = fit_in_stages(on_step, key, x, y, config, choices)
    _warn_unless_aligned(result.best)
    return result


def _check_keep(keep: Keep) -> None:
    if keep not in get_args(Keep):
        raise InputError(f"keep must be one of {', '.join(get_args(Keep))}, found {keep!r}")


def prepare_restarts(
    key: jax.Array,
    x: Any,
    y: Any,
    config: Config,
    *,
    num_restarts: int,
    batch_size: int | None = None,
    keep: Keep = "summary",
    num_settled: int = 1,
    mesh: Mesh | None = None,
    pairs: tuple[Any, Any] | None = None,
) -> tuple[PaddedRows, PaddedRows, dict[str, Any]]:
    """Check what `align_restarts` is given: both spaces' padded rows, and the keywords of `fit_restarts`."""
    _check_keep(keep)
    x, y, seeds = check_inputs(key, x, y, config, pairs)
    check_restarts(num_restarts, min(x.shape[0], y.shape[0]), config, num_settled)
    x, y = pad_inputs(x, y, seeds, config, mesh)
    if batch_size is not None:
        _check_count("batch_size", batch_size)
        # A larger one would compile another program for the same searches.
        batch_size = min(batch_size, num_restarts)
    else:
        num_rows, num_dims = map(max, zip(x.rows.shape, y.rows.shape, strict=True))
        batch_size = restart_batch(num_restarts, num_rows, config.search_dims or num_dims, config, mesh)
    choices = {"num_restarts": num_restarts, "batch_size": batch_size, "keep": keep, "num_settled": num_settled}
    return x, y, {**choices, "mesh": mesh}


def search_bytes(num_rows: int, num_dims: int, config: Config) -> int:
    """Upper bound of a search's memory in bytes, without the shared rows; XLA's own count is 0.7 to 0.85 of it.

    Searches side by side compute the second search as well, see `Inline.when`.
    """
    similarities = min(BLOCK_ENTRIES, BLOCK_ROWS * num_rows)
    drawn = min(num_rows, max(config.anchors.rows, config.annealing.rows, config.published.match_rows))
    components = component_numbers(num_rows, num_dims, config.components) if config.components.num_runs else 0
    return 4 * (3 * similarities + 12 * drawn * num_dims + components)


def restart_batch(num_restarts: int, num_rows: int, num_dims: int, config: Config, mesh: Mesh | None = None) -> int:
    """Number of restarts to search side by side on each device: as many as fit half of its memory; 1 on CPU.

    It depends on the memory a device has, not on what is free at the moment: a batch of another size may round in
    another way.

    Args:
        num_restarts: number of restarts in all.
        num_rows: rows of the larger side.
        num_dims: their dimensions.
        config: as for `align_restarts`.
        mesh: over which they are spread.
    """
    device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
    memory = device.memory_stats() if device.platform != "cpu" else None
    if not memory or "bytes_limit" not in memory:
        return 1
    on_each = -(-num_restarts // (1 if mesh is None else mesh.shape[RESTART]))
    batch = max(1, min(on_each, memory["bytes_limit"] // 2 // search_bytes(num_rows, num_dims, config)))
    # All processes compile the same program.
    return batch if mesh is None else int(from_first(np.asarray(batch)))


def _check_count(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InputError(f"{name} must be a whole number of at least 1, found {number!r}")


def check_restarts(num_restarts: int, num_rows: int, config: Config, num_settled: int = 1) -> None:
    """Raise `InputError` where there is no restart, none to settle, or nothing to choose among several by."""
    _check_count("num_restarts", num_restarts)
    _check_count("num_settled", num_settled)
    if num_restarts > 1 and num_held_out(num_rows, config.held_out_rows) < 1:
        raise InputError(
            "several restarts need held-out rows to choose the best one: set held_out_rows to at least 1 and pass at "
            "least 10 rows per side, found "
            f"held_out_rows={config.held_out_rows} and {num_rows} rows"
        )
