"""Several restarts are several calls of `align`, and the best of them is kept."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close, count_compilations, planted_clouds, small_config

from mv2v_jax import align, align_restarts, select
from mv2v_jax.alignment.fit import Searched, finish, prepare_search, search_map, settle
from mv2v_jax.alignment.restarts import (
    average,
    check_restarts,
    choose,
    map_agreement,
    num_averaged,
    restart_batch,
    search_bytes,
)
from mv2v_jax.alignment.score import Evidence
from mv2v_jax.alignment.space import fit_space
from mv2v_jax.data.padding import pad_rows
from mv2v_jax.errors import InputError
from mv2v_jax.ops.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compile")

NUM = 3
# Fewer stages, for there is less to compile; whitening, to see that only the best is whitened; and fewer directions
# than either space has.
CONFIG = small_config(match_steps=0, cluster_steps=0, whitening_power=0.1, search_dims=4)


@pytest.fixture(autouse=True)
def double_precision():
    """A stage makes discrete choices, and in float32 two programs could differ in one of them."""
    with jax.enable_x64(True):
        yield


def clouds(seed=10):
    planted = planted_clouds(6, 5, num_x=61, num_y=53, groups=6, seed=seed)
    return planted.x.astype(np.float64), planted.y.astype(np.float64)


def root():
    return jax.random.key(7)


@functools.cache
def restarts():
    return align_restarts(root(), *clouds(), NUM, CONFIG)


@functools.cache
def one_by_one():
    return [align(jax.random.fold_in(root(), index), *clouds(), CONFIG) for index in range(NUM)]


@functools.cache
def spaces():
    return [fit_space(*pad_rows(rows, CONFIG.max_rows)) for rows in clouds()]


@functools.cache
def searched_rows():
    return prepare_search(*spaces(), config=CONFIG)


@functools.cache
def searches():
    rows = searched_rows()
    search = jax.jit(lambda key, rows: search_map(key, rows, config=CONFIG))
    # What is searched for depends on the fitted rows alone.
    others = (part.replace(held_out=part.held_out[::-1] ** 2) for part in (rows.x, rows.y))
    found = [search(jax.random.fold_in(root(), index), rows) for index in range(NUM)]
    return found, search(jax.random.fold_in(root(), 0), rows.replace(**dict(zip("xy", others, strict=True))))


def test_every_restart_is_a_call_of_align_with_its_own_key():
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[result.evidence for result in one_by_one()])
    assert_trees_close(restarts().evidence, expected, atol=1e-8)
    assert len(np.unique(restarts().evidence.cross)) == NUM


@pytest.mark.slow
def test_the_best_is_kept_and_one_restart_alone_is_align():
    found = restarts()
    assert int(found.chosen) == int(np.argmax([float(result.evidence.score) for result in one_by_one()]))
    chosen = one_by_one()[int(found.chosen)]
    assert_trees_close(found.best.info.anchor_objective, chosen.info.anchor_objective, atol=1e-8)
    assert_trees_close(found.best.evidence, chosen.evidence, atol=1e-8)
    np.testing.assert_allclose(found.best.map.W, chosen.map.W, atol=1e-8)
    alone = align_restarts(root(), *clouds(), 1, CONFIG)
    assert_trees_close(alone.best, one_by_one()[0], atol=1e-8)


@functools.cache
def consensus():
    return align_restarts(root(), *clouds(), NUM, CONFIG, num_settled=2)


@pytest.mark.slow
def test_a_consensus_is_the_average_of_what_the_best_were_settled_to():
    found, keys = consensus(), [jax.random.fold_in(root(), index) for index in range(NUM)]
    best, second = np.argsort(-np.asarray(found.evidence.score))[:2]
    weight = max(float(found.agreement[best, second]), 0) ** 2
    settled = jax.jit(lambda key, matrix: settle(key, *spaces(), searched_rows(), matrix, config=CONFIG))
    (one, trajectory), (other, _) = (settled(keys[i], searches()[0][i].matrix) for i in (best, second))
    assert one.shape == (6, 5)
    mean = (np.asarray(one) + weight * np.asarray(other)) / (1 + weight)
    searched = searches()[0][best]
    expected = jax.jit(lambda matrix: finish(*spaces(), matrix, searched, trajectory, config=CONFIG))(jnp.asarray(mean))
    np.testing.assert_allclose(found.best.map.W, expected.map.W, atol=1e-8)
    assert_trees_close(found.best.trajectory, expected.trajectory, atol=1e-8)
    assert np.abs(found.best.map.W - restarts().best.map.W).max() > 1e-3
    # What is chosen, and how sure that is, has nothing to do with it.
    assert_trees_close(found.evidence, restarts().evidence, atol=1e-8)
    assert_trees_close(found.best.confidence, restarts().best.confidence, atol=1e-8)


def choice_of(matrices, score):
    """The choice among searches of these matrices: nothing but the score and the matrices says anything."""
    evidence = Evidence(**{field.name: jnp.asarray(score) for field in dataclasses.fields(Evidence)})
    nothing = jnp.zeros(len(score))
    trajectory = {"anchor_objective": nothing, "anchor_agreement": nothing, "anchor_kept": nothing}
    searched = Searched(matrix=jnp.asarray(matrices), evidence=evidence, trajectory={}, **trajectory)
    return choose(searched, jnp.eye(3), config=small_config())


def test_searches_that_disagree_or_failed_do_not_count():
    right = np.eye(3)
    off = np.linalg.qr(right + 0.1 * np.arange(9).reshape(3, 3))[0]
    off *= np.sign(np.diagonal(off))
    matrices = np.stack([np.full((3, 3), np.nan), right, -right, off])
    found = choice_of(matrices, [np.nan, 0.5, 0.4, 0.6])
    weight = (np.trace(off) / 3) ** 2
    assert 0.1 < weight < 0.99
    assert int(found.chosen) == 3
    np.testing.assert_array_equal(found.order, [3, 1, 2, 0])
    np.testing.assert_allclose(found.weights, [0, weight, 0, 1], atol=1e-12)
    mean = average(jnp.asarray(matrices)[found.order], found.weights[found.order])
    np.testing.assert_allclose(mean, (off + weight * right) / (1 + weight), atol=1e-12)
    # Where everything failed nothing is made up.
    assert np.isnan(average(jnp.asarray(matrices[:1]), jnp.ones(1))).all()


def test_a_published_refinement_ends_in_a_map_that_is_not_averaged():
    published = small_config(anneal_steps=0, csls_steps=0, whole_steps=0)
    assert [num_averaged(3, 5, config) for config in (CONFIG, published)] == [3, 1]
    assert num_averaged(9, 5, CONFIG) == 5


def test_held_out_rows_take_no_part_in_the_search():
    found, with_other_rows = searches()
    np.testing.assert_array_equal(with_other_rows.matrix, found[0].matrix)
    assert float(with_other_rows.evidence.cross) != float(found[0].evidence.cross)


def agreement_in_numpy(maps, rows):
    moved = [(rows @ W).ravel() for W in maps]
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in moved] for a in moved])


def test_agreement_is_that_of_the_searched_maps():
    agreement = np.asarray(restarts().agreement)
    assert agreement.shape == (NUM, NUM)
    np.testing.assert_allclose(np.diagonal(agreement), 1, atol=1e-12)
    np.testing.assert_allclose(agreement, agreement.T, atol=1e-12)
    maps = []
    for searched in searches()[0]:
        left, _, right = np.linalg.svd(searched.matrix, full_matrices=False)
        maps.append(left @ right)
    # On the fitted rows, in the directions in which they were searched.
    rows = np.asarray(searched_rows().x.fitted)
    assert rows.shape == (64 - 5, 4)
    np.testing.assert_allclose(agreement, agreement_in_numpy(maps, rows), atol=1e-7)
    assert (agreement[np.triu_indices(NUM, 1)] < 0.999).all()


def test_agreement_counts_directions_by_the_data_in_them(rng):
    rows = rng.normal(size=(40, 3)) * [1.0, 1.0, 0.0]
    W = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    flipped = np.diag([1.0, 1.0, -1.0]) @ W  # In a direction where there is nothing.
    maps = np.stack([W, flipped, -2 * W, rng.normal(size=(3, 3))])
    found = np.asarray(map_agreement(jnp.asarray(maps), jnp.asarray(rows)))
    np.testing.assert_allclose(found, agreement_in_numpy(maps, rows), atol=1e-12)
    np.testing.assert_allclose(found[0, :3], [1, 1, -1], atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.7, 0.3], 1),
        ([-5.0, -2.0, -9.0], 1),
        ([np.nan, 0.2, 0.3], 2),
        ([0.2, np.inf, -np.inf], 0),
        ([np.nan, -4.0, np.nan], 1),
    ],
)
def test_the_largest_finite_score_is_selected(scores, expected):
    scores = jnp.array(scores)
    # Nothing but the score decides, so the rest points elsewhere.
    others = {field.name: -jnp.nan_to_num(scores) for field in dataclasses.fields(Evidence)}
    chosen = select(Evidence(**{**others, "score": scores}))
    assert int(chosen) == expected
    assert chosen.dtype == jnp.int32


@pytest.mark.slow
def test_side_by_side_is_one_after_the_other():
    found = align_restarts(root(), *clouds(), 2, CONFIG, batch_size=2)
    expected = jax.tree.map(lambda leaf: leaf[:2], restarts().evidence)
    assert_trees_close(found.evidence, expected, atol=1e-8)
    assert int(found.chosen) == int(np.argmax(expected.score))


class Accelerator(NamedTuple):
    """As much of a device as says what memory it has."""

    memory: dict[str, int]
    platform: str = "gpu"

    def memory_stats(self):
        return self.memory


def test_as_many_restarts_go_side_by_side_as_fit_half_of_the_memory(monkeypatch):
    config = small_config()
    assert restart_batch(100, 3_000, 128, config) == 1  # One after the other is faster on CPU.
    one = search_bytes(3_000, 128, config)
    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator({"bytes_limit": 20 * one, "bytes_in_use": one})])
    assert restart_batch(100, 3_000, 128, config) == 10
    assert restart_batch(4, 3_000, 128, config) == 4
    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator({"bytes_limit": one})])
    assert restart_batch(100, 3_000, 128, config) == 1
    monkeypatch.undo()
    assert restart_batch(100, 3_000, 128, config, make_mesh(100)) == 1


@pytest.mark.slow
def test_same_shapes_compile_once():
    restarts()
    key, others = jax.random.key(8), clouds(seed=11)
    config = dataclasses.replace(CONFIG, anneal_power=0.5, reliability_power=0.2, whitening_power=0.2)
    with count_compilations() as compilations:
        found = align_restarts(key, *others, NUM, config)
    assert not compilations
    assert not np.allclose(found.best.map.W, restarts().best.map.W)
    with count_compilations() as compilations:
        align_restarts(key, *others, 2, CONFIG)
    assert compilations, "the counter saw no compilation at all"


@pytest.mark.parametrize("num_restarts", [0, -3])
def test_no_restart_is_named(num_restarts):
    with pytest.raises(InputError, match=f"^num_restarts must be a whole number of at least 1, found {num_restarts}$"):
        align_restarts(root(), *clouds(), num_restarts, CONFIG)


@pytest.mark.parametrize(("held_out", "num_rows"), [(0, 53), (5, 9)])
def test_nothing_to_choose_by_is_named(held_out, num_rows):
    config = small_config(held_out_rows=held_out)
    x, y = clouds()
    with pytest.raises(InputError, match=f"found held_out_rows={held_out} and {num_rows} rows$"):
        align_restarts(root(), x, y[:num_rows], 2, config)
    check_restarts(1, num_rows, config)  # One needs no choosing.


@pytest.mark.parametrize("argument", ["x", "y"])
def test_bad_rows_are_named(argument):
    x, y = clouds()
    arguments = {"x": x, "y": y}
    arguments[argument] = arguments[argument].copy()
    arguments[argument][4, 1] = np.nan
    with pytest.raises(InputError, match=f"^{argument} must be finite.*first in row 4$"):
        align_restarts(root(), arguments["x"], arguments["y"], 2, CONFIG)
    with pytest.raises(InputError, match=r"^smoothing must be"):
        align_restarts(root(), x, y, 2, dataclasses.replace(CONFIG, smoothing=2.0))
