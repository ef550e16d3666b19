"""Processes that are killed while they move rows, and go on: nothing is lost or doubled, in bounded memory."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli.commands import RUN_AND_WRITE_PEAK
from helpers import make_map, semi_orthogonal
from stores.makers import MAKERS, all_rows, beside

from mv2v_jax.data.map_file import save_map
from mv2v_jax.portable.numpy_map import from_map
from mv2v_jax.stores.address import parse_address
from mv2v_jax.stores.open import open_store

pytestmark = pytest.mark.slow
MAX_BYTES = 2**30
# Rows, dimensions and kills.
SIZES = {
    "lancedb": (200_000, 384, 4),
    "faiss": (200_000, 384, 4),
    # Few enough to be quick, many enough that no move ends before it is killed.
    "postgres": (60_000, 64, 4),
}


def move(address, state, *flags):
    command = [
        sys.executable,
        "-c",
        RUN_AND_WRITE_PEAK,
        "move",
        address,
        "map.safetensors",
        beside(address),
        "--state",
        state,
    ]
    return subprocess.Popen(
        [*command, *flags], cwd=state.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rows_written(state):
    """The number of rows in the file of a move; ``None`` where there is none."""
    return json.loads(state.read_text())["written"] if state.exists() else None


def kill_while_it_writes(process, state, wait):
    """Kill a move some time after it has written rows; the number of rows that it reported."""
    before, deadline = rows_written(state), time.monotonic() + 200
    while process.poll() is None and rows_written(state) in (None, 0, before) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(wait)
    process.kill()
    process.communicate()
    return rows_written(state)


def test_two_processes_do_not_write_one_target(tmp_path, start_server):
    """The second is refused whatever its flags, the first one ends well, and a killed one leaves no lock."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100_000, 64)).astype(np.float32)
    address = MAKERS["faiss"](tmp_path, start_server, rows, range(len(rows)))
    save_map(tmp_path / "map.safetensors", make_map(semi_orthogonal(rng, 64, 32)), {"verdict": "aligned"})
    state = tmp_path / "state.json"
    for end in (signal.SIGCONT, signal.SIGKILL):
        first = move(address, state)
        while first.poll() is None and not rows_written(state):
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        written = rows_written(state)
        assert written is not None, "the move ended before it was stopped"
        for flags in ([], ["--resume"]):
            second = move(address, state, *flags)
            said, error = second.communicate()
            assert (second.returncode, said, error.count("\n")) == (2, "", 1)
            assert f"found another one that runs this move and holds {state}.lock; wait until it has ended" in error
        assert rows_written(state) == written
        first.send_signal(end)
        first.communicate()
        if end == signal.SIGKILL:
            assert first.returncode == -end
            first = move(address, state, "--resume")
            first.communicate()
        assert first.returncode == 0
        assert not list(tmp_path.glob("state*"))
        target = all_rows(open_store(parse_address(beside(address))))
        assert sorted(target.ids) == list(range(len(rows)))
        (tmp_path / "new.faiss").unlink()


@pytest.mark.parametrize("kind", SIZES)
def test_a_killed_move_goes_on(kind, tmp_path, start_server):
    count, dims, kills = SIZES[kind]
    rng, draw = np.random.default_rng(0), random.Random(0)
    rows = rng.normal(size=(count, dims)).astype(np.float32)
    numbers = rng.permutation(count).tolist()
    if kind == "lancedb":
        # Its numbers are of 16 bits.
        pytest.importorskip("lancedb", reason="the package lancedb is not installed")
        import lancedb
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), dims)
        table = pa.table({"id": [f"doc-{number}" for number in numbers], "vector": vectors, "n": numbers})
        lancedb.connect(tmp_path / "lance").create_table("docs", table)
        address = f"lancedb:{tmp_path}/lance/docs"
    else:
        address = MAKERS[kind](tmp_path, start_server, rows, numbers)
    linear_map = make_map(semi_orthogonal(rng, dims, dims // 2))
    save_map(tmp_path / "map.safetensors", linear_map, {"verdict": "aligned"})
    state, seen = tmp_path / "state.json", []
    for number in range(kills):
        process = move(address, state, *(["--resume"] if number else []))
        seen.append(kill_while_it_writes(process, state, draw.uniform(0, 0.3)))
    assert seen[0] is not None, "the move ended before it was killed"
    last = move(address, state, "--resume")
    said, error = last.communicate()
    assert (last.returncode, error) == (0, "")
    assert f"{count:,} rows moved, " in said
    assert not state.exists()
    if (tmp_path / "peak").exists():
        assert int((tmp_path / "peak").read_text()) * 1024 < MAX_BYTES
    source, target = (all_rows(open_store(parse_address(place))) for place in (address, beside(address)))
    assert len(set(map(str, target.ids))) == count
    assert target.ids == source.ids
    assert target.dicts() == source.dicts()
    mapped = from_map(linear_map).apply(source.vectors, frame="target")
    np.testing.assert_allclose(target.vectors, mapped, atol=1e-4)
    assert os.listdir(tmp_path).count("state.json.new") == 0
