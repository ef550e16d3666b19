"""A stage that is added to the driver runs in every way to fit, because nothing else puts stages in order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import planted_clouds, small_config

from mv2v_jax import align, align_restarts
from mv2v_jax.alignment import search_clusters, stages
from mv2v_jax.alignment.estimate import Refined
from mv2v_jax.runs.compiled import align_with_progress
from mv2v_jax.runs.study import Plan, run_study

# Few stages and steps, because compiling is what takes time; sizes that no other test has, so that nothing is cached.
CONFIG = small_config(
    published_match_steps=0, published_cluster_steps=0, settling_steps=1, settling_whole_steps=0, held_out_rows=6
)


@pytest.fixture
def clouds(monkeypatch):
    """Two clouds, and a driver with one more search stage."""

    def run(key, rows, estimate, *, config, steps):
        return Refined(estimate=estimate, objective=jnp.full(steps.shape, 7.0))

    stage = stages.Stage("another_stage", lambda num_rows, config: 2, run)
    monkeypatch.setattr(search_clusters, "SEARCH_STAGES", (*stages.SEARCH_STAGES, stage))
    monkeypatch.setattr(stages, "_KEY_NAMES", (*stages._KEY_NAMES, stage.name))
    planted = planted_clouds(6, 5, num_x=67, num_y=59, groups=6, seed=3)
    return planted.x, planted.y


def test_align_and_its_restarts(clouds):
    """Traced alone: what the stages compute is for other tests."""
    one = jax.eval_shape(lambda key: align(key, *clouds, CONFIG), jax.random.key(0))
    assert one.trajectory["another_stage"].shape == (2,)
    several = jax.eval_shape(lambda key: align_restarts(key, *clouds, 2, CONFIG), jax.random.key(0))
    assert several.trajectory["another_stage"].shape == (2, 2)


def test_the_command_line_with_progress(clouds, without_computing):
    seen = []
    found = align_with_progress(jax.random.key(0), *clouds, CONFIG, lambda stage, *_: seen.append(stage))
    assert "another_stage" in seen
    assert found.result.best.trajectory["another_stage"].shape == (2,)


@pytest.mark.slow
def test_a_study(clouds, tmp_path):
    plan = Plan(seed=0, restarts=2, settled=1, chunk=2, sizes=(), size_restarts=2, bootstraps=0)
    study = run_study(*clouds, CONFIG, plan, tmp_path / "study", lambda *_: None)
    np.testing.assert_array_equal(study.trajectory["another_stage"], 7)
