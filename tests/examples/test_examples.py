"""The examples: what they share, what they import, and each of them on the bundled data."""

import argparse
import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

import mv2v_jax
import mv2v_jax.training

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED = ("common", "texts")
PROGRAMS = sorted({path.stem for path in EXAMPLES.glob("*.py")} - set(SHARED))
PUBLIC = {"mv2v_jax": mv2v_jax.__all__, "mv2v_jax.training": mv2v_jax.training.__all__}


@pytest.fixture
def load(monkeypatch):
    """Imports an example by name, as it imports the others: from its own folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    # Their names are common ones.
    for name in (*SHARED, *PROGRAMS):
        sys.modules.pop(name, None)


def oracle_fit(key, x, y, *_):
    """A fit that takes no time: its first rows are pairs in these tests."""
    linear_map = mv2v_jax.oracle(x, y[: len(x)], y)
    return SimpleNamespace(best=SimpleNamespace(map=linear_map, verdict=2))


@pytest.mark.parametrize("name", [*SHARED, *PROGRAMS])
def test_examples_use_public_names_alone(name):
    for node in ast.walk(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith(("mv2v_jax.", "benchmarks"))]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert not module.startswith("benchmarks")
            if module.startswith("mv2v_jax"):
                assert {alias.name for alias in node.names} <= set(PUBLIC.get(module, ()))


def test_an_example_runs_from_any_folder(tmp_path):
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Learn a map between two embedding spaces" in done.stdout


def test_kinds_are_found_at_the_beginning_of_a_gloss(load):
    texts = load("texts")
    glosses = {
        "someone who buys": "person",
        "English poet (1770-1850)": "person",
        "a genus of Mustelidae": "living thing",
        "a city in northern India": "place",
        "the act of buying": "act",
        "the state of being bought": "state",
        "a small device that buys": "artefact",
        "buying; of or by": None,
    }
    names = [*texts.KINDS, None]
    kinds = texts.kinds_of([f"word: {gloss}" for gloss in glosses])
    assert [names[kind] for kind in kinds] == list(glosses.values())


def test_words_have_numbers_and_0_is_no_word(load):
    hash_words = load("texts").hash_words
    words = hash_words(["Buying, a BUYING", "", "one two three four five"], 4, 2**10)
    assert words.shape == (3, 4)
    assert (words[0] > 0).sum() == 1
    assert not words[1].any()
    assert len(set(words[2])) == 4
    assert words.max() <= 2**10
    np.testing.assert_array_equal(hash_words(["buying"], 4, 2**10)[0], words[0])


def options_of(**changes):
    return argparse.Namespace(**{"data": None, "rows": None, **changes})


def test_texts_are_those_of_the_rows(load):
    common, texts = load("common"), load("texts")
    found, whole = (
        texts.load_texts(options, common.load_rows(options)) for options in (options_of(rows=25), options_of())
    )
    for name, num_found, num_whole in (("x", 25, 6_000), ("y", 25, 6_000), ("evaluated", 2_000, 2_000)):
        part, side = getattr(found, name), getattr(whole, name)
        assert (len(part), len(side)) == (num_found, num_whole)
        assert side[:num_found] == part
    assert not set(whole.x) & set(whole.y)


def test_rows_of_a_folder_are_split_like_the_bundled_ones(load, monkeypatch, tmp_path):
    common = load("common")
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(30, d)).astype(np.float16) for name, d in (("minilm", 5), ("wordllama", 4))}
    for name, side in rows.items():
        np.save(tmp_path / f"wordnet.{name}.npy", side)
    monkeypatch.setattr(common, "NUM_EVAL", 10)
    data = common.load_rows(options_of(data=tmp_path, rows=6), source="wordllama", target="minilm")
    np.testing.assert_array_equal(data.x, rows["wordllama"][:6])
    np.testing.assert_array_equal(data.y_true, rows["minilm"][:6])
    np.testing.assert_array_equal(data.y, rows["minilm"][10:16])
    np.testing.assert_array_equal(data.x_eval, rows["wordllama"][20:])
    np.testing.assert_array_equal(data.y_eval, rows["minilm"][20:])
    assert data.x.dtype == np.float32


def test_a_search_is_evaluated_by_the_results_of_another(load, rng):
    evaluate_search = load("move_index").evaluate_search
    wanted = rng.normal(size=(6, 40)).astype(np.float32)
    assert evaluate_search(wanted, wanted) == pytest.approx({"recall": 1.0, "ndcg": 1.0})
    best = np.argsort(-wanted, axis=1)[:, :10]
    found = np.zeros_like(wanted)
    # Half of the ten nearest, in the wrong order.
    np.put_along_axis(found, best[:, ::2], np.arange(1.0, 6.0, dtype=np.float32)[None], axis=1)
    found[:, :] -= 1e-3 * np.arange(40)[None]
    scores = evaluate_search(found, wanted)
    assert 0.5 <= scores["recall"] <= 0.9
    gains = np.zeros_like(wanted)
    np.put_along_axis(gains, best, np.arange(10, 0, -1.0, dtype=np.float32)[None], axis=1)
    np.testing.assert_allclose(scores["ndcg"], ndcg_score(gains, found, k=10))


def test_an_audit_with_the_map_of_true_pairs_finds_more_than_chance(load, monkeypatch, capsys):
    audit_leak = load("audit_leak")
    monkeypatch.setattr(audit_leak, "align_restarts", oracle_fit)
    found = audit_leak.main(["--rows", "800"])
    assert found["rotation of true pairs"]["f1"] > found["random rotation"]["f1"] + 0.2
    assert "kind of a leaked vector, of 6" in capsys.readouterr().out


@pytest.mark.slow
def test_quickstart(load, capsys):
    assert load("quickstart").main([]) > 0.6
    assert "verdict aligned" in capsys.readouterr().out


@pytest.mark.slow
def test_training_loop(load, lenient_promotion):
    assert load("training_loop").main([]) > 0.5


@pytest.mark.slow
def test_several_spaces(load):
    found = load("several_spaces").main([])
    assert not any(found.wrong.values())
    assert found.maps["wordllama", "minilm"].W.shape == (256, 384)


@pytest.mark.slow
def test_train_encoder(load, lenient_promotion):
    found = load("train_encoder").main([])
    distilled, with_loss = (found[f"encoder, {name}"] for name in ("distilled from the map", "with alignment_loss"))
    # Chance is 0.0005. The loss brings rows nearer to their partners.
    assert with_loss.top1 > 0.2
    assert with_loss.cosine > distilled.cosine


@pytest.mark.slow
def test_follow_finetuning(load, lenient_promotion):
    last = load("follow_finetuning").main([])[-1]
    assert last["accuracy"] > 0.8
    # Fine-tuning loses what both maps rely on; the one that follows loses less.
    assert last["updated"] > last["fixed"]


@pytest.mark.slow
def test_move_index(load):
    found = load("move_index").main([])
    assert found["after: new encoder, moved index"]["recall"] > 0.2
    assert found["index moved by a random rotation"]["recall"] < 0.02


@pytest.mark.slow
def test_audit_leak(load):
    found = load("audit_leak").main([])
    assert found["mv2v_jax, no pair known"]["accuracy"] > found["the most frequent kind"]["accuracy"] + 0.2
    assert found["mv2v_jax, no pair known"]["f1"] > found["random rotation"]["f1"] + 0.3
