"""A fit that is compiled stage by stage equals the fit that is compiled as a whole."""

import jax
import numpy as np
import pytest
from helpers import small_config

from mv2v_jax import InputError, align_restarts
from mv2v_jax.alignment import stage_by_stage
from mv2v_jax.alignment.fit import fit
from mv2v_jax.alignment.stage_by_stage import split_steps
from mv2v_jax.data.padding import padded_shapes
from mv2v_jax.progress import COMPILING
from mv2v_jax.runs.ahead import Ahead, _OnShapes
from mv2v_jax.runs.compiled import align_with_progress

SEARCH = ["anchors", "first estimate", "refine_matching", "refine_clusters", "refine_annealed", "evidence"]
SETTLING = ["extend", "refine_annealed_again", "refine_csls", "refine_whole"]
# Fewer stages, which take less time to compile.
FEW = {"published_match_steps": 0, "published_cluster_steps": 0, "settling_whole_steps": 0}
LEFT_OUT = {"refine_matching", "refine_clusters", "refine_whole"}


def test_stages_are_compiled_with_options_that_this_version_of_xla_knows(monkeypatch):
    monkeypatch.setitem(jax.config.values, "jax_disable_most_optimizations", False)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    stage = stage_by_stage.jit_stage(lambda x: jax.numpy.tanh(x) @ x.T)
    np.testing.assert_allclose(stage.lower(x).compile()(x), np.tanh(x) @ x.T, rtol=1e-5)
    assert stage_by_stage._cpu_options() is not None
    monkeypatch.setattr(stage_by_stage, "_CPU_OPTIONS", {"xla_of_another_age": True})
    stage_by_stage._cpu_options.cache_clear()
    assert stage_by_stage._cpu_options() is None
    stage_by_stage._cpu_options.cache_clear()


def test_all_stages_are_traced_ahead_with_those_options(monkeypatch):
    monkeypatch.setitem(jax.config.values, "jax_disable_most_optimizations", False)
    config, traced = small_config(**FEW), []
    run = _OnShapes(lambda signature, lowered: traced.append(signature[0].__name__))
    shapes = (padded_shapes(np.zeros((90, dims), np.float32), config.max_rows) for dims in (8, 6))
    keys = jax.random.split(jax.random.key(0), 2)
    jax.eval_shape(lambda x, y: fit(run, keys, x, y, config)[0], *shapes)
    assert traced[0] == "prepare"
    assert traced[-1] == "finish"


def test_what_cannot_be_traced_ahead_is_logged_and_left_to_the_fit(monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no stage")

    monkeypatch.setattr("mv2v_jax.runs.ahead.fit", broken)
    shape = padded_shapes(np.zeros((90, 8), np.float32), 100)
    with Ahead(shape, shape, small_config(), 1, 1) as ahead:
        assert ahead.get("prepare") is None
    assert "no stage" in caplog.text


def labelled(label, number, names):
    """Names of stages as they are reported, numbered where they run several times."""
    if number == 1:
        return names
    return [f"{label} {index + 1} {name}" for index in range(number) for name in names]


# The search sees all directions, or fewer than x has.
@pytest.mark.parametrize(
    ("num_restarts", "num_settled", "changes"),
    [(1, 1, FEW), pytest.param(3, 2, {"search_dims": 7}, marks=pytest.mark.slow)],
    ids=["few stages", "all stages"],
)
def test_pieces_equal_the_whole(num_restarts, num_settled, changes):
    config = small_config(**changes)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8)).astype(np.float32), rng.normal(size=(95, 6)).astype(np.float32)
    key = jax.random.key(0)
    seen, found_ahead = [], []
    with Ahead(*(padded_shapes(rows, config.max_rows) for rows in (x, y)), config, num_restarts, num_settled) as ahead:

        def get_compiled(signature):
            found_ahead.append(ahead.get(signature))
            return found_ahead[-1]

        steps = num_restarts, num_settled, None, "summary", get_compiled
        fit = align_with_progress(key, x, y, config, lambda *step: seen.append(step), *steps)
        assert ahead.get("another stage") is None
    # Every stage was compiled from the shapes alone, before it was needed.
    assert len(found_ahead) > 8
    assert all(stage is not None for stage in found_ahead)
    whole = align_restarts(key, x, y, num_restarts, config, num_settled=num_settled)
    assert int(fit.result.chosen) == int(whole.chosen)
    # The score is a quotient of small differences, and amplifies the rounding.
    for found, expected in zip(jax.tree.leaves(fit.result), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert jax.tree.structure(fit.result) == jax.tree.structure(whole)
    assert fit.compile_seconds > 0
    assert fit.seconds > 0
    stages = list(dict.fromkeys(stage for stage, _, _ in seen if not stage.startswith(COMPILING)))
    # Each stage is compiled once, before its first run.
    assert {stage.removeprefix(COMPILING) for stage, _, _ in seen if stage.startswith(COMPILING)} <= set(stages)
    assert seen[0][0] == "preprocess"
    for stage in stages:
        done = [step for name, step, _ in seen if name == stage]
        assert done == sorted(done)
        assert done[-1] == next(total for name, _, total in seen if name == stage)
    # Every restart is searched, only the best are settled, and several settled ones are averaged.
    search, settling = (
        [name for name in stages if changes is not FEW or name not in LEFT_OUT] for stages in (SEARCH, SETTLING)
    )
    expected = [
        "preprocess",
        *labelled("restart", num_restarts, search),
        "choose",
        *labelled("settling", num_settled, settling),
        *(["average"] if num_settled > 1 else []),
        "polish",
        "finish",
    ]
    assert stages == expected


def test_nothing_to_choose_by_is_named():
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    with pytest.raises(InputError, match="held_out_rows"):
        align_with_progress(jax.random.key(0), rows, rows, small_config(held_out_rows=0), lambda *step: None, 2)


@pytest.mark.parametrize("num_steps", [1, 7, 20, 75, 100, 200])
def test_chunks_cover_all_steps_in_one_length(num_steps):
    chunks = split_steps(num_steps)
    assert np.concatenate(chunks).tolist() == list(range(num_steps))
    assert len({len(chunk) for chunk in chunks}) == 1
