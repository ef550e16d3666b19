"""Functions that tests share: small configs, clouds with a planted map, and ways to look into compiled functions."""

import contextlib
import os
from typing import NamedTuple

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.config import Config
from mv2v_jax.linear_map import Centering, LinearMap
from mv2v_jax.settings import iterate_fields

OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"


def flags_of_users() -> str:
    """The flags of XLA without the one above, for processes that compile as a user's program does."""
    return os.environ.get("XLA_FLAGS", "").replace(OLD_EMITTERS, "")


def with_settings(config: Config, **settings) -> Config:
    """A config with settings changed, those of a stage by names such as ``annealing_steps``."""
    changes: dict = {}
    for name, value in settings.items():
        stage, _, rest = name.partition("_")
        if hasattr(config, name):
            changes[name] = value
        else:
            changes.setdefault(stage, {})[rest] = value
    return config.replace(**changes)


_SMALL = with_settings(
    Config(),
    max_rows=131_072,
    search_dims=0,
    anchors_num_sets=4,
    anchors_num_clusters=5,
    anchors_rows=40,
    anchors_lloyd_steps=3,
    published_lloyd_steps=3,
    anchors_num_starts=3,
    anchors_search_steps=8,
    anchors_kept_sets=3,
    relative_rows=50,
    relative_num_neighbors=4,
    # Off, because it is compiled even where it is not needed.
    components_num_runs=0,
    components_ica_steps=10,
    components_guided_ica_steps=10,
    components_num_starts=3,
    components_match_steps=8,
    components_rounds=1,
    components_num_groups=1,
    components_likeness=0.006,
    components_num_settled=2,
    components_below=0.24,
    published_match_steps=4,
    published_match_rows=30,
    published_num_neighbors=4,
    held_out_rows=5,
    annealing_steps=4,
    annealing_rows=30,
    annealing_num_neighbors=2,
    annealing_power=1.0,
    annealing_late_power=1.0,
    settling_steps=2,
    settling_rows=35,
    settling_min_neighbors=2,
    settling_ample_rows=100,
    settling_whole_steps=1,
    settling_whole_rows=40,
    polishing_steps=3,
    polishing_max_passes=4,
    polishing_batch_rows=30,
    polishing_num_neighbors=2,
    polishing_learning_rate=0.01,
    polishing_logit_scale=20.0,
    polishing_power=0.5,
    published_cluster_steps=2,
    published_num_clusters=7,
    published_smoothing=0.5,
    published_project=True,
    whitening_reliability_power=0.0,
    whitening_power=0.0,
)


def small_config(**changes) -> Config:
    """A config with a few steps of every stage; it sets every field, so that no test depends on a default."""
    return with_settings(_SMALL, **changes)


def setting_flags(config: Config) -> list[str]:
    """The options of the command line that give all settings of a config."""
    flags = []
    for path, _, value in iterate_fields(config):
        name = "-".join(path).replace("_", "-")
        flags.append(f"--{name}" if value is True else f"--no-{name}" if value is False else f"--{name}={value}")
    return flags


def make_map(W, mean_x=None, mean_y=None, scale_x=1.0, scale_y=1.0, *, dtype=jnp.float32) -> LinearMap:
    """A `LinearMap` from arrays of any kind; means are zero where none are given."""
    W = jnp.asarray(W, dtype)
    means = [
        jnp.zeros(size, dtype) if mean is None else mean for mean, size in zip((mean_x, mean_y), W.shape, strict=True)
    ]
    source, target = (
        Centering(mean=jnp.asarray(mean, dtype), scale=jnp.asarray(scale, dtype))
        for mean, scale in zip(means, (scale_x, scale_y), strict=True)
    )
    return LinearMap(W=W, source=source, target=target)


def make_spaces(x, y, dtype=None) -> TwoSpaces:
    """`TwoSpaces` of rows of any kind."""
    return TwoSpaces(x=jnp.asarray(x, dtype), y=jnp.asarray(y, dtype))


def make_estimate(matrix, *, is_map: bool = False, dtype=None) -> Estimate:
    """An `Estimate` to start a stage from, a cross-covariance by default."""
    return Estimate(matrix=jnp.asarray(matrix, dtype), is_map=is_map)


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


def shortened(rows: np.ndarray) -> np.ndarray:
    """Rows of more than five times the lower median length of the nonzero rows, scaled down to that length."""
    rows = np.asarray(rows).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    present = np.sort(lengths[lengths > 0])
    median = present[(len(present) - 1) // 2]
    return np.where((lengths > 5 * median)[:, None], rows * (median / np.maximum(lengths, median))[:, None], rows)


def rough_error(x, y) -> np.ndarray:
    """Largest possible error of each inner product in `knn.rough_product`: ``[n, m]``, for the dtype of ``x``.

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
