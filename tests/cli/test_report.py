"""``mv2v report`` and ``--report`` as a user runs them: the page, and what is said where there can be none."""

import json
import sys

import numpy as np
import pytest
from cli.commands import CACHE, run
from click.testing import CliRunner

from mv2v_jax.cli import cli
from mv2v_jax.cli.report import read_texts
from mv2v_jax.data.map_file import save_map
from mv2v_jax.errors import InputError
from mv2v_jax.linear_map import Centering, LinearMap
from mv2v_jax.report.page import Texts

pytest.importorskip("bokeh", reason='a report needs bokeh: pip install "mv2v_jax[report]"')


@pytest.fixture
def place(tmp_path, rng):
    """A folder with rows of 6 and 4 dimensions, a map between them, and texts."""
    for name, shape in {"x": (40, 6), "y": (30, 4), "few": (3, 4), "px": (5, 6), "py": (4, 4)}.items():
        np.save(tmp_path / f"{name}.npy", rng.normal(size=shape).astype(np.float32))
    source, target = (Centering(mean=np.zeros(d, np.float32), scale=np.float32(1)) for d in (6, 4))
    save_map(tmp_path / "map.safetensors", LinearMap(W=np.eye(6, 4, dtype=np.float32), source=source, target=target))
    (tmp_path / "x.txt").write_text("text\n" * 39)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.safetensors", "x.npy", "y.npy", "-o", "new.html"], "found no file of that name"),
        (
            ["map.safetensors", "y.npy", "y.npy", "-o", "new.html"],
            "y.npy must have 6 columns for map",
        ),
        (["map.safetensors", "x.npy", "few.npy", "-o", "new.html"], "few.npy must have at least 30 rows, found 3"),
        (["map.safetensors", "x.npy", "y.npy", "-o", "new.pdf"], "must end in one of .html, .htm"),
        (["map.safetensors", "x.npy", "y.npy", "-o", "no/new.html"], "there is no folder no"),
        (
            ["map.safetensors", "x.npy", "y.npy", "-o", "new.html", "--texts-x", "x.txt"],
            "x.txt must hold a text for each of the 40 rows, found 39 texts",
        ),
        (
            ["map.safetensors", "x.npy", "y.npy", "-o", "new.html", "--pairs", "px.npy", "py.npy"],
            "py.npy must have a row for each of the 5 of px.npy, found 4",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_page(arguments, message, place, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(path.name for path in place.iterdir())
    done = CliRunner().invoke(cli, ["report", *arguments])
    assert message in str(done.exception)
    assert type(done.exception).__name__ == "InputError"
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "map.safetensors", "x.npy", "y.npy", "-o", "new.html"],
        ["align", "x.npy", "y.npy", "-o", "new.safetensors", "--report", "new.html"],
        ["demo", "--report", "new.html"],
    ],
)
def test_without_bokeh_the_extra_is_named_before_any_work(arguments, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setitem(sys.modules, "bokeh", None)
    done = CliRunner().invoke(cli, arguments)
    assert str(done.exception) == 'a report needs bokeh: pip install "mv2v_jax[report]"'


def test_texts_of_a_column(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = pa.array(np.eye(3, 2, dtype=np.float32).tolist())
    table = pa.table({"id": [7, 8, 9], "body": ["one", None, "three"], "vector": rows, "empty": pa.nulls(3)})
    parquet.write_table(table, tmp_path / "x.parquet")
    x = np.eye(3, 2, dtype=np.float32)
    np.save(tmp_path / "y.npy", x)
    (tmp_path / "y.txt").write_text("a\nb\nc\n")
    source, plain = str(tmp_path / "x.parquet"), str(tmp_path / "y.npy")

    def read(y_texts, sources, named):
        return read_texts((None, y_texts), sources, (x, x), None, named)

    texts = read(str(tmp_path / "y.txt"), (source, plain), "body")
    assert (texts.x, texts.y) == (["one", "", "three"], ["a", "b", "c"])
    assert read(None, (f"{source}?text=id", plain), None) == Texts(["7", "8", "9"], None)
    with pytest.raises(InputError, match="must be a table or a store to have a column of texts, found an array"):
        read(None, (source, plain), "body")
    with pytest.raises(InputError, match=r"x\.parquet must have texts in empty, found none; name another"):
        read(None, (f"{source}?text=empty", plain), None)


@pytest.mark.slow
def test_pages_of_a_right_and_of_a_wrong_map(tmp_path, monkeypatch):
    """The bundled rows, and rows of Y whose columns are shuffled one by one: every variance is kept, and no text."""
    # At this size programs take longer to run than to compile, above all the second search for the wrong rows.
    monkeypatch.setitem(CACHE, "JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    run("demo", "--export", tmp_path, "--report", tmp_path / "demo.html", cwd=tmp_path)
    assert (tmp_path / "demo.html").stat().st_size < 8e6
    y = np.load(tmp_path / "y.npy")
    np.save(tmp_path / "wrong.npy", np.random.default_rng(0).permuted(y, axis=0))
    found = {}
    for name, code in (("y", 0), ("wrong", 3)):
        texts = ("--texts-x", "x.txt", "--texts-y", "y.txt") if name == "y" else ()
        fit = ("align", "x.npy", f"{name}.npy", "-o", f"{name}.safetensors", "--preset", "fast", "--report", "fit.html")
        assert run(*fit, *texts, cwd=tmp_path, timeout=900).returncode == code
        report = ("report", f"{name}.safetensors", "x.npy", f"{name}.npy", *texts, "-o", f"{name}.html", "--json")
        done = run(*report, "--pairs", "x_eval.npy", "y_eval.npy", cwd=tmp_path, timeout=900)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
        assert (tmp_path / f"{name}.html").stat().st_size < 8e6
    assert (found["y"]["light"], found["wrong"]["light"]) == ("green", "red")
    assert found["y"]["row_agreement"] > 0.5 > 0.1 > found["wrong"]["row_agreement"]
    assert found["y"]["map_agreement"] > 0.5 > 0.2 > found["wrong"]["map_agreement"]
    assert found["y"]["top1"] > 0.4 > 0.05 > found["wrong"]["top1"]
