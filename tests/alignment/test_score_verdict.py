"""The verdict follows the score, and data without a common geometry is never called aligned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config

from mv2v_jax import Evidence, Reason, Verdict, align_restarts, estimate_recall
from mv2v_jax.alignment.score import ALIGNED, MIN_HELD_OUT, NOT_ALIGNED, judge

SCORES = np.linspace(-0.5, 1.5, 1001, dtype=np.float32)
AGREEING = 0.9


def evidence(score, num_rows=1000, **changed):
    """Evidence of a score at every scale, on a scale from the null to ``within`` that is long enough."""
    score = jnp.asarray(score, jnp.float32)
    null, within = jnp.full((*score.shape, 4), 0.2), jnp.full_like(score, 0.6)
    cross = 0.2 + score * 0.4
    values = {
        "cross": cross,
        "cross_each": jnp.stack([cross, cross], axis=-1),
        "within": within,
        "null": null,
        "null_deviation": jnp.full_like(null, 1e-3),
        "closeness": jnp.broadcast_to(score[..., None], null.shape),
        "local_structure": jnp.ones_like(score),
        "local_closeness": jnp.ones_like(score),
        "symmetry": jnp.full_like(score, 1.5),
        "distinct": jnp.ones_like(score),
        "num_rows": jnp.full(score.shape, num_rows, jnp.int32),
        "score": score,
    }
    return Evidence(**{**values, **{name: jnp.asarray(value, jnp.float32) for name, value in changed.items()}})


@pytest.fixture(scope="module")
def judged():
    return jax.jit(jax.vmap(lambda found: judge(found, AGREEING)))(evidence(SCORES))


def test_a_better_score_is_never_judged_worse(judged):
    for values in (judged.verdict, judged.confidence, judged.estimated_top1):
        assert (np.diff(values) >= 0).all()
    # Neither constant nor a step.
    assert len(np.unique(judged.confidence)) > 50
    assert len(np.unique(judged.estimated_top1)) > 50


def test_the_verdict_is_that_of_the_confidence(judged):
    confidence = np.asarray(judged.confidence)
    expected = np.where(
        confidence >= ALIGNED,
        Verdict.aligned,
        np.where(confidence <= NOT_ALIGNED, Verdict.not_aligned, Verdict.uncertain),
    )
    np.testing.assert_array_equal(judged.verdict, expected)
    assert set(np.asarray(judged.verdict).tolist()) == {verdict.value for verdict in Verdict}
    assert judged.verdict.dtype == jnp.int32


def test_the_ends_are_clear(judged):
    nothing, same = np.searchsorted(SCORES, [0.0, 1.0])
    assert Verdict(int(judged.verdict[nothing])) is Verdict.not_aligned
    assert Verdict(int(judged.verdict[same])) is Verdict.aligned
    assert float(judged.estimated_top1[same]) > float(judged.estimated_top1[nothing]) + 0.5


def test_confidence_and_estimate_are_shares(judged):
    for values in (judged.confidence, judged.estimated_top1):
        assert ((values >= 0) & (values <= 1)).all()


def test_few_held_out_rows_leave_it_open(judged):
    few = jax.vmap(lambda found: judge(found, AGREEING))(evidence(SCORES, MIN_HELD_OUT - 1))
    assert (few.verdict == Verdict.uncertain).all()
    np.testing.assert_array_equal(few.confidence, 0.5)
    enough = jax.vmap(lambda found: judge(found, AGREEING))(evidence(SCORES, MIN_HELD_OUT))
    np.testing.assert_array_equal(enough.verdict, judged.verdict)


def test_one_by_one_is_the_same(judged):
    for index in (0, 400, 415, 450, 1000):
        found = judge(evidence(SCORES[index]), AGREEING)
        assert int(found.verdict) == int(judged.verdict[index])
        np.testing.assert_allclose(found.confidence, judged.confidence[index], rtol=1e-5)
        np.testing.assert_allclose(found.estimated_top1, judged.estimated_top1[index], rtol=1e-5)


def test_restarts_that_disagree_were_not_aligned_whatever_the_score():
    agreement = jnp.linspace(-1, 1, 101)
    found = jax.vmap(lambda value: judge(evidence(0.8), value))(agreement)
    assert (np.asarray(found.verdict)[np.asarray(agreement) < 0.4] != Verdict.aligned).all()
    assert (np.asarray(found.verdict)[np.asarray(agreement) > 0.6] == Verdict.aligned).all()
    # Different maps that are all as good.
    assert (np.asarray(found.reason)[np.asarray(agreement) < 0.1] == Reason.ambiguous).all()


@pytest.mark.parametrize(
    ("found", "agreement", "verdict", "reason"),
    [
        (evidence(0.6), 0.9, Verdict.aligned, Reason.restarts_agree_at_every_scale),
        (evidence(0.6, closeness=[0.9, 0.8, 0.3, 0.05]), 0.9, Verdict.not_aligned, Reason.only_coarse_structure),
        (evidence(0.6, local_structure=0.0), 0.9, Verdict.uncertain, Reason.only_coarse_structure),
        (evidence(0.6, local_closeness=0.05), 0.9, Verdict.uncertain, Reason.only_coarse_structure),
        (evidence(0.6, symmetry=0.1), 0.9, Verdict.uncertain, Reason.ambiguous),
        (evidence(0.6), 0.0, Verdict.uncertain, Reason.ambiguous),
        (evidence(0.6, num_rows=MIN_HELD_OUT - 1), 0.9, Verdict.uncertain, Reason.too_few_rows),
        (evidence(0.6, distinct=0.1), 0.9, Verdict.uncertain, Reason.too_few_rows),
        (evidence(0.6, closeness=[0.4, 0.35, 0.2, 0.05]), 0.1, Verdict.not_aligned, Reason.unlike_distributions),
        (evidence(0.05), 0.1, Verdict.not_aligned, Reason.geometries_differ),
        (evidence(0.6), None, Verdict.uncertain, Reason.one_restart_only),
        (evidence(np.nan), 0.9, Verdict.not_aligned, Reason.geometries_differ),
    ],
)
def test_every_verdict_has_its_reason(found, agreement, verdict, reason):
    judged = judge(found, agreement)
    assert (Verdict(int(judged.verdict)), Reason(int(judged.reason))) == (verdict, reason)
    assert judged.reason.dtype == jnp.int32


def test_recall_falls_with_the_index_and_rises_with_what_is_found():
    found = evidence(0.4)
    recalls = [
        [np.asarray(estimate_recall(found, num_found=num_found, index_size=size)) for size in (200, 2_000, 20_000)]
        for num_found in (1, 10)
    ]
    assert np.shape(recalls) == (2, 3, 2)
    assert (np.diff(recalls, axis=1) < 0).all()
    assert (np.diff(recalls, axis=0) > 0).all()
    np.testing.assert_allclose(recalls[0][1][0], judge(found, 0.9).estimated_top1, rtol=0.01)


def test_queries_in_dense_parts_of_the_index_find_less():
    found = evidence(0.4, cross_each=[0.39, 0.33])
    forward, backward = np.asarray(estimate_recall(found, num_found=1, index_size=2_000))
    assert forward < backward


def test_one_search_alone_is_never_called_aligned():
    found = jax.vmap(judge)(evidence(SCORES))
    assert {int(value) for value in found.verdict} == {Verdict.not_aligned.value, Verdict.uncertain.value}


@pytest.mark.slow
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_clouds_without_geometry_are_never_called_aligned(decay):
    """Gaussian clouds look the same after any reflection, so the score is a quotient of two random numbers."""
    config = small_config(
        published_match_steps=0, published_cluster_steps=0, held_out_rows=70, annealing_steps=6, annealing_rows=60
    )
    verdicts = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x, y = ((rng.normal(size=(700, 8)) * decay ** np.arange(8)).astype(np.float32) for _ in range(2))
        found = align_restarts(jax.random.key(seed), x, y, 2, config).best
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        verdicts.append(int(found.verdict))
    assert Verdict.aligned not in verdicts
