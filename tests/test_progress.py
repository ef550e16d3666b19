"""The fit in pieces is the fit in one piece."""

import jax
import numpy as np
import pytest

from mv2v_jax import Config, align
from mv2v_jax.progress import _chunks, align_with_progress

CONFIG = Config(
    num_anchor_sets=4,
    num_clusters=5,
    anchor_rows=100,
    lloyd_steps=5,
    num_starts=4,
    search_steps=10,
    kept_sets=2,
    matching_rows=80,
    num_neighbors=5,
    match_steps=3,
    match_rows=50,
    match_neighbors=5,
    anneal_steps=7,
    anneal_rows=40,
    csls_steps=20,
    csls_rows=60,
    cluster_steps=1,
    refine_clusters=10,
    project=True,
)


def test_pieces_equal_the_whole():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(130, 8)).astype(np.float32), rng.normal(size=(150, 6)).astype(np.float32)
    key = jax.random.key(0)
    seen = []
    fit = align_with_progress(key, x, y, CONFIG, lambda *step: seen.append(step))
    whole = align(key, x, y, CONFIG)
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
