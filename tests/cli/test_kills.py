"""Commands that are killed at random moments: nothing is half-written, and a resumed run ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli.commands import CACHE, PLAN, SMALL, write_index, write_inputs

# Per command; `MV2V_KILLS=50` makes 200.
KILLS = int(os.environ.get("MV2V_KILLS", "8"))
ROWS = np.random.default_rng(0).exponential(size=(60_000, 48)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    CACHE["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    write_inputs(folder, ROWS)
    return folder


# Per command: its arguments, what it writes, and what is there if it should go on by --resume; the folder always is.
COMMANDS = {
    "apply": (("apply", "map.safetensors", "x.npy", "-o", "out.npy"), "out.npy", "."),
    "align": (("align", "a.npy", "b.npy", "-o", "out.safetensors", "--accept", *SMALL), "out.safetensors", None),
    "stability": (("stability", "a.npy", "b.npy", "-o", "study", "--no-plots", *PLAN, *SMALL), "study", "study"),
    "move": (
        ("move", "faiss:docs.faiss", "map.safetensors", "faiss:new.faiss", "--accept", "--state", "state.json"),
        "new.faiss",
        "state.json",
    ),
}


def start(program, folder):
    """A process that heeds interrupts, even where those of this one are ignored, as in the background of a shell."""
    return subprocess.Popen(
        program,
        cwd=folder,
        env={**os.environ, **CACHE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def clear(place):
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if place.exists():
        place.rmdir() if place.is_dir() else place.unlink()


def prepare(name, folder):
    """What a move reads; its test is skipped where there can be none."""
    if name == "move":
        pytest.importorskip("faiss", reason="the package faiss-cpu is not installed")
        write_index(folder, ROWS)


def contents(place):
    """The bytes of a file or of all files in a folder; nothing where nothing is there."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place.parent): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(folder, name):
    prepare(name, folder)
    arguments, output, unfinished = COMMANDS[name]
    program = [sys.executable, "-m", "mv2v_jax", *map(str, arguments)]
    environment = {**os.environ, **CACHE}

    def resume():
        return ["--resume"] if unfinished and (folder / unfinished).exists() else []

    def finish():
        started = time.monotonic()
        done = subprocess.run([*program, *resume()], cwd=folder, env=environment, capture_output=True)
        assert done.returncode in (0, 3), done.stderr
        return contents(folder / output), time.monotonic() - started

    clear(folder / output)
    before = sorted(folder.iterdir())
    finish()
    clear(folder / output)
    # Once more, because the first run compiles.
    expected, seconds = finish()
    clear(folder / output)
    assert sorted(folder.iterdir()) == before
    draw = random.Random(name)
    for _ in range(KILLS):
        sent = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        process = start([*program, *resume()], folder)
        time.sleep(draw.uniform(0, 1.1 * seconds))
        process.send_signal(sent)
        _, error = process.communicate()
        assert process.returncode in (0, 2, 3, 130, -sent), error
        assert b"Traceback" not in error
        assert len(error.splitlines()) <= 1, error
        ended = process.returncode in (0, 3) and (folder / output).exists()
        # A file is there as a whole, even where the process was killed after its last step.
        if ended or (folder / output).is_file():
            assert contents(folder / output) == expected
            # A move still compares both.
            if name != "move" or not resume():
                clear(folder / output)
    found, _ = finish()
    assert found == expected
    clear(folder / output)
    left = [path for path in folder.iterdir() if path not in before]
    # What SIGKILL leaves of a file that is written in one piece is removed a day later.
    assert all(path.name.endswith(".part") and name in ("align", "move") for path in left), left


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_with_one_output(folder, name, tmp_path, monkeypatch):
    """One of them writes it, the other one is refused or comes later; the result is whole. They share a new cache."""
    prepare(name, folder)
    arguments, output, _ = COMMANDS[name]
    program = [sys.executable, "-m", "mv2v_jax", *map(str, arguments)]
    clear(folder / output)
    subprocess.run(program, cwd=folder, env={**os.environ, **CACHE}, capture_output=True)
    expected = contents(folder / output)
    clear(folder / output)
    monkeypatch.setitem(CACHE, "JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    both = [start(program, folder), start(program, folder)]
    ended = [(process.communicate()[1], process.returncode) for process in both]
    assert {0, 3} & {code for _, code in ended}, ended
    for error, code in ended:
        assert code in (0, 2, 3), error
        assert len(error.splitlines()) <= 1
    assert contents(folder / output) == expected != {}
    clear(folder / output)
