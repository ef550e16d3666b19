"""Milvus as a server, which does not show at once what was written. In a file of its own: a machine runs one."""

import numpy as np
import pytest
from helpers import unit
from stores.checks import MAP, check_moved, open_both, quiet
from stores.makers import NUMBERS, ROWS, all_rows, make_milvus

from mv2v_jax.errors import InputError
from mv2v_jax.runs.moving import move as moving
from mv2v_jax.stores.sources import load_embeddings


@pytest.fixture
def address(tmp_path, start_server):
    return make_milvus(tmp_path, start_server, ROWS, NUMBERS, on_server=True)


def test_rows_are_read_as_soon_as_they_are_written(address):
    source, _ = open_both(address)
    assert source.describe().count == source.count() == 300
    rows = all_rows(source)
    assert sorted(rows.ids) == sorted(NUMBERS)
    np.testing.assert_array_equal(source.take(rows.ids[5:9]).vectors, rows.vectors[5:9])
    found = np.asarray(load_embeddings(address))
    np.testing.assert_allclose(np.sort(unit(found), axis=0), np.sort(unit(ROWS), axis=0), atol=1e-5)


def test_a_move_goes_on_where_it_was(address, tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "BATCH_ROWS", 64)
    source, target = open_both(address)
    state = tmp_path / "state.json"

    def stop(_, written, __):
        if written > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moving.move(source, MAP, target, state, resume=False, on_step=stop)
    with pytest.raises(InputError, match="must be new"):
        moving.move(source, MAP, target, tmp_path / "other.json", resume=False, on_step=quiet)
    moved = moving.move(source, MAP, target, state, resume=True, on_step=quiet)
    assert (moved.num_kept, moved.num_moved) == (128, 172)
    assert moved.checked.recall > 0.8
    check_moved(address)
    described = target.describe()
    assert (described.metric, described.dims, described.integer_ids) == ("cosine", 5, True)
