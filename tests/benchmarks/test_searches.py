"""The benchmarks of searches and of pictures of maps run and record, on sizes that take seconds."""

import json

import numpy as np
import pytest
from helpers import make_map, semi_orthogonal, unit
from sklearn.metrics import pairwise_distances

from benchmarks import pictures, search
from benchmarks.common import Split

ROWS = ["--rows", "640", "--eval", "40"]


def test_pictures_of_own_rows():
    rng = np.random.default_rng(0)
    x, W = rng.normal(size=(300, 8)).astype(np.float32), semi_orthogonal(rng, 8, 8)
    linear_map = make_map(W, x.mean(axis=0), x.mean(axis=0))
    y = (unit(x - x.mean(axis=0)) @ W + x.mean(axis=0)).astype(np.float32)[::-1]
    found = pictures.look_at_own_rows(linear_map, Split(x=x, y=y, y_true=y, x_eval=x, y_eval=y))
    # Every mapped row is a row of the target.
    assert found["nearest_cosine"] == pytest.approx(1, abs=1e-4)
    assert found["clouds"] == pytest.approx(0.5, abs=0.05)
    near = pairwise_distances(unit(y - x.mean(axis=0))).argsort(axis=1)[:, :10]
    assert found["hubs"] == pytest.approx(1 - len(np.unique(near)) / 300, abs=0.01)
    far = Split(x=x, y=y + np.float32(3) * y[:1], y_true=y, x_eval=x, y_eval=y)
    assert pictures.look_at_own_rows(linear_map, far)["clouds"] < 0.3


@pytest.mark.slow
def test_pictures_of_three_maps(tiny, tmp_path, capsys):
    file = tmp_path / "pictures.json"
    found = pictures.main([*ROWS, "--few", "200", "--json", str(file)])
    assert json.loads(file.read_text())["maps"] == found
    assert [case["rows"] for case in found.values()] == [300, 200, 300]
    assert all(0 <= case["row_agreement"] <= 1 for case in found.values())
    assert "agreement of maps" in capsys.readouterr().out


@pytest.mark.slow
def test_every_way_to_search_is_in_its_table(tiny, tmp_path, capsys):
    file = tmp_path / "search.json"
    found = search.main([*ROWS, "--queries", "30", "--json", str(file)])
    assert {name: json.loads(file.read_text())[name] for name in found} == found
    assert [len(found[name]) for name in ("move", "metrics", "mixed", "partners")] == [7, 3, 6, 2]
    # Rows that are embedded again are found for certain.
    scores = {name: float(score.split()[0]) for name, score in found["move"]}
    assert scores["index moved, best 200 embedded again"] >= scores["index moved"]
    out = capsys.readouterr().out
    assert "an index of wordllama suits cosine; its rows have lengths from" in out
