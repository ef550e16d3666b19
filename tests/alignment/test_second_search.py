"""The second search: when it is tried, that the better of both searches is kept, and every way to fit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, planted_clouds, small_config, with_settings

from mv2v_jax import Config, align, align_restarts, make_mesh
from mv2v_jax.alignment import fit, search_components
from mv2v_jax.alignment.fit import prepare, search_once
from mv2v_jax.alignment.results import Searched
from mv2v_jax.alignment.run import Inline
from mv2v_jax.data.padding import pad_rows
from mv2v_jax.runs.compiled import align_with_progress
from mv2v_jax.runs.study import Plan, run_study

# Few stages and steps, because compiling is what takes time. `below` is traced: all its values share a program.
CONFIG = small_config(
    published_match_steps=0,
    published_cluster_steps=0,
    settling_steps=1,
    settling_whole_steps=0,
    held_out_rows=6,
    search_dims=4,
    components_num_runs=3,
    # So that a map is that of one search.
    components_num_settled=1,
)
ALWAYS, NEVER = (with_settings(CONFIG, components_below=below) for below in (10.0, 0.0))
WITHOUT = with_settings(CONFIG, components_num_runs=0)
NUM_KEYS = 8


@pytest.fixture(autouse=True)
def double_precision():
    """A stage makes discrete choices, and in float32 two programs could differ in one of them."""
    with jax.enable_x64(True):
        yield


@functools.cache
def clouds():
    planted = planted_clouds(6, 5, num_x=91, num_y=83, groups=6, seed=3)
    return np.float64(planted.x), np.float64(planted.y)


def key_of(number):
    return jax.random.fold_in(jax.random.key(5), number)


@functools.cache
def fitted(name):
    """The fits of some keys, with each of the three configs."""
    config = {"always": ALWAYS, "never": NEVER, "without": WITHOUT}[name]
    return [align(key_of(number), *clouds(), config) for number in range(NUM_KEYS)]


@pytest.mark.slow
def test_the_better_of_both_searches_is_returned():
    used = []
    for both, first in zip(fitted("always"), fitted("without"), strict=True):
        info = both.info.components
        assert bool(info.tried)
        assert -1 <= float(info.agreement) <= 1 + 1e-6
        used.append(bool(info.used))
        if used[-1]:
            assert float(both.evidence.score) > float(first.evidence.score)
            assert np.abs(both.map.W - first.map.W).max() > 1e-3
        else:
            assert_trees_close(both.map, first.map, atol=1e-7)
            assert_trees_close(both.evidence, first.evidence, atol=1e-7)
        # Both have the trajectory of the search by clusters.
        np.testing.assert_allclose(both.trajectory["refine_annealed"], first.trajectory["refine_annealed"], atol=1e-7)
        assert {name: values.shape for name, values in both.trajectory.items()} == {
            name: values.shape for name, values in first.trajectory.items()
        }
    assert any(used), "no key shows what happens where the second search is better"
    assert not all(used), "no key shows what happens where the first search is better"


def test_a_score_that_is_good_enough_leaves_the_second_search_out():
    for never, without in zip(fitted("never"), fitted("without"), strict=True):
        assert float(never.evidence.score) > 0, "a score below the smallest threshold shows nothing"
        assert_trees_close(never, without, atol=1e-8)
        for info in (never.info.components, without.info.components):
            assert (bool(info.tried), bool(info.used), float(info.agreement)) == (False, False, 0.0)


@functools.cache
def searched_in_part(num_settled=1):
    """A config with which one of two restarts searches again, and both restarts one after the other."""
    closeness = [float(result.evidence.closeness[-1]) for result in fitted("without")[:2]]
    config = with_settings(CONFIG, components_below=sum(closeness) / 2, components_num_settled=num_settled)
    return config, align_restarts(jax.random.key(5), *clouds(), 2, config, batch_size=1, keep="all")


@pytest.mark.slow
def test_each_restart_decides_for_itself():
    config, found = searched_in_part()
    alone = [align(key_of(number), *clouds(), config) for number in range(2)]
    assert sorted(bool(result.info.components.tried) for result in alone) == [False, True]
    scores = [float(result.evidence.score) for result in alone]
    np.testing.assert_allclose(found.evidence.score, scores, atol=1e-8)
    best = alone[int(found.chosen)]
    assert_trees_close(found.best.info.components, best.info.components, atol=1e-8)
    assert_trees_close(found.best.map, best.map, atol=1e-7)


@pytest.mark.slow
def test_restarts_side_by_side_are_those_one_after_the_other():
    config, expected = searched_in_part(num_settled=2)
    found = align_restarts(jax.random.key(5), *clouds(), 2, config, batch_size=2, keep="all")
    assert_trees_close(found, expected, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("row_devices", [1, 2])
def test_restarts_over_a_mesh_are_those_of_one_device(row_devices):
    config, expected = searched_in_part(num_settled=2)
    mesh = make_mesh(2, row_devices=row_devices, devices=jax.devices()[: 2 * row_devices])
    found = align_restarts(jax.random.key(5), *clouds(), 2, config, keep="all", mesh=mesh)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.float64(one), np.float64(other), atol=1e-6)


SECOND = ["components", "component starts", "best start", "refine_by_region"]


MADE = pytest.mark.parametrize(("config", "expected"), [(ALWAYS, SECOND), (NEVER, [])], ids=["made", "not made"])


def fit_with_progress(config):
    """A fit stage by stage, and the stages of the second search that it reports."""
    seen = []
    found = align_with_progress(jax.random.key(5), *clouds(), config, lambda step, *_: seen.append(step)).result
    return found, [step for step in dict.fromkeys(seen) if step in SECOND]


@MADE
def test_progress_shows_the_second_search_where_it_is_made(without_computing, config, expected):
    # A closeness of one is below the one threshold and above the other.
    assert fit_with_progress(config)[1] == expected


@MADE
def test_two_are_settled_where_it_gave_the_map(without_computing, config, expected):
    config, seen = with_settings(config, components_num_settled=2), []
    align_with_progress(jax.random.key(5), *clouds(), config, lambda step, *_: seen.append(step), 2)
    assert "settling 1 extend" in seen
    assert ("settling 2 extend" in seen) == bool(expected)


@pytest.mark.slow
def test_what_is_settled_because_of_it_is_what_is_settled_if_asked():
    used, differ = [], []
    for number in range(4):
        both, one, two = (
            align_restarts(key_of(number), *clouds(), 2, with_settings(ALWAYS, components_num_settled=least), **asked)
            for least, asked in ((2, {}), (1, {}), (1, {"num_settled": 2}))
        )
        used.append(bool(both.best.info.components.used))
        assert_trees_close(both, two if used[-1] else one, atol=1e-7)
        # Restarts that agree in nothing are not averaged.
        differ.append(np.abs(one.best.map.W - two.best.map.W).max() > 1e-3)
    assert any(np.logical_and(used, differ)), "no key shows that two are averaged"
    assert not all(used), "no key shows what happens where the first search is better"


@pytest.mark.slow
@MADE
def test_stage_by_stage_it_is_that_of_the_whole(config, expected):
    found, seen = fit_with_progress(config)
    assert seen == expected
    whole = fitted("always" if expected else "never")[0]
    np.testing.assert_allclose(found.evidence.score, whole.evidence.score[None], atol=1e-7)
    assert_trees_close(found.best.info, whole.info, atol=1e-7)
    assert_trees_close(found.best.map, whole.map, atol=1e-7)


@pytest.mark.slow
def test_a_study_searches_again_as_well(tmp_path):
    config, expected = searched_in_part()
    plan = Plan(seed=5, restarts=2, settled=1, chunk=2, sizes=(), size_restarts=2, bootstraps=0)
    study = run_study(*clouds(), config, plan, tmp_path / "study", lambda *_: None)
    for name, values in expected.trajectory.items():
        np.testing.assert_allclose(study.trajectory[name], values, atol=1e-7)


@pytest.mark.slow
def test_nothing_held_out_leaves_nothing_to_choose_by():
    found, expected = (
        align(key_of(0), *clouds(), with_settings(config, held_out_rows=0)) for config in (ALWAYS, WITHOUT)
    )
    assert not bool(found.info.components.tried)
    assert_trees_close(found, expected, atol=1e-8)


@pytest.mark.parametrize(
    ("config", "is_possible"),
    [
        (Config(), True),
        (Config.fast(), True),
        (Config().replace(components={"num_runs": 0}), False),
        (Config().replace(annealing={"steps": 0}), False),
        (Config.notebook(), False),
        (Config.paper(), False),
        # Maps of the published refinements are no cross-covariances.
        (Config.notebook().replace(components={"num_runs": 18}), False),
        (Config().replace(published={"cluster_steps": 1}), False),
    ],
)
def test_which_fits_can_search_again(monkeypatch, config, is_possible):
    """Traced alone; neither is compiled."""
    asked = []

    def stand_in(run, first, *_):
        asked.append(True)
        return first

    monkeypatch.setattr(fit, "search_components", stand_in)
    padded = [pad_rows(rows, config.max_rows) for rows in clouds()]

    def run(key, x, y):
        return search_once(Inline(), key, prepare(x, y, config), config)

    jax.eval_shape(run, key_of(0), *padded)
    assert asked == [True] * is_possible


@pytest.mark.parametrize(
    ("first", "second", "used"),
    [
        (0.1, 0.2, True),
        (0.2, 0.1, False),
        (0.1, 0.1, False),
        (np.nan, 0.1, True),
        (0.1, np.nan, False),
    ],
)
def test_the_better_search(first, second, used):
    result = fitted("without")[0]
    searches = [
        Searched(
            estimate=jnp.asarray(number),
            evidence=dataclasses.replace(result.evidence, score=jnp.asarray(score)),
            trajectory={},
            anchors=result.info.anchors,
            components=result.info.components,
        )
        for number, score in enumerate((first, second))
    ]
    better = search_components._better_search(*searches, jnp.asarray(0.2))
    assert int(better.estimate) == used
    info = better.components
    assert (bool(info.tried), bool(info.used), float(info.agreement)) == (True, used, 0.2)


@pytest.mark.parametrize(
    ("scores", "best"), [([0.1, 0.3, 0.2], 1), ([np.nan, 0.1, 0.2], 2), ([-0.5, np.nan, -0.4], 2), ([0.2, 0.2, 0.1], 0)]
)
def test_the_best_start(scores, best):
    numbers = jnp.arange(3.0)
    starts = search_components._Start(estimate=numbers, score=jnp.asarray(scores), agreement=10 * numbers)
    start = search_components._best_start(starts)
    assert (float(start.estimate), float(start.agreement)) == (best, 10 * best)
