"""The data sets that differ from one corpus, and the table over them."""

import itertools
import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from benchmarks import corpora, generality
from mv2v_jax import Config

NUM_ROWS, DIMS = 480, {"minilm": 8, "wordllama": 6, "lsa": 6, "e5": 8}
FILES = ("wordnet.minilm", "wordnet.wordllama", "web.minilm", "web.e5", "captions_en.minilm", "captions_de.e5")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Small files in which the first number of every row is the number of its text, below or above zero on the web."""
    rng = np.random.default_rng(0)
    numbers = np.arange(1, NUM_ROWS + 1)
    # Topics, which both encoders see.
    shared = 3 * rng.normal(size=(12, 8))[rng.integers(12, size=NUM_ROWS)] + rng.normal(size=(NUM_ROWS, 8))
    for name in FILES:
        corpus, encoder = name.split(".")
        rows = shared[:, : DIMS[encoder]] + 0.1 * rng.normal(size=(NUM_ROWS, DIMS[encoder]))
        rows[:, 0] = -numbers / 64 if corpus == "web" else numbers / 64
        np.save(tmp_path / f"{name}.npy", rows.astype(np.float16))
    monkeypatch.setattr(corpora, "NUM_EVAL", {"wordnet": 80, "web": 80, "captions": 80})
    values = {"PER_SIDE": 60, "FEW": 40, "FEWER": 30, "NUM_TOPICS": 6, "TOPICS_PER_SIDE": 4, "SHARED_TOPICS": 2}
    for name, value in values.items():
        monkeypatch.setattr(corpora, name, value)
    corpora.topics.cache_clear()
    # Small k-means is faster without threads.
    with threadpool_limits(1):
        yield tmp_path


def build(folder, name):
    (found,) = [corpus for corpus in corpora.corpora() if corpus.name == name]
    return found.build(folder)


def texts(rows):
    return rows[:, 0].tolist()


def test_no_text_is_on_both_sides_or_evaluates_a_map_fitted_on_it(folder):
    listed = corpora.corpora()
    assert len({corpus.name for corpus in listed}) == len(listed)
    for corpus in listed:
        if corpus.name == "lsa":
            with pytest.raises(FileNotFoundError, match=r"has no wordnet\.lsa\.npy"):
                corpus.build(folder)
            continue
        split = corpus.build(folder)
        assert {rows.dtype for rows in vars(split).values()} == {np.dtype(np.float32)}
        assert (len(split.x), len(split.x_eval)) == (len(split.y_true), len(split.y_eval))
        # Changes of X change these numbers, but never those of the target.
        sides = [set(texts(rows)) for rows in (split.y_true, split.y, split.y_eval)]
        assert len(split.y_eval) == len(sides[2]) > 10
        for one, other in itertools.combinations(sides, 2):
            assert not one & other
        if not corpus.name.startswith(("long", "axis", "half-web")):
            assert texts(split.x) == texts(split.y_true)
        if not corpus.name.startswith("axis"):
            assert texts(split.x_eval) == texts(split.y_eval)


def test_numbers_of_rows(folder):
    sizes = {"wordnet": (200, 200), "wordnet-8k": (60, 60), "wordnet-3k": (40, 40), "wordnet-26k-1.5k": (200, 30)}
    sizes |= {"wordnet-1.5k-26k": (30, 200), "web-back": (200, 200), "skew-0.3-2": (60, 60), "overlap": (60, 60)}
    sizes |= {"half-web": (60, 60), "half-web-without": (30, 60), "axis-0.50": (60, 60)}
    for name, expected in sizes.items():
        split = build(folder, name)
        assert (name, len(split.x), len(split.y)) == (name, *expected)


def topics_of(folder, rows):
    return corpora.topics(folder)[(64 * rows[:, 0]).round().astype(int) - 1]


def test_topics_of_the_two_sides(folder):
    split = build(folder, "overlap")
    of_x, of_y, of_evaluation = (set(topics_of(folder, rows)) for rows in (split.y_true, split.y, split.y_eval))
    assert (len(of_x), len(of_y), of_evaluation) == (4, 4, of_x & of_y)

    def difference(name):
        split = build(folder, name)
        shares = [np.bincount(topics_of(folder, rows), minlength=6) / 60 for rows in (split.y_true, split.y)]
        return np.abs(shares[0] - shares[1]).sum() / 2

    assert difference("wordnet-8k") < 0.25 < min(difference(f"skew-0.3-{draw}") for draw in range(3))
    assert texts(build(folder, "skew-1.0-0").x) == texts(build(folder, "skew-1.0-0").x)
    assert texts(build(folder, "skew-1.0-0").x) != texts(build(folder, "skew-1.0-1").x)


def test_changed_rows(folder):
    plain, web = build(folder, "wordnet-8k"), build(folder, "half-web")
    np.testing.assert_array_equal(web.x[:30], plain.x[:30])
    assert (web.x[30:, 0] < 0).all()
    assert not web.y_true[30:].any()
    lengths = np.linalg.norm(build(folder, "long-one").x, axis=1) / np.linalg.norm(plain.x, axis=1)
    np.testing.assert_allclose(np.sort(lengths)[-2:], [1, 1e5], rtol=1e-3)
    both = build(folder, "long-percent-both")
    for side in ("x", "y"):
        lengths = np.linalg.norm(getattr(both, side), axis=1) / np.linalg.norm(getattr(plain, side), axis=1)
        assert (lengths > 99).sum() == 1
    for share in corpora.AXIS_SHARES:
        split = build(folder, f"axis-{share:.2f}")
        added = np.concatenate([split.x - plain.x, split.x_eval - plain.x_eval])
        assert np.linalg.matrix_rank(added, tol=1e-3) == 1
        assert (added.var(0).sum() / (added.var(0).sum() + plain.x.var(0).sum())) == pytest.approx(share, rel=0.05)


def test_only_data_sets_that_exist(folder):
    for wrong in (["--only", "nothing"], ["--only", "web,"], ["--data", str(folder), "--seeds", "0"]):
        with pytest.raises(SystemExit, match="2"):
            generality.main(wrong)
    with pytest.raises(SystemExit, match="name their folder with --data"):
        generality.main([])


@pytest.mark.slow
def test_generality_continues_where_it_stopped(folder, tiny, monkeypatch, capsys):
    for name in ("notebook", "default"):
        small = tiny[name].replace(anchors={"num_clusters": 3}, held_out_rows=6)
        monkeypatch.setitem(tiny, name, small)
    monkeypatch.setattr(Config, "preset", tiny.__getitem__)
    file = folder / "generality.json"
    arguments = ["--data", str(folder), "--only", "wordnet-8k,lsa", "--json", str(file)]
    assert len(generality.main([*arguments, "--seeds", "1", "--no-published"])) == 2
    first = json.loads(file.read_text())["fits"]
    assert {fit["key"]["method"] for fit in first} == {"oracle", "default"}
    assert "lsa: missing" in capsys.readouterr().out
    found = generality.main([*arguments, "--seeds", "2"])
    assert found[:2] == first
    assert len(found) == 5
    assert [fit["compile_seconds"] is None for fit in found[2:]] == [False, True, False]
    out = capsys.readouterr().out
    assert "wordnet-8k, default, seed 0" not in out
    assert "wordnet-8k, published, seed 1" in out
    assert out.count("│ wordnet-8k") == 2
    assert generality.main([*arguments, "--seeds", "2"]) == found
