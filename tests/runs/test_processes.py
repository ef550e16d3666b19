"""Several processes on this machine's loopback, through the command line: what they agree on and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
from conftest import flags_of_users, planted_clouds, small_config

CONFIG = small_config(match_steps=0, cluster_steps=0, search_dims=4)
FLAGS = [
    f"--{name.replace('_', '-')}={getattr(CONFIG, name)}" for name in CONFIG.__dataclass_fields__ if name != "project"
]
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
    """The other emitters would round by how many restarts a device has at once, so not those."""
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**os.environ, **quick, "XLA_FLAGS": flags_of_users(), **more}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Run:
    """The same command in several processes; ``files`` may differ."""

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
        """Exit codes, what was printed, and the errors, without what the collectives of CPUs print themselves."""
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


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "restarts"), [(2, 1), (4, 2)], ids=["row axis", "both axes"])
def test_processes_fit_as_one_with_as_many_devices(folder, processes, restarts):
    arguments = [f"--restarts={restarts}", "--settled=1", "--accept", "--json"]
    one = alone(folder, "align", "-o", "one.safetensors", "--all-devices", *arguments, devices=processes)
    run = Run(folder, "align", [("x.npy", "y.npy")] * processes, "-o", "two.safetensors", *arguments)
    codes, out, errors = run.end()
    assert codes == [0] * processes, errors
    two = printed(out[0])
    assert "{" not in out[1]  # The first speaks for all.
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
    assert "process 1 could not go on" in errors[0]
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
            # Where the service in process 0 is gone, JAX may be quicker to end a process, with words of its own.
            ours, theirs = (4, "another process of this run is gone"), (-signal.SIGABRT, "another task died")
            assert any(code == ending and words in error for ending, words in (ours, theirs)[: 2 if victim == 0 else 1])
    assert not (output / "stability.json").exists()
    codes, _, errors = Run(folder, "stability", [("x.npy", "y.npy")] * 2, "-o", str(output), *plan, "--resume").end()
    assert codes == [0, 0], errors
    assert (output / "stability.json").read_bytes() == (folder / whole / "stability.json").read_bytes()
    assert (output / "restarts.csv").read_bytes() == (folder / whole / "restarts.csv").read_bytes()
