"""A fit whose searches run in chunks and are kept in files, so that an interruption costs at most a chunk.

A search depends on its own key alone, and every chunk runs in one compiled function of one size. So a fit that was
killed and resumed ends with the same bits as one that was not.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mv2v_jax.alignment.api import restart_batch
from mv2v_jax.alignment.results import Prepared, Searched
from mv2v_jax.alignment.run import SEARCHING, Inline, WholeItems
from mv2v_jax.config import Config
from mv2v_jax.data.padding import spread
from mv2v_jax.ops.sharding import EVERYWHERE, RESTART, from_first, is_first, on_host, over_mesh
from mv2v_jax.paths import is_file
from mv2v_jax.progress import COMPILING, OnStep
from mv2v_jax.runs.processes import all_or_none
from mv2v_jax.runs.study_files import chunk_path, load_arrays, save_arrays

_logger = logging.getLogger(__name__)


@functools.partial(jax.jit, static_argnames=("fun", "mesh"))
def _call(fun: Callable[..., Any], mesh: Mesh | None, *args: Any) -> Any:
    return spread(fun, mesh, args)(*args)


@functools.partial(jax.jit, static_argnames=("name", "fun", "batch_size", "mesh"))
def _each(
    name: str, fun: Callable[..., Any], batch_size: int, mesh: Mesh | None, items: jax.Array, *shared: Any
) -> Any:
    each = functools.partial(Inline(batch_size).each, name, fun)
    return over_mesh(each, mesh, *[EVERYWHERE] * (1 + len(shared)))(items, *shared)


class Chunked(WholeItems):
    """A `Run` that searches in chunks and keeps every finished chunk in a file. Each step is compiled as a whole.

    Args:
        part: name of the files' part of the study, and of the progress.
        chunk: number of searches per file and per call of a compiled function.
        folder: folder of the study, made by `open_study`. Among several processes, that of the first.
        on_step: called with the part, the number of searches done and the number of searches to do.
        mesh: mesh over which searches and rows are sharded, if any.
    """

    def __init__(self, part: str, chunk: int, folder: Path, on_step: OnStep, mesh: Mesh | None) -> None:
        self._part, self._chunk, self._folder = part, chunk, folder
        self._on_step, self._mesh = on_step, mesh

    def call(self, name: str, fun: Callable[..., Any], *args: Any) -> Any:
        return _call(fun, self._mesh, *args)

    def each(self, name: str, fun: Callable[..., Any], items: jax.Array, *shared: Any) -> Any:
        if name == SEARCHING:
            return self._search(fun, items, *shared)
        return _each(name, fun, 1, self._mesh, items, *shared)

    def _search(self, fun: Callable[..., Any], keys: jax.Array, prepared: Prepared, config: Config) -> Searched:
        """One search per key: read from its file if there is one, otherwise run and written."""
        num_searches = keys.shape[0]
        chunk = min(self._chunk, num_searches)
        num_rows, num_dims = map(max, zip(prepared.fitted.x.shape, prepared.fitted.y.shape, strict=True))
        batch_size = restart_batch(chunk, num_rows, num_dims, config, self._mesh)

        def run(keys: jax.Array) -> Searched:
            return _each(SEARCHING, fun, batch_size, self._mesh, keys, prepared, config)

        # Only searches that run side by side are called together, so that all can be reported as they end.
        side_by_side = batch_size * (1 if self._mesh is None else self._mesh.shape[RESTART])
        if chunk % side_by_side:
            side_by_side = chunk
        leaves, structure = jax.tree.flatten(jax.eval_shape(run, keys[:chunk]))
        self._on_step(self._part, 0, num_searches)
        self._on_step(COMPILING + self._part, 0, 1)
        paths = {first: chunk_path(self._folder, self._part, first) for first in range(0, num_searches, chunk)}
        kept = [first for first, path in paths.items() if from_first(is_file(path))]
        for first in kept:
            # Report a damaged file before the other chunks are searched for, not after.
            all_or_none(functools.partial(_read, paths[first], leaves))
        for first, path in paths.items():
            if first in kept:
                self._on_step(self._part, min(first + chunk, num_searches), num_searches)
            else:
                # The last chunk is filled up with other searches, so that it runs in the same compiled function.
                numbers = (first + np.arange(chunk)) % num_searches
                parts = []
                for place in range(0, chunk, side_by_side):
                    parts.append(on_host(run(keys[numbers[place : place + side_by_side]])))
                    self._on_step(self._part, min(first + place + side_by_side, num_searches), num_searches)
                searched = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
                all_or_none(functools.partial(_write, path, searched))
                _logger.info("%s: %d of %d searches", self._part, min(first + chunk, num_searches), num_searches)
        # All chunks are read back, so that a resumed study continues from the same arrays; and only now, so that
        # memory does not grow during the searches.
        found = []
        for first, path in paths.items():
            arrays = all_or_none(functools.partial(_read, path, leaves))
            found.append([array[: num_searches - first] for array in from_first(arrays)])
        return jax.tree.unflatten(structure, [np.concatenate(parts) for parts in zip(*found, strict=True)])


def _write(path: Path, searched: Searched) -> None:
    if is_first():
        save_arrays(path, jax.tree.leaves(searched))


def _read(path: Path, leaves: list[Any]) -> list[np.ndarray]:
    """The arrays of a chunk in the first process; zeros of the same shapes in the others."""
    shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
    return load_arrays(path, shapes) if is_first() else [np.zeros(*shape) for shape in shapes]
