"""The fit in pieces is the fit in one piece."""

import jax
import numpy as np
import pytest
from conftest import small_config

from mv2v_jax import align
from mv2v_jax.progress import _chunks, align_with_progress


def test_pieces_equal_the_whole(quick_compile):
    config = small_config()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(130, 8)).astype(np.float32), rng.normal(size=(150, 6)).astype(np.float32)
    key = jax.random.key(0)
    seen = []
    fit = align_with_progress(key, x, y, config, lambda *step: seen.append(step))
    whole = align(key, x, y, config)
    for found, expected in zip(jax.tree.leaves(fit.result), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert jax.tree.structure(fit.result) == jax.tree.structure(whole)
    assert fit.compile_seconds > 0
    assert fit.seconds > 0
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == [
        "preprocess",
        "anchors",
        "matching",
        "refine_matching",
        "refine_annealed",
        "refine_csls",
        "refine_clusters",
    ]
    for stage in stages:
        done = [step for name, step, _ in seen if name == stage]
        assert done == sorted(done)
        assert done[-1] == next(total for name, _, total in seen if name == stage)


@pytest.mark.parametrize("num_steps", [1, 7, 20, 75, 100, 200])
def test_chunks_cover_all_steps_in_one_length(num_steps):
    chunks = _chunks(num_steps)
    assert np.concatenate(chunks).tolist() == list(range(num_steps))
    assert len({len(chunk) for chunk in chunks}) == 1
