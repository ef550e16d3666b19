"""Other texts of one encoder pass; rows of another space, another scale or fewer dimensions do not."""

import re

import numpy as np
import pytest

from mv2v_jax import InputError
from mv2v_jax.data.demo import load_encoder
from mv2v_jax.profiles.mismatch import find_mismatch
from mv2v_jax.profiles.profile import profile_rows, profile_tensors, profiles_from, sample_rows

TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(384, 384)))[0].astype(np.float32)


@pytest.fixture(scope="module")
def minilm():
    return load_encoder("minilm")[0]


@pytest.fixture(scope="module")
def profile(minilm):
    return profile_rows(minilm[:6000])


@pytest.fixture(scope="module")
def wordllama():
    return load_encoder("wordllama")[0]


def one_topic(rows):
    """The 40 rows nearest to the first one: unlike the average text."""
    return rows[np.argsort(-(rows @ rows[0]))[:40]]


def test_other_texts_pass(profile, minilm, wordllama):
    unseen = minilm[6000:]
    for rows in (unseen, unseen[:10], unseen[:1], one_topic(unseen), unseen.astype(np.float16), np.zeros((3, 384))):
        assert find_mismatch(profile, rows) is None
    assert find_mismatch(profile_rows(wordllama[:6000]), one_topic(wordllama[6000:])) is None


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x @ TURN, "rows of another encoder"),
        (lambda x: x[:, ::-1], "rows of another encoder"),
        (lambda x: x * 7 + 1, r"lengths from 20.* where the fitting rows have lengths of 1; scale"),
        (lambda x: x * 1.2, r"lengths of 1\.2 where"),
        (lambda x: np.where(np.arange(384) < 200, x, 0), "zeros in all columns after the first 200, as of truncated"),
    ],
)
@pytest.mark.parametrize("num_rows", [10, 3000])
def test_other_rows_do_not(profile, minilm, change, found, num_rows):
    assert re.search(found, find_mismatch(profile, change(minilm[6000 : 6000 + num_rows])))


@pytest.mark.parametrize("num_rows", [10, 2000])
def test_reflected_rows_do_not(profile, minilm, wordllama, num_rows):
    for own, rows in ((profile, minilm), (profile_rows(wordllama[:6000]), wordllama)):
        assert find_mismatch(own, rows[6000 : 6000 + num_rows]) is None
        assert "rows as if times -1" in find_mismatch(own, -rows[6000 : 6000 + num_rows])


def test_profiles_of_earlier_versions_are_read(profile, minilm):
    later = ("centres", "nearness", "length_weights", "length_fit")
    tensors = {name: t for name, t in profile_tensors((profile, None)).items() if not name.startswith(later)}
    earlier, _ = profiles_from(tensors)
    assert earlier.centres is None
    assert find_mismatch(earlier, minilm[6000:]) is None
    assert find_mismatch(earlier, -minilm[6000:]) is None


def test_rows_of_the_other_side_are_recognised(profile, minilm, wordllama):
    # Padded with small numbers to the dimension of the other space.
    other = np.hstack([wordllama, 1e-3 * minilm[:, :128]])
    found = find_mismatch(profile, other[6000:8000], profile_rows(other[:6000]))
    assert found.endswith("they look like the other space of the map: map the other way")
    assert find_mismatch(profile, other[6000:8000]).endswith("the processing of the fitting rows")


def test_lengths_that_vary_are_missed_when_normalised_and_when_scaled(wordllama):
    profile, unseen = profile_rows(wordllama[:6000]), wordllama[6000:]
    unit = unseen / np.linalg.norm(unseen, axis=1, keepdims=True)
    assert "not normalised" in find_mismatch(profile, unit)
    assert "in the scale of the fitting rows" in find_mismatch(profile, unseen * 7)
    assert find_mismatch(profile, unseen * 2) is None


def test_a_narrow_cone_is_recognised_by_its_mean(minilm):
    rows = minilm + 2 * TURN[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    profile = profile_rows(rows[:6000])
    assert find_mismatch(profile, rows[6000:6001]) is None
    assert "rows of another mean" in find_mismatch(profile, minilm[6000:6001])


def test_a_space_without_structure_raises_no_alarm():
    rows = np.random.default_rng(1).normal(size=(2000, 40))
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(40, 40)))[0]
    profile = profile_rows(rows[:1500])
    assert profile.likeness < 0.7
    assert find_mismatch(profile, rows[1500:] @ turn) is None


def test_few_and_wide_rows():
    rows = np.random.default_rng(3).normal(size=(1500, 1100)) * np.geomspace(1, 0.05, 1100)
    assert profile_rows(rows[:199]) is None
    profile = profile_rows(rows[:900])
    assert profile.directions.shape == (1100, 256)
    np.testing.assert_allclose(np.linalg.norm(profile.directions.astype(np.float32), axis=0), 1, atol=1e-3)
    assert find_mismatch(profile, rows[900:]) is None
    assert find_mismatch(profile, rows[900:, ::-1]) is not None


def test_profiles_in_and_out_of_tensors(profile):
    tensors = profile_tensors((None, profile))
    assert {name[-2:] for name in tensors} == {"_y"}
    none, found = profiles_from(tensors)
    assert none is None
    np.testing.assert_array_equal(found.directions, profile.directions)


def test_sampled_rows_are_spread_and_leave_out_zero_rows():
    rows = np.arange(1, 21, dtype=np.float16)[:, None] * np.ones((1, 3), np.float16)
    rows[0] = 0
    assert sample_rows(rows, 5)[:, 0].tolist() == [5, 10, 15, 20]
    assert sample_rows(rows, 100).dtype == np.float32


@pytest.mark.parametrize("rows", [np.ones(300), np.ones((300, 4), int), [[1.0], [1.0, 2.0]]])
def test_profiles_are_of_matrices(rows):
    with pytest.raises(InputError, match=r"rows must be a .*found"):
        profile_rows(rows)
    assert profile_rows([[1.0, 2.0]] * 3) is None
