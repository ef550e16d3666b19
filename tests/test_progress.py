"""How much of a fit is done: the stages that are expected come, and users see and hear of them."""

import io
import logging
import sys
import warnings

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import small_config

import mv2v_jax
from mv2v_jax.alignment.stage_by_stage import expected_stages
from mv2v_jax.cli import cli
from mv2v_jax.data.map_file import save_map
from mv2v_jax.linear_map import Centering, LinearMap
from mv2v_jax.progress import COMPILING, Overall, show_progress

CONFIG = small_config(published_match_steps=0, published_cluster_steps=0, settling_whole_steps=0)


def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(90, 8)).astype(np.float32), rng.normal(size=(95, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    """A fit of noise that reports its progress to a function: what it reported, warned of, logged and found."""
    seen, records = [], []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("mv2v_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fits = mv2v_jax.align_restarts(
                jax.random.key(0), *rows(), 2, CONFIG, progress=lambda *step: seen.append(step)
            )
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    return seen, [warning for warning in caught if warning.category is mv2v_jax.AlignmentWarning], records, fits


def test_expected_stages_are_those_that_come(fitted):
    seen, *_ = fitted
    expected = expected_stages(CONFIG, 90, 2, 1)
    come = dict.fromkeys(stage for stage, _, _ in seen if not stage.startswith(COMPILING))
    # Choosing and extending take no time.
    assert [stage for stage in come if stage in expected] == list(expected)
    assert set(come) - set(expected) == {"choose", "extend"}


def test_the_share_grows_to_the_whole(fitted):
    seen, *_ = fitted
    overall = Overall(expected_stages(CONFIG, 90, 2, 1))
    shares = [overall.update(*step) for step in seen]
    done = [share.done for share in shares]
    assert done == sorted(done)
    assert done[0] == 0
    assert shares[-1].done == pytest.approx(shares[-1].total)


def test_a_resumed_job_counts_what_was_done_before():
    overall = Overall({"a": 4.0, "b": 4.0})
    assert overall.update("b", 0, 2) == (4.0, 8.0)
    assert overall.update(f"{COMPILING}b", 0, 1) == (4.0, 8.0)
    assert overall.update("b", 1, 2) == (6.0, 8.0)
    # A stage that nobody expected makes the whole longer.
    assert overall.update("c", 1, 1) == (16.0, 18.0)


def test_a_map_that_is_not_aligned_warns_where_the_user_called(fitted):
    _, caught, _, _ = fitted
    assert len(caught) == 1
    assert str(caught[0].message).startswith("the map is uncertain (confidence 0.50): too few rows; check it on true")
    assert caught[0].filename == __file__


def test_messages_go_through_logging(fitted):
    *_, records, _ = fitted
    messages = [record.getMessage() for record in records]
    assert all(record.name.startswith("mv2v_jax.") for record in records)
    assert sum(message.startswith("compiled restart 1 anchors in ") for message in messages) == 1
    assert any(message.startswith("ran restart 2 anchors in ") for message in messages)


@pytest.mark.usefixtures("without_computing")
def test_over_a_mesh_searches_are_reported_as_they_end():
    seen, mesh = [], mv2v_jax.make_mesh(2, devices=jax.devices()[:2])
    with pytest.warns(mv2v_jax.AlignmentWarning):
        mv2v_jax.align_restarts(
            jax.random.key(0), *rows(), 3, CONFIG, mesh=mesh, progress=lambda *step: seen.append(step)
        )
    assert [step for step in seen if step[0] == "restart"] == [("restart", done, 3) for done in (0, 2, 3)]
    stages = expected_stages(CONFIG, 90, 3, 1, mesh)
    assert list(stages) == ["preprocess", "restart", "settling", "polish", "finish"]
    overall = Overall(stages)
    shares = [overall.update(*step) for step in seen]
    assert [share.done for share in shares] == sorted(share.done for share in shares)
    assert shares[-1].done == pytest.approx(shares[-1].total)


@pytest.mark.slow
@pytest.mark.parametrize("row_devices", [1, 2])
def test_progress_over_a_mesh_changes_nothing(row_devices):
    mesh = mv2v_jax.make_mesh(2, devices=jax.devices()[:4], row_devices=row_devices)
    seen = []

    def fit(progress):
        choices = {"num_settled": 2, "keep": "all", "mesh": mesh, "progress": progress}
        with pytest.warns(mv2v_jax.AlignmentWarning):
            return mv2v_jax.align_restarts(jax.random.key(0), *rows(), 6, CONFIG, **choices)

    found, expected = fit(lambda *step: seen.append(step)), fit(False)
    # The last searches run beside others, in the same compiled function.
    assert [step[0] for step in seen].count(f"{COMPILING}restart") == 1
    assert int(found.chosen) == int(expected.chosen)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def write_to_terminal(monkeypatch):
    """Let standard error be a terminal, and return it. A fixture could not: pytest captures anew in every test."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return stream


def test_the_bar_names_what_compiles_and_folds_away(monkeypatch):
    terminal = write_to_terminal(monkeypatch)
    with show_progress({"first": 1.0, "second": 3.0}) as on_step:
        on_step(f"{COMPILING}first", 0, 1)
        shown = terminal.getvalue()
        on_step("first", 1, 1)
        on_step("second", 1, 3)
    # The last thing written erases the line of the bar.
    assert terminal.getvalue().rstrip().endswith("\x1b[2K")
    assert "left:" in terminal.getvalue()
    assert shown is not None


@pytest.mark.parametrize(("stage", "counts_rows"), [("rows mapped", True), ("rows-1000", False), ("restart", False)])
def test_only_rows_are_counted_by_the_second(monkeypatch, stage, counts_rows):
    terminal = write_to_terminal(monkeypatch)
    with show_progress() as on_step:
        for done in range(5):
            on_step(stage, done, 4)
    assert ("rows/s" in terminal.getvalue()) == counts_rows


def test_without_a_terminal_there_is_no_bar(capsys):
    with show_progress({"first": 1.0}) as on_step:
        on_step("first", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_the_log_file_holds_warnings_and_grows(tmp_path):
    centering = Centering(mean=np.zeros(2, np.float32), scale=np.float32(1))
    path, log = tmp_path / "map.safetensors", tmp_path / "log.txt"
    save_map(
        path, LinearMap(W=np.eye(2, dtype=np.float32), source=centering, target=centering), {"verdict": "uncertain"}
    )
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    logger = logging.getLogger("mv2v_jax")
    before, level = list(logger.handlers), logger.level
    try:
        for _ in range(2):
            done = CliRunner().invoke(
                cli,
                ["--log-file", str(log), "apply", str(path), str(tmp_path / "x.npy"), "-o", str(tmp_path / "m.npy")],
            )
            assert done.exit_code == 0, done.output
            for handler in set(logger.handlers) - set(before):
                handler.close()
                logger.removeHandler(handler)
    finally:
        logger.setLevel(level)
    lines = log.read_text().splitlines()
    assert sum("WARNING mv2v_jax.cli.output: Warning: the fit of" in line for line in lines) == 2


def test_a_log_file_that_cannot_be_is_named(tmp_path):
    done = CliRunner().invoke(cli, ["--log-file", str(tmp_path / "no" / "log.txt"), "info", "map.safetensors"])
    assert "--log-file: " in str(done.exception)
    assert "No such file or directory; name another file" in str(done.exception)
