"""The verdict follows the score, and data without a common geometry is never called aligned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config

from mv2v_jax import Evidence, Verdict, align_restarts
from mv2v_jax.alignment.score import ALIGNED, MIN_HELD_OUT, NOT_ALIGNED, judge

pytestmark = pytest.mark.usefixtures("quick_compile")

SCORES = np.linspace(-0.5, 1.5, 1001, dtype=np.float32)
AGREEING = 0.9


def evidence(score, num_rows=1000):
    """Evidence of a score, on a scale from the null to ``within`` that is long compared with the deviation."""
    score = jnp.asarray(score, jnp.float32)
    null, within = jnp.full_like(score, 0.2), jnp.full_like(score, 0.6)
    return Evidence(
        cross=null + score * (within - null),
        within=within,
        null=null,
        null_deviation=jnp.full_like(score, 1e-3),
        num_rows=jnp.full(score.shape, num_rows, jnp.int32),
        closeness=score,
        anchor_agreement=jnp.ones_like(score),
        score=score,
    )


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
    assert (np.diff(found.confidence) >= 0).all()
    assert (np.asarray(found.verdict)[np.asarray(agreement) < 0.09] == Verdict.not_aligned).all()
    assert (np.asarray(found.verdict)[np.asarray(agreement) > 0.5] == Verdict.aligned).all()


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
