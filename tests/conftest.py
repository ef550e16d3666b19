"""What the tests share: small configs, clouds with a planted map, and ways to look into compiled functions."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.monitoring
import numpy as np
import pytest

from mv2v_jax.config import Config


def _set_if_known(flag: str) -> None:
    """Add a flag of XLA for this process and all it starts; one that does not know it would die of it."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if flag in os.environ.get("XLA_FLAGS", ""):
        return
    tried = [sys.executable, "-c", "import jax; jax.devices()"]
    if subprocess.run(tried, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True).returncode == 0:
        os.environ["XLA_FLAGS"] = flags


# Nearly all the suite's time is compiling, of which the emitters with an MLIR context a kernel take half.
_OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
_set_if_known(_OLD_EMITTERS)


def flags_of_users() -> str:
    """XLA's flags without the one above: for processes that are to compile as users do."""
    return os.environ.get("XLA_FLAGS", "").replace(_OLD_EMITTERS, "")


# For meshes. What runs on one device is not touched by the others.
jax.config.update("jax_num_cpu_devices", 8)

_SMALL = Config(
    max_rows=131_072,
    search_dims=0,
    num_anchor_sets=4,
    num_clusters=5,
    anchor_rows=40,
    lloyd_steps=3,
    num_starts=3,
    search_steps=8,
    kept_sets=3,
    matching_rows=50,
    num_neighbors=4,
    match_steps=4,
    match_rows=30,
    match_neighbors=4,
    held_out_rows=5,
    anneal_steps=4,
    anneal_rows=30,
    anneal_neighbors=2,
    anneal_power=1.0,
    csls_steps=2,
    csls_rows=35,
    csls_neighbors=2,
    ample_rows=100,
    whole_steps=1,
    whole_rows=40,
    cluster_steps=2,
    refine_clusters=7,
    smoothing=0.5,
    project=True,
    reliability_power=0.0,
    whitening_power=0.0,
)


def small_config(**changes) -> Config:
    """Every stage, a few steps each; no test depends on a default."""
    return dataclasses.replace(_SMALL, **changes)


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Every compiled function keeps some memory maps, of which a process has 65,530: XLA crashes for want of one."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compile():
    """Compile with little optimisation: for tests that compare the same program with itself, compiling is the cost."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class Planted(NamedTuple):
    """Two clouds of different rows, paired rows held out of both, and the map between their centred rows."""

    x: np.ndarray  # [n, d_x]
    y: np.ndarray  # [m, d_y]
    x_eval: np.ndarray  # [e, d_x]
    y_eval: np.ndarray  # [e, d_y], row i with row i of x_eval
    W: np.ndarray  # [d_x, d_y]


def planted_clouds(d_x: int, d_y: int, *, num_x=900, num_y=800, num_eval=200, groups=16, seed=0) -> Planted:
    """Draw disjoint rows of one latent mixture of groups and look at each half through another rotated, noisy view."""
    rng = np.random.default_rng(seed)
    latent_dims = min(d_x, d_y)
    # A decaying spectrum and uneven groups: without them there is no geometry to recognise.
    scales = 0.8 ** np.arange(latent_dims)
    centers = rng.normal(size=(groups, latent_dims)) * scales
    weights = rng.dirichlet(np.full(groups, 5.0))

    def latent(num):
        return centers[rng.choice(groups, num, p=weights)] + 0.3 * scales * rng.normal(size=(num, latent_dims))

    def view(rows, frame, offset):
        return (3 * rows @ frame + offset + 0.01 * rng.normal(size=(len(rows), frame.shape[1]))).astype(np.float32)

    frame_x, frame_y = (np.linalg.qr(rng.normal(size=(d, latent_dims)))[0].T for d in (d_x, d_y))
    offset_x, offset_y = rng.normal(size=d_x), rng.normal(size=d_y)
    held_out = latent(num_eval)
    return Planted(
        x=view(latent(num_x), frame_x, offset_x),
        y=view(latent(num_y), frame_y, offset_y),
        x_eval=view(held_out, frame_x, offset_x),
        y_eval=view(held_out, frame_y, offset_y),
        W=frame_x.T @ frame_y,
    )


def semi_orthogonal(rng: np.random.Generator, d_x: int, d_y: int) -> np.ndarray:
    """A random matrix ``[d_x, d_y]`` with orthonormal rows or columns, whichever are fewer."""
    q, _ = np.linalg.qr(rng.normal(size=(max(d_x, d_y), min(d_x, d_y))))
    return q if d_x >= d_y else q.T


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def rough_error(x, y) -> np.ndarray:
    """How far each inner product of rows may be off in `neighbors.rough_product`: ``[n, m]``, for the dtype of x.

    Both factors of every term are rounded to the eight bits of bfloat16, in the worst case all in one direction; the
    sums are rounded to float32, or to float64, where nothing else is.
    """
    dtype = np.asarray(x).dtype
    lengths = np.abs(np.float64(x)) @ np.abs(np.float64(y)).T
    unit_roundoff = 2.0**-8 if dtype == np.float32 else 0
    return (2 * unit_roundoff + unit_roundoff**2 + x.shape[1] * np.finfo(dtype).eps) * lengths


def assert_trees_close(actual, expected, *, atol=1e-5, rtol=1e-5) -> None:
    """Same structure, and leaves close; the oracle is the second argument."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == other.dtype, jax.tree_util.keystr(path)
        as_float = [np.asarray(value).astype(np.float64) for value in (leaf, other)]
        np.testing.assert_allclose(*as_float, atol=atol, rtol=rtol, err_msg=jax.tree_util.keystr(path))


@contextlib.contextmanager
def count_compilations():
    """Count XLA compilations inside the block: the list yielded holds one entry for each."""
    compilations = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def equations(jaxpr):
    """All equations of a jaxpr, through every loop, branch and call."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                yield from equations(getattr(inner, "jaxpr", inner))


def _is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
