"""The fit in pieces is the fit in one piece."""

import jax
import numpy as np
import pytest
from conftest import small_config

from mv2v_jax import align_restarts
from mv2v_jax.errors import InputError
from mv2v_jax.runs.compiled import _chunks, align_with_progress

SETTLING = ["refine_annealed_again", "refine_csls"]
SEARCH = ["anchors", "refine_matching", "refine_clusters", "refine_annealed"]
# Fewer stages, which take less time to compile.
FEW = {"match_steps": 0, "cluster_steps": 0, "whole_steps": 0}


# Searched in all directions, and in fewer than x has.
@pytest.mark.parametrize(
    ("num_restarts", "num_settled", "changes"),
    [(1, 1, FEW), pytest.param(3, 2, {"search_dims": 7}, marks=pytest.mark.slow)],
    ids=["few stages", "all stages"],
)
def test_pieces_equal_the_whole(quick_compile, num_restarts, num_settled, changes):
    config = small_config(**changes)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 8)).astype(np.float32), rng.normal(size=(95, 6)).astype(np.float32)
    key = jax.random.key(0)
    seen = []
    fit = align_with_progress(key, x, y, config, lambda *step: seen.append(step), num_restarts, num_settled)
    whole = align_restarts(key, x, y, num_restarts, config, num_settled=num_settled)
    assert int(fit.result.chosen) == int(whole.chosen)
    # The score is a quotient of small differences, and amplifies the rounding.
    for found, expected in zip(jax.tree.leaves(fit.result), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert jax.tree.structure(fit.result) == jax.tree.structure(whole)
    assert fit.compile_seconds > 0
    assert fit.seconds > 0
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    for stage in stages:
        done = [step for name, step, _ in seen if name == stage]
        assert done == sorted(done)
        assert done[-1] == next(total for name, _, total in seen if name == stage)
    # Every restart is searched, and only the best of them settled.
    of_stages = [name for stage in stages for name in ["preprocess", *SEARCH, *SETTLING] if stage.endswith(name)]
    search = [stage for stage in SEARCH if changes is not FEW or stage in ("anchors", "refine_annealed")]
    assert of_stages == ["preprocess", *num_restarts * search, *num_settled * SETTLING]


def test_nothing_to_choose_by_is_named():
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    with pytest.raises(InputError, match="held_out_rows"):
        align_with_progress(jax.random.key(0), rows, rows, small_config(held_out_rows=0), lambda *step: None, 2)


@pytest.mark.parametrize("num_steps", [1, 7, 20, 75, 100, 200])
def test_chunks_cover_all_steps_in_one_length(num_steps):
    chunks = _chunks(num_steps)
    assert np.concatenate(chunks).tolist() == list(range(num_steps))
    assert len({len(chunk) for chunk in chunks}) == 1
