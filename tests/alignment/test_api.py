"""`align` and `align_restarts`: restarts are calls of `align`, the best is kept, and wrong arguments are named."""

import dataclasses
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, count_compilations, make_estimate, planted_clouds, small_config, with_settings

from mv2v_jax import AnchorInfo, Evidence, InputError, Verdict, align, align_restarts, make_mesh, select
from mv2v_jax.alignment.api import check_restarts, restart_batch, search_bytes
from mv2v_jax.alignment.choose import choose, map_agreement
from mv2v_jax.alignment.estimate import Estimate
from mv2v_jax.alignment.fit import _final_map, average, finish, num_averaged, prepare, search, search_once
from mv2v_jax.alignment.results import ComponentsInfo, Prepared, Searched
from mv2v_jax.alignment.run import Inline
from mv2v_jax.alignment.space import TwoSpaces, join_spaces
from mv2v_jax.alignment.stages import SETTLING_STAGES, refine, split_keys
from mv2v_jax.data.padding import pad_rows

NUM = 3
# Fewer stages, so that less is compiled; whitening, because only the best is whitened; and fewer directions than either
# space has.
CONFIG = small_config(published_match_steps=0, published_cluster_steps=0, whitening_power=0.1, search_dims=4)


@pytest.fixture(autouse=True)
def double_precision():
    """A stage makes discrete choices, and in float32 two programs could differ in one of them."""
    with jax.enable_x64(True):
        yield


def clouds(seed=10):
    planted = planted_clouds(6, 5, num_x=61, num_y=53, groups=6, seed=seed)
    return planted.x.astype(np.float64), planted.y.astype(np.float64)


def root():
    # The second best of its searches agrees with the best one, so that their average is another map.
    return jax.random.key(10)


@functools.cache
def restarts():
    return align_restarts(root(), *clouds(), NUM, CONFIG)


@functools.cache
def one_by_one():
    return [align(jax.random.fold_in(root(), index), *clouds(), CONFIG) for index in range(NUM)]


@functools.cache
def padded():
    return [pad_rows(rows, CONFIG.max_rows) for rows in clouds()]


@functools.cache
def prepared():
    return prepare(*padded(), CONFIG)


@functools.cache
def searches():
    """The searches of all restarts, and the first of them with other held-out rows."""
    rows = prepared()
    run = jax.jit(lambda key, rows: search_once(Inline(), key, rows, CONFIG))
    others = TwoSpaces(x=rows.held_out.x[::-1] ** 2, y=rows.held_out.y[::-1] ** 2)
    found = [run(jax.random.fold_in(root(), index), rows) for index in range(NUM)]
    return found, run(jax.random.fold_in(root(), 0), dataclasses.replace(rows, held_out=others))


def test_every_restart_is_a_call_of_align_with_its_own_key():
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[result.evidence for result in one_by_one()])
    assert_trees_close(restarts().evidence, expected, atol=1e-8)
    assert len(np.unique(restarts().evidence.cross)) == NUM


@pytest.mark.slow
def test_the_best_is_kept_and_one_restart_alone_is_align():
    found = restarts()
    assert int(found.chosen) == int(np.argmax([float(result.evidence.score) for result in one_by_one()]))
    chosen = one_by_one()[int(found.chosen)]
    assert_trees_close(found.best.info.anchors, chosen.info.anchors, atol=1e-8)
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
    rows = prepared()

    @jax.jit
    def settle(key, estimate):
        extended = dataclasses.replace(estimate, matrix=rows.subspace.extend(estimate.matrix))
        both = join_spaces(rows.source, rows.target)
        return refine(Inline(), split_keys(key), SETTLING_STAGES, both, extended, CONFIG)

    (one, trajectory), (other, _) = (settle(keys[i], searches()[0][i].estimate) for i in (best, second))
    assert one.matrix.shape == (6, 5)
    mean = (np.asarray(one.matrix) + weight * np.asarray(other.matrix)) / (1 + weight)
    searched = jax.jit(lambda keys: search(Inline(), keys, *padded(), CONFIG))(jnp.stack(keys))

    @jax.jit
    def finished(estimate):
        W, polishing = _final_map(jnp.stack(keys), searched, estimate, CONFIG)
        return finish(searched, estimate, W, {**trajectory, **polishing}, CONFIG)

    expected = finished(make_estimate(mean))
    np.testing.assert_allclose(found.best.map.W, expected.map.W, atol=1e-8)
    assert_trees_close(found.best.trajectory, expected.trajectory, atol=1e-8)
    assert np.abs(found.best.map.W - restarts().best.map.W).max() > 1e-3
    # The choice and its confidence do not depend on it.
    assert_trees_close(found.evidence, restarts().evidence, atol=1e-8)
    assert_trees_close(found.best.confidence, restarts().best.confidence, atol=1e-8)


def choice_of(matrices, score):
    """The `Choice` among searches with these matrices and these scores."""
    evidence = Evidence(**{field.name: jnp.asarray(score) for field in dataclasses.fields(Evidence)})
    nothing = jnp.zeros(len(score))
    anchors = AnchorInfo(objective=nothing, agreement=nothing, kept=nothing)
    components = ComponentsInfo(tried=nothing, used=nothing, agreement=nothing)
    found = Searched(
        estimate=make_estimate(matrices), evidence=evidence, trajectory={}, anchors=anchors, components=components
    )
    rows = TwoSpaces(x=jnp.eye(3), y=jnp.eye(3))
    unused = {field.name: None for field in dataclasses.fields(Prepared)}
    return choose(found, Prepared(**{**unused, "fitted": rows}), small_config())


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
    mean = average(make_estimate(matrices[np.asarray(found.order)]), found.weights[found.order])
    np.testing.assert_allclose(mean.matrix, (off + weight * right) / (1 + weight), atol=1e-12)
    # Where every search failed the result is NaN.
    assert np.isnan(average(make_estimate(matrices[:1]), jnp.ones(1)).matrix).all()


def test_a_published_refinement_ends_in_a_map_that_is_not_averaged():
    def averaged(num_settled, is_map):
        estimate = Estimate(matrix=jnp.zeros((5, 3, 3)), is_map=is_map)
        unused = {field.name: None for field in dataclasses.fields(Searched)}
        return num_averaged(num_settled, Searched(**{**unused, "estimate": estimate}))

    assert [averaged(3, is_map) for is_map in (False, True)] == [3, 1]
    assert averaged(9, False) == 5


def test_held_out_rows_take_no_part_in_the_search():
    found, with_other_rows = searches()
    np.testing.assert_array_equal(with_other_rows.estimate.matrix, found[0].estimate.matrix)
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
        left, _, right = np.linalg.svd(searched.estimate.matrix, full_matrices=False)
        maps.append(left @ right)
    # Without the first quarter of the directions in which they were searched, each other one with the same weight.
    rows = np.asarray(prepared().fitted.x)
    assert rows.shape == (64 - 5, 4)
    finer = np.linalg.svd(rows)[2][1:]
    np.testing.assert_allclose(agreement, agreement_in_numpy(maps, finer), atol=1e-7)
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
    # Only the score decides: the other fields would choose another one.
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
    """A device with memory statistics and nothing else."""

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
    config = with_settings(CONFIG, annealing_power=0.5, whitening_reliability_power=0.2, whitening_power=0.2)
    with count_compilations() as compilations:
        found = align_restarts(key, *others, NUM, config)
    assert not compilations
    assert not np.allclose(found.best.map.W, restarts().best.map.W)
    with count_compilations() as compilations:
        align_restarts(key, *others, 2, CONFIG)
    assert compilations, "the counter saw no compilation at all"


@pytest.mark.parametrize("num_restarts", [0, -3])
def test_a_wrong_number_of_restarts_is_named(num_restarts):
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
    with pytest.raises(InputError, match=r"^published.smoothing must be"):
        align_restarts(root(), x, y, 2, with_settings(CONFIG, published_smoothing=2.0))


WRONG_KEYS = {
    "an int": (lambda: 0, r"found 0; the key comes before x and y$"),
    "nothing": (lambda: None, r"found None; the key comes before x and y$"),
    "several keys": (lambda: jax.random.split(root(), 3), r"found an array of key<fry>\[3\]; use jax.vmap over .*$"),
    "several older keys": (lambda: jnp.zeros((3, 2), jnp.uint32), r"found an array of uint32\[3, 2\]; use jax.vmap"),
    "rows": (lambda: jnp.asarray(clouds()[0]), r"found an array of float64\[61, 6\]; the key comes before x and y$"),
    "rows in NumPy": (lambda: clouds()[0], r"found an array of float64\[61, 6\]; the key comes before x and y$"),
    "a list": (lambda: clouds()[0].tolist(), r"found a list; the key comes before x and y$"),
}


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_a_wrong_key_is_one_sentence(name):
    key, found = WRONG_KEYS[name]
    for fit in (align, functools.partial(align_restarts, num_restarts=2)):
        with pytest.raises(
            InputError, match=rf"^key must be one random key, such as jax.random.key\(0\), {found}"
        ) as e:
            fit(key(), *clouds(), config=CONFIG)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("swapped", [lambda x, y: (x, root(), y), lambda x, y: (x, y, root())])
def test_a_key_in_the_wrong_place_is_one_sentence(swapped):
    x, y = clouds()
    for rows in ((x, y), (jnp.asarray(x), jnp.asarray(y)), (x.tolist(), y.tolist())):
        for fit in (align, functools.partial(align_restarts, num_restarts=2)):
            with pytest.raises(InputError, match=r"^key must be one random key.* found ") as error:
                fit(*swapped(*rows), config=CONFIG)
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 200


def test_the_older_kind_of_key_is_taken():
    x, y = clouds()
    old, new = (
        jax.eval_shape(lambda key: align(key, x, y, CONFIG), make(0)) for make in (jax.random.PRNGKey, jax.random.key)
    )
    assert jax.tree.structure(old) == jax.tree.structure(new)


def assert_short(text):
    assert len(text.splitlines()) <= 6
    assert max(map(len, text.splitlines())) <= 120
    # No array, not even a shortened one.
    assert not re.search(r"Array|Traced|\[\[|dtype=|\.\.\.,|\d\.\d{6}", text)


def test_results_are_printed_in_a_few_lines():
    result, several = one_by_one()[0], restarts()
    for shown in (result, several, several.best):
        assert_short(repr(shown))
        assert repr(shown) == str(shown)
        assert shown._repr_html_().startswith("<")
    assert Verdict(int(result.verdict)).name in repr(result)
    assert f"{float(result.confidence):.2f}" in repr(result)
    assert "6 to 5 dimensions" in repr(result)
    assert "refine_csls 2" in repr(result)
    assert f"number {int(several.chosen)} chosen" in repr(several)


def test_results_can_be_printed_while_they_are_traced_and_when_they_are_batched():
    texts = []

    def fit(key):
        result = align(key, *clouds(), CONFIG)
        several = align_restarts(key, *clouds(), 2, CONFIG)
        texts.extend(map(repr, (result, several)))
        return result, several

    keys = jax.random.split(root(), 2)
    jax.eval_shape(jax.jit(fit), keys[0])
    batched = jax.eval_shape(jax.vmap(fit), keys)
    texts.extend(map(repr, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), batched)))
    assert len(texts) == 6
    for text in texts:
        assert_short(text)
        assert "[6, 5]" in text or "2 restarts" in text
