"""One contract for all stages: eager = jit, vmap = loop, dtype kept, one compilation, nothing hidden inside."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    assert_trees_close,
    count_compilations,
    equations,
    make_map,
    planted_clouds,
    small_config,
    unit,
    with_settings,
)

from mv2v_jax import align, apply
from mv2v_jax.alignment.anchors import AnchorSets, match_anchor_sets, select_anchors
from mv2v_jax.alignment.choose import map_agreement
from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.fit import prepare
from mv2v_jax.alignment.match_relative import match_relative
from mv2v_jax.alignment.polish import polish
from mv2v_jax.alignment.refine_annealed import refine_annealed, refine_csls, refine_whole
from mv2v_jax.alignment.refine_published import refine_clusters, refine_matching
from mv2v_jax.alignment.score import Evidence, fine_agreement, gather_evidence, judge
from mv2v_jax.alignment.seeds import Seeds, blend_seeds, seed_terms
from mv2v_jax.alignment.space import TwoSpaces, fit_space, hold_out
from mv2v_jax.alignment.whitening import fit_whitening, map_from_cross
from mv2v_jax.data.padding import PaddedRows
from mv2v_jax.ops.csls import match_csls
from mv2v_jax.ops.kmeans import kmeans
from mv2v_jax.ops.knn import largest, nearness, neighbor_means, top_neighbors
from mv2v_jax.ops.linalg import procrustes
from mv2v_jax.ops.masked import unit_rows
from mv2v_jax.ops.qap import search_assignment

N, M, D_X, D_Y = 61, 53, 6, 5
SMALL = small_config()


def make_inputs(batch: int = 0) -> dict[str, Any]:
    """Arguments by name, float64; another batch has other values at the same shapes."""
    planted = planted_clouds(D_X, D_Y, num_x=N, num_y=M, groups=6, seed=10 + batch)
    rng = np.random.default_rng(100 + batch)
    x, y = (unit(rows - rows.mean(0)).astype(np.float64) for rows in (planted.x, planted.y))
    kernel = rng.standard_normal((5, 5))
    W = np.eye(D_X, D_Y) + 0.1 * rng.standard_normal((D_X, D_Y))
    return {
        "raw_x": planted.x.astype(np.float64),
        "raw_y": planted.y.astype(np.float64),
        "x": x,
        "y": y,
        "x_to_y": x[:, :D_Y],
        "rows": TwoSpaces(x=x, y=y),
        "anchors": TwoSpaces(x=x[:7], y=y[:7]),
        "kernel_x": kernel @ kernel.T,
        "kernel_y": kernel[::-1] @ kernel[::-1].T + np.eye(5),
        "W": W,
        "map_estimate": Estimate(matrix=W, is_map=True),
        "cross_estimate": Estimate(matrix=W, is_map=False),
        "sets": AnchorSets(
            x=rng.standard_normal((4, 5, D_X)), y=rng.standard_normal((4, 5, D_Y)), objective=rng.uniform(size=4)
        ),
        "fitted": TwoSpaces(x=x[6:], y=y[5:]),
        "held_out": TwoSpaces(x=x[:6], y=y[:5]),
        "evidence": Evidence(
            **{field.name: rng.uniform() for field in dataclasses.fields(Evidence)}
            | {"num_rows": 100.0, "closeness": rng.uniform(size=4), "cross_each": rng.uniform(size=2)}
        ),
        "seeds": Seeds(x=x[:9], y=y[:9]),
        "maps": rng.standard_normal((3, D_X, D_Y)),
        "map": make_map(np.eye(D_X, D_Y), planted.x.mean(0), planted.y.mean(0), 1.5, 0.7),
    }


class Stage(NamedTuple):
    """A stage as ``run(key, config, *arguments)``, the names of its arguments, and whether it uses the key."""

    run: Callable[..., Any]
    arguments: tuple[str, ...]
    draws: bool = False


def drawing(fun: Callable[..., Any], *arguments: str) -> Stage:
    return Stage(lambda key, config, *args: fun(key, *args, config=config), arguments, draws=True)


def fixed(fun: Callable[..., Any], *arguments: str, **static: Any) -> Stage:
    return Stage(lambda key, config, *args: fun(*args, **static), arguments)


def many_rows(rows):
    """Ten times as many unit rows, all different: each row with its entries shifted and mirrored in every way."""
    shifted = jnp.concatenate([jnp.roll(rows, shift, axis=1) for shift in range(D_Y)])
    return jnp.concatenate([shifted, shifted.at[:, 0].multiply(-1)])


def match_many(key, config, x, y):
    """`match_csls` of enough rows to be searched in groups."""
    return match_csls(unit_rows(many_rows(x)), many_rows(y), num_neighbors=2)


def in_fewer_directions(key, config, x, y):
    padded = (PaddedRows(rows=rows, num_rows=jnp.asarray(len(rows), jnp.int32)) for rows in (x, y))
    return prepare(*padded, with_settings(config, search_dims=4))


def weighted_map(key, config, cross, x, y):
    both = (fit_whitening(rows, config.whitening.power) for rows in (x, y))
    return map_from_cross(cross, *both, config.whitening.reliability_power)


FROM_MAP = ("rows", "map_estimate")
FROM_CROSS = ("rows", "cross_estimate")
STAGES = {
    "fit_space": fixed(fit_space, "raw_x"),
    "kmeans": Stage(lambda key, config, x: kmeans(key, x, num_clusters=5, num_steps=4), ("x",), draws=True),
    "search_assignment": Stage(
        lambda key, config, kx, ky: search_assignment(key, kx, ky, num_starts=3, num_steps=8),
        ("kernel_x", "kernel_y"),
        draws=True,
    ),
    "match_anchor_sets": Stage(
        lambda key, config, rows: match_anchor_sets(key, rows, config=config.anchors), ("rows",), draws=True
    ),
    "select_anchors": Stage(lambda key, config, sets: select_anchors(sets, config=config.anchors), ("sets",)),
    "match_relative": fixed(match_relative, "x", "y", "anchors", num_neighbors=4),
    "top_neighbors": fixed(top_neighbors, "x_to_y", "y", num_neighbors=4),
    "neighbor_means": fixed(neighbor_means, "x_to_y", "y", "y", num_neighbors=4),
    "match_csls": fixed(match_csls, "x_to_y", "y", num_neighbors=2),
    "match_many": Stage(match_many, ("x_to_y", "y")),
    "nearness": fixed(nearness, "x_to_y", "y", num_groups=4),
    "largest": fixed(largest, "x", k=3),
    "seed_terms": Stage(
        lambda key, config, anchors, seeds: seed_terms(anchors.x, anchors.y, seeds), ("anchors", "seeds")
    ),
    "blend_seeds": Stage(lambda key, config, W, seeds: blend_seeds(W, 2, seeds, config.pair_weight), ("W", "seeds")),
    "procrustes": fixed(procrustes, "x", "x_to_y"),
    "refine_matching": drawing(refine_matching, *FROM_MAP),
    "refine_annealed": drawing(refine_annealed, *FROM_CROSS),
    "refine_csls": drawing(refine_csls, *FROM_CROSS),
    "refine_whole": drawing(refine_whole, *FROM_CROSS),
    "refine_clusters": drawing(refine_clusters, *FROM_MAP),
    "polish": Stage(lambda key, config, rows, W: polish(key, rows, W, config=config), ("rows", "W"), draws=True),
    "prepare": Stage(in_fewer_directions, ("raw_x", "raw_y")),
    "hold_out": Stage(lambda key, config, x: hold_out(fit_space(x).rows, 5), ("raw_x",)),
    "gather_evidence": Stage(
        lambda key, config, *args: gather_evidence(key, *args), ("fitted", "held_out", "W"), draws=True
    ),
    "judge": fixed(judge, "evidence"),
    "map_agreement": fixed(map_agreement, "maps", "x"),
    "fine_agreement": fixed(fine_agreement, "maps", "x"),
    "fit_whitening": Stage(lambda key, config, x: fit_whitening(x, config.whitening.power), ("x",)),
    "map_from_cross": Stage(weighted_map, ("W", "x", "y")),
    "apply": fixed(apply, "map", "raw_x"),
    "align": Stage(lambda key, config, x, y: align(key, x, y, config), ("raw_x", "raw_y"), draws=True),
}
every_stage = pytest.mark.parametrize("name", STAGES)
SLOW = pytest.param("align", marks=pytest.mark.slow)


@functools.cache
def _inputs(batch: int) -> dict[str, Any]:
    return make_inputs(batch)


def arguments(stage: Stage, dtype: Any, batch: int = 0) -> tuple[Any, ...]:
    return tuple(jax.tree.map(lambda a: jnp.asarray(a, dtype), _inputs(batch)[name]) for name in stage.arguments)


@functools.cache
def compiled(name: str) -> Callable[..., Any]:
    """The stage, jitted once for all tests; `align` is jitted already."""
    return STAGES[name].run if name == "align" else jax.jit(STAGES[name].run)


# The comparisons run in float64: a stage makes discrete choices, and in float32 two orders of summation could differ
# in one of them.
@every_stage
def test_jit_equals_eager_and_a_second_call_compiles_nothing(name):
    stage = STAGES[name]
    with jax.enable_x64(True):
        keys = [jax.random.key(seed) for seed in (1, 2)]
        args = [arguments(stage, jnp.float64, batch) for batch in (0, 1)]
        with count_compilations() as first:
            found = compiled(name)(keys[0], SMALL, *args[0])
        other_floats = with_settings(
            SMALL,
            pair_weight=0.5,
            published_smoothing=0.3,
            annealing_power=0.8,
            whitening_reliability_power=0.3,
            whitening_power=0.3,
        )
        with count_compilations() as second:
            again = compiled(name)(keys[0], SMALL, *args[0])
            other = compiled(name)(keys[1], other_floats, *args[1])
        assert first, "the counter saw no compilation at all"
        assert not second
        assert_trees_close(again, found, atol=0, rtol=0)
        assert not all(np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (found, other)), strict=True))
        if name != "align":  # It is compiled always; its stages are compared one by one, and it under vmap below.
            assert_trees_close(found, stage.run(keys[0], SMALL, *args[0]), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", [*(name for name in STAGES if name != "align"), SLOW])
def test_vmap_equals_loop(name):
    stage = STAGES[name]
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 2)
        if stage.draws:
            args = arguments(stage, jnp.float64)
            found = jax.jit(jax.vmap(lambda key: stage.run(key, SMALL, *args)))(keys)
            expected = [compiled(name)(key, SMALL, *args) for key in keys]
        else:
            batches = [arguments(stage, jnp.float64, batch) for batch in (0, 1)]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
            found = jax.jit(jax.vmap(lambda args: stage.run(keys[0], SMALL, *args)))(stacked)
            expected = [compiled(name)(keys[0], SMALL, *args) for args in batches]
        assert_trees_close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected), atol=1e-9, rtol=1e-9)


@every_stage
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_kept(name, dtype):
    stage = STAGES[name]
    with jax.enable_x64(dtype == jnp.float64):
        found = jax.eval_shape(stage.run, jax.random.key(0), SMALL, *arguments(stage, dtype))
    floats = [leaf.dtype for leaf in jax.tree.leaves(found) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert floats
    assert set(floats) == {jnp.dtype(dtype)}


def trace(name: str) -> list[Any]:
    stage = STAGES[name]
    return list(equations(jax.make_jaxpr(stage.run)(jax.random.key(0), SMALL, *arguments(stage, jnp.float32)).jaxpr))


@every_stage
def test_calls_nothing_back(name):
    names = {equation.primitive.name for equation in trace(name)}
    assert names
    assert not {primitive for primitive in names if "callback" in primitive or "infeed" in primitive}


def test_callbacks_would_be_found():
    def with_callback(x):
        return jax.lax.scan(lambda c, _: (c + jax.pure_callback(np.sin, x, x), None), x, length=2)

    found = {equation.primitive.name for equation in equations(jax.make_jaxpr(with_callback)(1.0).jaxpr)}
    assert any("callback" in primitive for primitive in found)


@pytest.mark.parametrize("name", ["refine_matching", "refine_annealed", "refine_csls", "refine_clusters", "kmeans"])
def test_iterations_are_scanned(name):
    assert any(equation.primitive.name == "scan" for equation in trace(name))


@pytest.mark.parametrize(
    "name", ["match_relative", "top_neighbors", "neighbor_means", "match_csls", "nearness", "align"]
)
def test_no_array_pairs_all_rows_of_both_spaces(name):
    shapes = {tuple(v.aval.shape) for e in trace(name) for v in (*e.invars, *e.outvars) if hasattr(v.aval, "shape")}
    assert any(N in shape for shape in shapes)
    assert not [shape for shape in shapes if {N, M} <= set(shape)]
    # Padded or split into blocks it would still be as large.
    assert max(int(np.prod(shape)) for shape in shapes) < N * M


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("refine_matching", "published_smoothing"),
        ("refine_annealed", "annealing_power"),
        ("blend_seeds", "pair_weight"),
        ("map_from_cross", "whitening_power"),
        ("map_from_cross", "whitening_reliability_power"),
        ("polish", "polishing_learning_rate"),
        ("polish", "polishing_logit_scale"),
        ("polish", "polishing_power"),
    ],
)
def test_floats_of_the_config_are_vmapped_over(name, field):
    stage, key = STAGES[name], jax.random.key(0)
    with jax.enable_x64(True):
        values, args = jnp.array([0.25, 0.5, 0.4]), arguments(stage, jnp.float64)

        def run(value):
            return stage.run(key, with_settings(SMALL, **{field: value}), *args)

        swept = jax.jit(jax.vmap(run))(values)
        expected = [compiled(name)(key, with_settings(SMALL, **{field: float(v)}), *args) for v in values]
        assert_trees_close(swept, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected), atol=1e-7, rtol=1e-7)
        assert not all(np.allclose(leaf[0], leaf[2]) for leaf in jax.tree.leaves(swept))
