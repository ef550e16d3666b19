"""Polishing: its loss against optax, what it must not depend on, and a map that it improves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import make_spaces, semi_orthogonal, unit
from scipy.stats import ortho_group

from mv2v_jax import Config
from mv2v_jax.alignment.fit import fit
from mv2v_jax.alignment.polish import info_nce, polish, polishing_steps
from mv2v_jax.alignment.run import Inline
from mv2v_jax.alignment.seeds import Seeds
from mv2v_jax.alignment.space import TwoSpaces
from mv2v_jax.data.inputs import prepare_inputs

D = 8
SMALL = Config().replace(polishing={"batch_rows": 512, "steps": 30, "max_passes": 30})


class Views:
    """Disjoint rows of one cloud in two noisy views that are rotations of each other, and a map near the true one."""

    def __init__(self, seed=0, start_noise=0.6):
        rng = np.random.default_rng(seed)
        self.rotation = ortho_group.rvs(D, random_state=seed)

        def views(num):
            rows = rng.standard_normal((num, D)) ** 3
            return unit(rows), unit((rows + 0.2 * rng.standard_normal((num, D))) @ self.rotation)

        draws = [views(num) for num in (500, 460, 400)]
        self.x, self.y, self.evaluation = draws[0][0], draws[1][1], draws[2]
        noise = rng.standard_normal((D, D))
        self.start = self.rotation + start_noise * noise / np.linalg.norm(noise) * D**0.5

    def top1(self, W):
        x, y = self.evaluation
        similarity = unit(x @ np.asarray(W, np.float64)) @ y.T
        return np.mean([(similarity.argmax(axis) == np.arange(len(x))).mean() for axis in (0, 1)])


@pytest.fixture(scope="module")
def views():
    return Views()


@pytest.fixture(scope="module")
def refine():
    compiled = jax.jit(lambda key, rows, W, config: polish(key, rows, W, config=config))

    def run(x, y, W, config=SMALL, seeds=None):
        rows = TwoSpaces(x=jnp.asarray(x), y=jnp.asarray(y), seeds=seeds)
        return compiled(jax.random.key(0), rows, jnp.asarray(W), config)

    return run


def test_loss_equals_optax_and_zero_rows_take_no_part(rng):
    x, y = (unit(rng.standard_normal((9, 4))) for _ in range(2))
    weights = rng.uniform(0.2, 3, 9)
    logits, labels = x @ y.T / 0.2, np.arange(9)
    with jax.enable_x64(True):
        losses = [optax.softmax_cross_entropy_with_integer_labels(each, labels) for each in (logits, logits.T)]
        expected = np.average(np.mean(losses, axis=0), weights=weights)
        np.testing.assert_allclose(info_nce(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weights), 5.0), expected)
        padded = [jnp.pad(jnp.asarray(rows), ((0, 3), (0, 0))) for rows in (x, y)]
        found = info_nce(*padded, jnp.pad(jnp.asarray(weights), (0, 3), constant_values=7), 5.0)
        np.testing.assert_allclose(found, expected)


def test_improves_a_map_that_is_nearly_right(views, refine):
    W, objective = refine(np.float32(views.x), np.float32(views.y), np.float32(views.start))
    assert views.top1(W) > views.top1(views.start) + 0.05
    assert objective.shape == (30,)
    assert objective[-1] > objective[0]
    np.testing.assert_allclose(jnp.linalg.norm(W), np.linalg.norm(views.start), rtol=1e-5)


def test_turns_with_the_rows(views, refine):
    turn_x, turn_y = (ortho_group.rvs(D, random_state=seed) for seed in (5, 6))
    with jax.enable_x64(True):
        plain, objective = refine(views.x, views.y, views.start)
        turned, same = refine(views.x @ turn_x, views.y @ turn_y, turn_x.T @ views.start @ turn_y)
    np.testing.assert_allclose(turned, turn_x.T @ np.asarray(plain) @ turn_y, atol=1e-6)
    np.testing.assert_allclose(same, objective, atol=1e-6)


def test_batches_of_some_rows_improve_it_too(views, refine):
    config = SMALL.replace(polishing={"batch_rows": 128, "learning_rate": 0.02})
    W, _ = refine(np.float32(views.x), np.float32(views.y), np.float32(views.start), config)
    assert views.top1(W) > views.top1(views.start) + 0.05


@pytest.mark.parametrize("batch_rows", [2, 512])
def test_zero_rows_and_few_rows_stay_finite(views, refine, batch_rows):
    config = SMALL.replace(polishing={"batch_rows": batch_rows})
    x, y = np.float32(views.x), np.float32(views.y)
    for rows_x, rows_y in ((x[:5], y[:3]), (0 * x, y), (0 * x, 0 * y), (np.tile(x[:1], (40, 1)), y)):
        W, objective = refine(rows_x, rows_y, np.float32(views.start), config)
        assert np.isfinite(W).all()
        assert np.isfinite(objective).all()


def test_padding_changes_little(views, refine):
    # Where a batch holds all rows, their order does not matter; bundles of candidates are other ones.
    config = SMALL.replace(polishing={"batch_rows": 2_048, "max_passes": 1_000})
    plain, _ = refine(np.float32(views.x), np.float32(views.y), np.float32(views.start), config)
    padded = (np.pad(np.float32(rows), ((0, 40), (0, 0))) for rows in (views.x, views.y))
    padded, _ = refine(*padded, np.float32(views.start), config)
    assert np.linalg.norm(padded - plain) < 0.1 * np.linalg.norm(plain - views.start.astype(np.float32))


def test_known_pairs_count_by_their_weight(refine):
    # From a start that is wrong, only true pairs lead to the right map.
    views = Views(seed=1, start_noise=3.0)
    pairs = [unit(np.random.default_rng(7).standard_normal((300, D)) ** 3)]
    pairs.append(pairs[0] @ views.rotation)
    seeds = Seeds(**{side: jnp.asarray(rows, jnp.float32) for side, rows in zip("xy", pairs, strict=True)})
    x, y, start = np.float32(views.x), np.float32(views.y), np.float32(views.start)
    config = SMALL.replace(polishing={"learning_rate": 0.1})
    alone, none, some = (
        refine(x, y, start, config.replace(pair_weight=weight), given)[0]
        for weight, given in ((1.0, None), (0.0, seeds), (1.0, seeds))
    )
    assert views.top1(some) > views.top1(alone) + 0.1
    np.testing.assert_allclose(none, alone, atol=1e-4)


@pytest.mark.parametrize(("num_x", "num_y", "expected"), [(100_000, 100_000, 50), (1_500, 1_500, 6), (10, 10, 1)])
def test_few_rows_take_few_steps(num_x, num_y, expected):
    assert polishing_steps(num_x, num_y, Config()) == expected


@pytest.mark.parametrize(("preset", "steps"), [("default", 5), ("default", 0), ("paper", 5)])
def test_a_fit_ends_with_it_unless_a_published_method_was_asked_for(preset, steps):
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((200, D)) ** 3
    padded = prepare_inputs(jax.random.key(0), cloud[:100], cloud[100:] @ semi_orthogonal(rng, D, D), Config(), None)
    small = {
        "anchors": {"num_sets": 2, "num_clusters": 5, "kept_sets": 2},
        "components": {"num_runs": 0},
        "polishing": {"steps": steps},
    }
    config = Config.preset(preset).replace(**small)
    keys = jax.random.split(jax.random.key(0), 1)
    result = jax.eval_shape(lambda: fit(Inline(), keys, *padded, config)[0])
    assert ("polish" in result.trajectory) == (preset == "default" and steps > 0)


def test_no_step_leaves_the_settled_map(views):
    rows = make_spaces(np.float32(views.x), np.float32(views.y), jnp.float32)
    W, objective = polish(
        jax.random.key(0), rows, jnp.asarray(views.start), config=SMALL.replace(polishing={"steps": 0})
    )
    assert objective.shape == (0,)
    np.testing.assert_allclose(W, views.start, rtol=1e-6)
