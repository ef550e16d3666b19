"""The recipes: what they are made of, and each of them run on the bundled texts."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from benchmarks import common
from benchmarks.recipes import audit_leak, follow_finetuning, move_index, train_encoder
from benchmarks.recipes.texts import KINDS, hash_words, kinds_of, load_texts
from mv2v_jax.evaluation import metrics


@pytest.fixture
def bundled(monkeypatch, tmp_path):
    """Only the bundled set is there, as for a stranger."""
    monkeypatch.setattr(common, "SHARED", tmp_path / "nowhere")


def oracle_fit(key, x, y, *_):
    """A fit that takes no time: its first rows are pairs in these tests."""
    linear_map = metrics.oracle(x, y[: len(x)], y)
    return SimpleNamespace(best=SimpleNamespace(map=linear_map, verdict=2))


def test_kinds_are_told_from_the_beginning_of_a_gloss():
    glosses = {
        "someone who buys": "person",
        "English poet (1770-1850)": "person",
        "a genus of Mustelidae": "living thing",
        "a city in northern India": "place",
        "the act of buying": "act",
        "the state of being bought": "state",
        "a small device that buys": "made thing",
        "buying; of or by": None,
    }
    names = [*KINDS, None]
    assert [names[kind] for kind in kinds_of([f"word: {gloss}" for gloss in glosses])] == list(glosses.values())


def test_words_have_numbers_and_none_is_zero():
    words = hash_words(["Buying, a BUYING", "", "one two three four five"], 4, 2**10)
    assert words.shape == (3, 4)
    assert (words[0] > 0).sum() == 1
    assert not words[1].any()
    assert len(set(words[2])) == 4
    assert words.max() <= 2**10
    np.testing.assert_array_equal(hash_words(["buying"], 4, 2**10)[0], words[0])


def test_texts_are_those_of_the_rows(bundled):
    options = SimpleNamespace(data=None, rows=60, eval=10, source="minilm", target="wordllama")
    split, _ = common.load_split(options)
    texts = load_texts(options, split)
    assert [len(side) for side in texts] == [25, 25, 10]
    whole = load_texts(options, common.load_split(SimpleNamespace(**{**vars(options), "rows": None}))[0])
    assert whole.x[:25] == texts.x
    assert whole.x[25:50] == texts.y


def test_an_index_is_judged_by_what_another_would_have_found(rng):
    wanted = rng.normal(size=(6, 40)).astype(np.float32)
    assert move_index.judge(wanted, wanted) == {"recall": 1.0, "ndcg": 1.0}
    best = np.argsort(-wanted, axis=1)[:, :10]
    found = np.zeros_like(wanted)
    # Half of the ten nearest, in the wrong order.
    np.put_along_axis(found, best[:, ::2], np.arange(1.0, 6.0, dtype=np.float32)[None], axis=1)
    found[:, :] -= 1e-3 * np.arange(40)[None]
    scores = move_index.judge(found, wanted)
    assert 0.5 <= scores["recall"] <= 0.9
    gains = np.zeros_like(wanted)
    np.put_along_axis(gains, best, np.arange(10, 0, -1.0, dtype=np.float32)[None], axis=1)
    np.testing.assert_allclose(scores["ndcg"], ndcg_score(gains, found, k=10))


def test_an_audit_with_the_map_of_true_pairs_tells_more_than_chance(bundled, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(audit_leak, "align_restarts", oracle_fit)
    file = tmp_path / "out.json"
    found = audit_leak.main(["--rows", "1600", "--eval", "100", "--json", str(file)])
    assert json.loads(file.read_text())["scores"] == found
    assert found["rotation of true pairs"]["f1"] > found["any rotation"]["f1"] + 0.2
    assert "kinds a leaked vector is about" in capsys.readouterr().out


@pytest.mark.slow
def test_train_encoder(bundled):
    found = train_encoder.main(["--steps", "800"])
    distilled, with_loss = (found[f"encoder, {name}"] for name in ("distilled", "with alignment_loss"))
    # Chance is 0.0005. The loss brings rows nearer to their partners.
    assert with_loss["top1"] > 0.2
    assert with_loss["cosine"] > distilled["cosine"]


@pytest.mark.slow
def test_follow_finetuning(bundled):
    last = follow_finetuning.main([])["rows"][-1]
    assert last["kind"] > 0.8
    # Fine-tuning loses what both maps live on; the one that follows loses less.
    assert last["updated"] > last["fixed"]


@pytest.mark.slow
def test_move_index(bundled):
    found = move_index.main([])
    assert found["after: new encoder, moved index"]["recall"] > 0.2
    assert found["moved by any rotation"]["recall"] < 0.02


@pytest.mark.slow
def test_audit_leak(bundled):
    found = audit_leak.main([])
    assert found["mv2v_jax, no pair known"]["accuracy"] > found["guessing the most frequent kind"]["accuracy"] + 0.2
    assert found["mv2v_jax, no pair known"]["f1"] > found["any rotation"]["f1"] + 0.3
