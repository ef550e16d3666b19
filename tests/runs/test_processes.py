"""Several processes on one machine, started by the command line: how they agree and how they end."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import safetensors.numpy
from helpers import flags_of_users, planted_clouds, setting_flags, small_config

from mv2v_jax.data.checks import describe_rows
from mv2v_jax.errors import InputError
from mv2v_jax.runs.processes import describe_shares

CONFIG = small_config(published_match_steps=0, published_cluster_steps=0, search_dims=4)
FLAGS = setting_flags(CONFIG)
STUDY = ["--chunk=4", "--sizes=40", "--size-restarts=2", "--bootstraps=1", "--no-plots", "--json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    planted = planted_clouds(6, 5, num_x=64, num_y=64, groups=6)
    np.save(folder / "x.npy", planted.x.astype(np.float32))
    np.save(folder / "y.npy", planted.y.astype(np.float32))
    np.save(folder / "other.npy", planted.y[::-1].astype(np.float32))
    broken = planted.x.astype(np.float32)
    broken[50, 2] = np.nan
    np.save(folder / "broken.npy", broken)
    return folder


def environment(**more):
    """With the old emitters, rounding depends on the number of restarts per device, so they are not used."""
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**os.environ, **quick, "XLA_FLAGS": flags_of_users(), **more}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Run:
    """The same command in several processes; ``files`` has the input files of each."""

    def __init__(self, folder, command, files, *arguments):
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        shared = ["--distributed", f"--coordinator=127.0.0.1:{free_port()}", f"--num-processes={len(files)}"]
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "mv2v_jax", command, *pair, *arguments, *FLAGS, *shared, f"--process={number}"],
                cwd=folder,
                env=environment(**cache),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, pair in enumerate(files)
        ]

    def end(self, seconds=300):
        """Exit codes, standard outputs and standard errors of all processes."""
        ended = [process.communicate(timeout=seconds) for process in self.processes]
        return [process.returncode for process in self.processes], *zip(*ended, strict=True)


def printed(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def alone(folder, command, *arguments, devices=1):
    run = [sys.executable, "-m", "mv2v_jax", command, "x.npy", "y.npy", *arguments, *FLAGS]
    done = subprocess.run(
        run, cwd=folder, env=environment(JAX_NUM_CPU_DEVICES=str(devices)), capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 3), done.stderr
    return printed(done.stdout)


@pytest.fixture
def describe_in_threads(monkeypatch):
    """`describe_shares` in four threads that stand for processes: the result or the error of each."""
    num_processes, number = 4, threading.local()
    barrier, sent = threading.Barrier(num_processes), {}

    def gather(values):
        sent[number.value] = values
        barrier.wait(60)
        found = np.stack([sent[other] for other in range(num_processes)])
        barrier.wait(60)
        return found

    monkeypatch.setattr("jax.process_count", lambda: num_processes)
    monkeypatch.setattr("jax.process_index", lambda: number.value)
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)

    def run(rows):
        def one(process):
            number.value = process
            try:
                return describe_shares(rows, "x")
            except InputError as error:
                return str(error)

        with concurrent.futures.ThreadPoolExecutor(num_processes) as threads:
            return list(threads.map(one, range(num_processes)))

    return run


# Shares are whole blocks of 1,024 rows, so that some processes have no rows.
@pytest.mark.parametrize("num_rows", [1_000, 3_000, 9_000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_shares_are_described_as_the_whole(describe_in_threads, rng, num_rows, dtype):
    rows = (3 + rng.normal(size=(num_rows, 3))).astype(dtype)
    rows[[5, num_rows - 1]] = 0
    rows[7] = rows[8]
    rows[900] *= 1_000
    expected = describe_rows(rows, "x")
    for found in describe_in_threads(rows):
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-14)
        assert found.mean_norm == pytest.approx(expected.mean_norm, rel=1e-14)
        assert (found.num_zero, found.digest) == (expected.num_zero, expected.digest)
        # Duplicates of rows in other shares are not counted.
        assert 1 <= found.num_duplicates <= expected.num_duplicates


def test_equal_rows_of_all_shares_are_refused(describe_in_threads):
    rows = np.full((4_000, 3), 0.1, np.float32)
    rows[:100] = 0
    message = "x must hold different rows, found 4000 equal ones (zero rows aside)"
    assert describe_in_threads(rows) == [message] * 4
    rows[3_500:] = 0.2
    assert all(found.num_zero == 100 for found in describe_in_threads(rows))
    # Each share holds equal rows, but the shares differ.
    rows = np.repeat(np.float32([[1.0], [2.0], [1.0], [1.0]]), 1_024, axis=0)
    assert all(found.num_zero == 0 for found in describe_in_threads(rows))


def test_a_bad_row_of_one_share_ends_all(describe_in_threads):
    rows = np.ones((4_096, 3), np.float32)
    rows[2_500, 1] = np.nan
    found = describe_in_threads(rows)
    assert found.pop(2) == "x must be finite, found NaN or infinity in 1 rows, first in row 2500"
    assert found == ["process 2 failed; its own message gives the reason"] * 3


def test_rows_too_short_on_average_end_all(describe_in_threads, rng):
    found = describe_in_threads((1e-20 * rng.normal(size=(4_096, 3))).astype(np.float32))
    assert len(set(found)) == 1
    assert "found a mean length of" in found[0]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "restarts"), [(2, 1), (4, 2)], ids=["row axis", "both axes"])
def test_processes_fit_as_one_with_as_many_devices(folder, processes, restarts):
    arguments = [f"--restarts={restarts}", "--settled=1", "--accept", "--json"]
    one = alone(folder, "align", "-o", "one.safetensors", "--all-devices", *arguments, devices=processes)
    run = Run(folder, "align", [("x.npy", "y.npy")] * processes, "-o", "two.safetensors", *arguments)
    codes, out, errors = run.end()
    assert codes == [0] * processes, errors
    two = printed(out[0])
    assert "{" not in out[1]  # Only the first process prints.
    same = ["n", "m", "seed", "zero_rows_x", "verdict", "duplicate_rows_x"]
    assert [one[name] for name in same] == [two[name] for name in same]
    maps = [safetensors.numpy.load_file(folder / f"{name}.safetensors") for name in ("one", "two")]
    for name in maps[0]:
        np.testing.assert_allclose(maps[1][name], maps[0][name], atol=1e-5)
    assert two["mean_norm_x"] == pytest.approx(one["mean_norm_x"])


def test_what_one_process_cannot_use_ends_all_with_its_reason(folder):
    files = [("x.npy", "y.npy"), ("x.npy", "other.npy")]
    codes, _, errors = Run(folder, "align", files, "-o", "none.safetensors").end()
    assert codes == [2, 2]
    assert all("all processes must be given the same" in error for error in errors)
    files = [("broken.npy", "y.npy")] * 2
    codes, _, errors = Run(folder, "align", files, "-o", "none.safetensors").end()
    assert codes == [2, 2]
    assert "first in row 50" in errors[1]
    assert "process 1 failed; its own message gives the reason" in errors[0]
    assert not any("Traceback" in error for error in errors)
    assert not (folder / "none.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 3])
def test_one_of_four_is_killed_and_the_study_goes_on_with_two(folder, victim):
    plan = ["--restarts=40", *STUDY]
    whole = f"whole-{victim}"
    alone(folder, "stability", "-o", whole, *plan)
    output = folder / f"study-{victim}"
    run = Run(folder, "stability", [("x.npy", "y.npy")] * 4, "-o", str(output), *plan)
    while len(list(output.glob("chunks/restarts*"))) < 2:
        assert run.processes[victim].poll() is None
        time.sleep(0.05)
    run.processes[victim].send_signal(signal.SIGKILL)
    codes, _, errors = run.end(seconds=120)
    assert codes[victim] == -signal.SIGKILL
    for number, (code, error) in enumerate(zip(codes, errors, strict=True)):
        if number != victim:
            # If the service in process 0 is gone, JAX may end a process first, with its own message.
            ours, theirs = (4, "another process of this run is gone"), (-signal.SIGABRT, "another task died")
            assert any(code == ending and words in error for ending, words in (ours, theirs)[: 2 if victim == 0 else 1])
    assert not (output / "stability.json").exists()
    codes, _, errors = Run(folder, "stability", [("x.npy", "y.npy")] * 2, "-o", str(output), *plan, "--resume").end()
    assert codes == [0, 0], errors
    assert (output / "stability.json").read_bytes() == (folder / whole / "stability.json").read_bytes()
    assert (output / "restarts.csv").read_bytes() == (folder / whole / "restarts.csv").read_bytes()
