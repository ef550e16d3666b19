"""A study as a user runs it: killed at several moments, resumed, refused; every file and its contents."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import assert_trees_close, planted_clouds, setting_flags, small_config, with_settings

from mv2v_jax import align_restarts, make_mesh
from mv2v_jax.data.map_file import load_map
from mv2v_jax.errors import InputError
from mv2v_jax.runs.study import Plan, identify_study, run_study, write_study
from mv2v_jax.runs.study_files import open_study

CONFIG = small_config(published_match_steps=0, published_cluster_steps=0, search_dims=4)
PLAN = Plan(seed=3, restarts=5, settled=8, chunk=2, sizes=(53,), size_restarts=2, bootstraps=1)
FLAGS = setting_flags(CONFIG)
OUTPUTS = ["agreement.png", "convergence.png", "map.safetensors", "restarts.csv", "rows.csv", "scores.png"]
OUTPUTS += ["sizes.png", "stability.json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # Both spaces, and the part of them in the curve over sizes, are padded to 56 rows and share what is compiled.
    folder = tmp_path_factory.mktemp("study")
    planted = planted_clouds(6, 5, num_x=56, num_y=55, groups=6)
    np.save(folder / "x.npy", planted.x.astype(np.float32))
    np.save(folder / "y.npy", planted.y.astype(np.float32))
    return folder


def rows(folder):
    return np.load(folder / "x.npy"), np.load(folder / "y.npy")


def command(output, *more):
    plan = ["--restarts=5", "--chunk=2", "--sizes=53", "--size-restarts=2", "--bootstraps=1", "--seed=3"]
    arguments = [sys.executable, "-m", "mv2v_jax", "stability", "x.npy", "y.npy", "-o", output, *plan, *FLAGS]
    return [*arguments, *more]


def environment(folder):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    # Compiling takes most of the time.
    return {**os.environ, **cache, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def run(folder, output, *more):
    return subprocess.run(
        command(output, *more), cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def whole(folder):
    done = run(folder, "whole", "--json")
    assert done.returncode == 0, done.stderr
    # One warning, as by `mv2v align`, and no bar.
    assert done.stderr.startswith("Warning: uncertain (confidence 0.50)")
    assert done.stderr.count("\n") == 1
    return folder / "whole", json.loads(done.stdout)


def test_every_file_is_there_and_says_the_same(whole):
    output, facts = whole
    assert sorted(path.name for path in output.iterdir()) == sorted([*OUTPUTS, "chunks", "study.json"])
    assert json.loads((output / "stability.json").read_text()) == facts
    listed = list(csv.DictReader((output / "restarts.csv").open()))
    assert [row["restart"] for row in listed] == ["0", "1", "2", "3", "4"]
    assert sum(basin["size"] for basin in facts["basins"]) == facts["restarts"] == 5
    assert [size["rows"] for size in facts["sizes"]] == [53, 55]
    stable = list(csv.DictReader((output / "rows.csv").open()))
    assert [int(row["row"]) for row in stable] == list(range(56))
    assert all(0 <= int(row["partner"]) < 55 and 0.2 <= float(row["stability"]) <= 1 for row in stable)
    linear_map, metadata = load_map(output / "map.safetensors")
    assert linear_map.W.shape == (6, 5)
    assert metadata["verdict"] == facts["verdict"]
    # What `mv2v info` shows and `mv2v report` reads.
    shape = {"n": 56, "m": 55, "d_x": 6, "d_y": 5}
    assert {name: json.loads(metadata[name]) for name in shape} == shape
    assert {"config", "plan", "digest_x", "digest_y", "evidence", "held_out_rows"} <= metadata.keys()
    for picture in output.glob("*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_restarts_are_those_of_align_restarts(whole, folder):
    """Five restarts in chunks of two make the same searches and the same choice."""
    output, facts = whole
    expected = align_restarts(jax.random.key(3), *rows(folder), 5, CONFIG, num_settled=5)
    scores = [float(row["score"]) for row in csv.DictReader((output / "restarts.csv").open())]
    np.testing.assert_allclose(scores, expected.evidence.score, atol=1e-4)
    assert facts["chosen"] == int(expected.chosen)
    linear_map, _ = load_map(output / "map.safetensors")
    np.testing.assert_allclose(linear_map.W, expected.best.map.W, atol=1e-3)


@pytest.mark.slow
def test_searches_over_a_mesh_are_reported_as_they_end(whole, folder, tmp_path):
    """Four restarts per file, two at a time: the same searches as on one device."""
    seen, mesh = [], make_mesh(2, devices=jax.devices()[:2])
    plan = PLAN._replace(chunk=4, sizes=(), bootstraps=0)
    study = run_study(*rows(folder), CONFIG, plan, tmp_path, lambda *step: seen.append(step), mesh=mesh)
    done = [done for part, done, total in seen if (part, total) == ("restarts", 5)]
    assert list(dict.fromkeys(done)) == [0, 2, 4, 5]
    scores = [float(row["score"]) for row in csv.DictReader((whole[0] / "restarts.csv").open())]
    np.testing.assert_allclose([row["score"] for row in study.restarts], scores, atol=1e-4)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("num_chunks", [pytest.param(0, marks=SLOW), 1, pytest.param(4, marks=SLOW)])
def test_killed_and_resumed_it_ends_with_the_same_bits(whole, folder, num_chunks):
    name = f"killed-{num_chunks}"
    process = subprocess.Popen(command(name), cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL)
    chunks = folder / name / "chunks"
    deadline = time.monotonic() + 200
    while not (chunks.is_dir() and len(list(chunks.glob("*.safetensors"))) >= num_chunks):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in chunks.glob("*.safetensors")}
    assert not (folder / name / "stability.json").exists()
    # An interrupted write leaves such a file.
    (chunks / ".restarts-000004.safetensors.abc.part").write_bytes(b"half")
    done = run(folder, name, "--resume")
    assert done.returncode == 0, done.stderr
    assert {name: (chunks / name).stat().st_mtime_ns for name in finished} == finished
    assert not list(chunks.glob(".*"))
    for output in set(OUTPUTS) - {"map.safetensors"}:
        assert (folder / name / output).read_bytes() == (whole[0] / output).read_bytes(), output
    # The order of metadata in the file is arbitrary.
    (ours, facts), (expected, expected_facts) = (
        load_map(path / "map.safetensors") for path in (folder / name, whole[0])
    )
    assert facts == expected_facts
    assert_trees_close(ours, expected, rtol=0, atol=0)


def refuse(folder, output, *, resume=True, config=CONFIG, plan=PLAN):
    with pytest.raises(InputError) as found:
        run_study(*rows(folder), config, plan, output, lambda *_: None, resume=resume)
    return str(found.value)


def test_another_study_in_the_same_folder_is_refused(whole, folder):
    before = sorted((path, path.stat().st_mtime_ns) for path in whole[0].rglob("*"))
    assert "holds a study already; continue it with --resume" in refuse(folder, whole[0], resume=False)
    other = with_settings(CONFIG, annealing_power=1.5)
    assert "holds a study with another config" in refuse(folder, whole[0], config=other)
    assert "holds a study with another plan" in refuse(folder, whole[0], plan=PLAN._replace(restarts=6))
    done = run(folder, "whole", "--resume", "--seed=4")
    assert done.returncode == 2
    assert "holds a study with another plan" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((path, path.stat().st_mtime_ns) for path in whole[0].rglob("*")) == before


def test_other_rows_are_refused(whole, folder):
    x, y = rows(folder)
    x[0, 0] += 1
    with pytest.raises(InputError, match="another digest_x"):
        run_study(x, y, CONFIG, PLAN, whole[0], lambda *_: None, resume=True)


def test_other_known_pairs_are_refused(whole, folder):
    x, y = rows(folder)
    with pytest.raises(InputError, match="another digest_pairs"):
        run_study(x, y, CONFIG, PLAN, whole[0], lambda *_: None, resume=True, pairs=(x[:5], y[:5]))


def test_a_folder_of_other_files_is_refused(folder):
    assert "must be empty or hold a study, found other files" in refuse(folder, folder)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_chunk_is_named(whole, folder, damage):
    copy = folder / f"damaged-{damage}"
    shutil.copytree(whole[0], copy)
    chunk = copy / "chunks" / "restarts-000002.safetensors"
    missing = copy / "chunks" / "restarts-000000.safetensors"
    missing.unlink()
    if damage == "cut":
        chunk.write_bytes(chunk.read_bytes()[:-100])
    else:
        safetensors.numpy.save_file({str(place): np.zeros(3, np.float32) for place in range(40)}, chunk)
    message = refuse(folder, copy)
    assert "restarts-000002.safetensors" in message
    assert "remove it and resume" in message
    assert not missing.exists()  # The error came before any search.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"restarts": 1}, "at least 2 restarts"), ({"sizes": (55,)}, "below the 55 rows of the smaller space")],
)
def test_plans_that_make_no_sense_are_refused(folder, tmp_path, changes, expected):
    with pytest.raises(InputError, match=expected):
        run_study(*rows(folder), CONFIG, PLAN._replace(**changes), tmp_path / "none", lambda *_: None)
    assert not (tmp_path / "none").exists()


def test_killed_before_the_folder_is_a_study_it_goes_on(folder, tmp_path):
    made_by = identify_study(*rows(folder), CONFIG, PLAN)
    (tmp_path / ".study.json.abc.part").write_text("{")
    open_study(tmp_path, made_by, resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks", "study.json"]
    (tmp_path / "chunks").rmdir()
    open_study(tmp_path, made_by, resume=True)
    assert (tmp_path / "chunks").is_dir()


@pytest.mark.slow
def test_without_a_curve_or_resamples(folder, tmp_path):
    seen = []
    plan = PLAN._replace(sizes=(), bootstraps=0, restarts=2)
    study = run_study(*rows(folder), CONFIG, plan, tmp_path, lambda *step: seen.append(step))
    assert seen == [("restarts", 0, 2), ("compiling restarts", 0, 1), ("restarts", 1, 2), ("restarts", 2, 2)]
    assert study.facts["bootstrap_agreement"] is None
    write_study(study, tmp_path)
    assert json.loads((tmp_path / "stability.json").read_text()) == study.facts


def test_a_read_only_folder_is_named(folder, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be"):
        run_study(*rows(folder), CONFIG, PLAN, tmp_path / "none", lambda *_: None)


def test_a_study_that_another_process_runs_is_refused(tmp_path):
    """And nothing of it is removed; the lock goes with the process and leaves no file."""
    held = open_study(tmp_path / "study", {"a": 1}, resume=False)
    unfinished = tmp_path / "study" / "chunks" / ".restarts-000000.safetensors.abcdefgh.part"
    unfinished.write_text("")
    with pytest.raises(InputError, match="is being written by another process; wait for it or use another folder"):
        open_study(tmp_path / "study", {"a": 1}, resume=True)
    assert unfinished.exists()
    held.close()
    open_study(tmp_path / "study", {"a": 1}, resume=True).close()
    assert sorted(path.name for path in (tmp_path / "study").rglob("*")) == ["chunks", "study.json"]
