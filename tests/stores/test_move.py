"""Moves within and between stores, each through the client of the store itself: what arrives, what a kill leaves."""

import dataclasses
import itertools

import numpy as np
import pytest
from helpers import unit
from stores.checks import MAP, RNG, check_moved, open_both, quiet
from stores.makers import MAKERS, NUMBERS, ROWS, all_rows, quick_folder

from mv2v_jax.errors import InputError
from mv2v_jax.finish import make_finish
from mv2v_jax.profiles.profile import profile_rows
from mv2v_jax.runs.moving import move as moving
from mv2v_jax.runs.moving.state import hold
from mv2v_jax.stores.address import parse_address
from mv2v_jax.stores.open import open_store
from mv2v_jax.stores.table import TableStore

# Of the stores that a test only writes to: the maker of a collection asks for its own client.
CLIENTS = {"lancedb": "lancedb", "chroma": "chromadb", "qdrant": "qdrant_client", "milvus": "milvus_lite"}


@pytest.fixture(params=MAKERS)
def address(request, tmp_path, start_server):
    return MAKERS[request.param](tmp_path, start_server, ROWS, NUMBERS)


def test_everything_is_carried_over(address, tmp_path):
    source, target = open_both(address)
    before = source.describe()
    seen = []
    moved = moving.move(
        source, MAP, target, tmp_path / "state.json", resume=False, on_step=lambda *step: seen.append(step)
    )
    assert (moved.num_moved, moved.num_kept) == (300, 0)
    assert ("rows moved", 300, 300) in seen
    assert moved.checked.rows == 300
    assert moved.checked.recall is None or moved.checked.recall > 0.8
    check_moved(address)
    after = open_both(address)[1].describe()
    assert (after.metric, after.dims, after.count, after.id_name) == (before.metric, 5, 300, before.id_name)
    assert not (tmp_path / "state.json").exists()


@pytest.mark.parametrize("kind", ["lancedb", "chroma", "qdrant"])
def test_rows_without_payloads_arrive_in_stores_that_hold_some(kind, tmp_path, start_server):
    """A new table consists of ids and vectors alone."""
    pytest.importorskip(CLIENTS[kind], reason=f"the package {CLIENTS[kind]} is not installed")
    address = MAKERS["faiss"](tmp_path, start_server, ROWS, NUMBERS)
    other = f"{kind}:{quick_folder(tmp_path)}/new/docs"
    source, target = open_both(address, other)
    moved = moving.move(source, MAP, target, tmp_path / "state.json", resume=False, on_step=quiet)
    assert moved.checked.rows == 300
    found, wanted = all_rows(open_both(address, other)[1]), all_rows(source)
    assert sorted(map(str, found.ids)) == sorted(map(str, wanted.ids))


@pytest.mark.parametrize("when", ["before the write", "after the write", "at the end"])
def test_a_move_goes_on_where_it_was(address, when, tmp_path, monkeypatch):
    monkeypatch.setattr(moving, "BATCH_ROWS", 64)
    source, target = open_both(address)
    state = tmp_path / "state.json"
    calls = itertools.count()

    class Killed(Exception):
        pass

    def fail(*_):
        if next(calls) == 2 or when == "at the end":
            raise Killed

    class Failing:
        name = target.name

        def __getattr__(self, name):
            return getattr(target, name)

        def write(self, batch):
            if when == "before the write":
                fail()
            target.write(batch)
            if when == "after the write":
                fail()

        def finish(self, described):
            fail()

    with pytest.raises(Killed):
        moving.move(source, MAP, Failing(), state, resume=False, on_step=quiet)
    source, target = open_both(address)
    with pytest.raises(InputError, match="must be new"):
        moving.move(source, MAP, target, tmp_path / "other.json", resume=False, on_step=quiet)
    other = dataclasses.replace(MAP, scale_y=np.float32(9))
    with pytest.raises(InputError, match="another map"):
        moving.move(source, other, target, state, resume=True, on_step=quiet)
    moved = moving.move(source, MAP, target, state, resume=True, on_step=quiet)
    assert moved.num_kept + moved.num_moved == 300
    assert moved.num_kept > 0
    check_moved(address)


def test_a_move_that_another_process_runs_is_refused(tmp_path, start_server):
    """Locks of one process exclude each other as those of two do; `test_killed` has two processes."""
    source, target = open_both(MAKERS["faiss"](tmp_path, start_server, ROWS, NUMBERS))
    state = tmp_path / "state.json"
    with hold(state, "x"):
        for resume in (False, True):
            with pytest.raises(InputError, match=r"one process, found another .* holds .*state\.json\.lock; wait"):
                moving.move(source, MAP, target, state, resume=resume, on_step=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs.faiss"]
    # What a killed process leaves, or one that made the target in the meantime.
    (tmp_path / "state.json.lock").touch()
    target.create(source.describe(), 5)
    with pytest.raises(InputError, match="File exists"):
        moving.move(source, MAP, Unaware(target), state, resume=False, on_step=quiet)
    assert not state.exists()


class Unaware:
    """A store that another process makes after it was looked for."""

    def __init__(self, store):
        self.store, self.name = store, store.name

    def __getattr__(self, name):
        return getattr(self.store, name)

    def exists(self):
        return False


def test_a_changed_source_is_noticed(address, tmp_path, monkeypatch):
    source, target = open_both(address)
    described = source.describe()
    other = dataclasses.replace(MAP, W=MAP.W[:, ::-1].copy())
    moving.move(source, other, target, tmp_path / "state.json", resume=False, on_step=quiet)
    mapper = moving._Mapper(MAP, moving.FOR_COSINE, "x", 0, unit=False)
    with pytest.raises(InputError, match="must hold the mapped vector at id"):
        moving.compare(source, described, target, mapper, quiet)


def test_unit_rows_stay_unit_rows(tmp_path, start_server):
    address = MAKERS["faiss"](tmp_path, start_server, unit(ROWS), NUMBERS)
    source, target = open_both(address)
    moving.move(source, MAP, target, tmp_path / "state.json", resume=False, on_step=quiet)
    np.testing.assert_allclose(np.linalg.norm(all_rows(target).vectors, axis=1), 1, atol=1e-5)


def test_lengths_and_prefixes(address, tmp_path):
    source, target = open_both(address)
    # Qdrant keeps unit rows where it compares by cosine.
    length = 1 if source.describe().kind == "qdrant" else 3
    linear_map = dataclasses.replace(MAP, profiles=(None, profile_rows(3 * unit(RNG.normal(size=(300, 5))))))
    finish = make_finish("target", "dot", 4, linear_map.profiles[1], 5)
    state = tmp_path / "state.json"

    class Killed(Exception):
        pass

    def kill(*_):
        raise Killed

    with pytest.raises(Killed):
        moving.move(source, linear_map, target, state, finish=finish, resume=False, on_step=kill)
    with pytest.raises(InputError, match="describes a move with another metric, dims"):
        moving.move(source, linear_map, target, state, resume=True, on_step=quiet)
    source, target = open_both(address)
    moving.move(source, linear_map, target, state, finish=finish, resume=True, on_step=quiet)
    rows, found = all_rows(source), all_rows(target)
    assert found.vectors.shape == (300, 4)
    expected = length * unit(linear_map.apply(rows.vectors, frame="target")[:, :4])
    np.testing.assert_allclose(found.vectors, expected, atol=3e-3)


def test_settings_of_indexes_are_carried_over(tmp_path, start_server):
    checked = []
    for kind, setting in {
        "lancedb": lambda store: sorted(map(str, store.describe().settings["indexes"])),
        "chroma": lambda store: (store.describe().settings["index"], store.describe().settings["metadata"]),
        "faiss_ivf": lambda store: (store.describe().settings["recipe"], store.describe().settings["tuned"]),
        "postgres": lambda store: sorted(
            definition.partition(" USING ")[2] for definition in store.describe().settings["indexes"]
        ),
    }.items():
        try:
            address = MAKERS[kind](tmp_path, start_server, ROWS, NUMBERS)
        except pytest.skip.Exception:
            continue
        source, target = open_both(address)
        moving.move(source, MAP, target, tmp_path / "state.json", resume=False, on_step=quiet)
        assert setting(open_both(address)[1]) == setting(source)
        checked.append(kind)
    if not checked:
        pytest.skip("no store is installed")


def test_a_new_column_beside_the_old_one(tmp_path, start_server, monkeypatch):
    table = MAKERS["postgres"](tmp_path, start_server, ROWS, NUMBERS)
    monkeypatch.setattr(moving, "BATCH_ROWS", 64)
    address, other = f"{table}?vector=embedding", f"{table}?vector=moved"
    before = all_rows(open_store(parse_address(address)))
    source, target = open_both(address, other)
    moved = moving.move(source, MAP, target, tmp_path / "state.json", resume=False, on_step=quiet)
    assert moved.undo.endswith('DROP COLUMN "moved"')
    source, target = (all_rows(store) for store in open_both(address, other))
    assert source.ids == target.ids == before.ids
    np.testing.assert_array_equal(source.vectors, before.vectors)
    np.testing.assert_allclose(target.vectors, MAP.apply(before.vectors, frame="target"), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "other"),
    [("lancedb", "chroma"), ("chroma", "lancedb"), ("faiss", "qdrant"), ("faiss", "milvus"), ("chroma", "postgres")],
)
def test_between_kinds_of_stores(kind, other, tmp_path, start_server):
    if other in CLIENTS:
        pytest.importorskip(CLIENTS[other], reason=f"the client of {other} is not installed")
    address = MAKERS[kind](tmp_path, start_server, ROWS, NUMBERS)
    if other == "postgres":
        start_server("postgres")
    places = {"qdrant": f"{quick_folder(tmp_path)}/new", "milvus": f"{tmp_path}/new.db", "postgres": ""}
    source, target = open_both(address, f"{other}:{places.get(other, tmp_path / 'new')}/moved_{tmp_path.name}")
    moved = moving.move(source, MAP, target, tmp_path / "state.json", resume=False, on_step=quiet)
    assert moved.checked.rows == 300
    rows, found = all_rows(source), all_rows(target)
    assert [str(key) for key in found.ids] == [str(key) for key in rows.ids]
    np.testing.assert_allclose(unit(found.vectors), unit(MAP.apply(rows.vectors, frame="target")), atol=1e-4)


def test_a_table_is_moved_into_a_store(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("lancedb", reason="the package lancedb is not installed")
    ids = [f"doc-{number}" for number in NUMBERS]
    parquet.write_table(pa.table({"doc": ids, "n": NUMBERS, "e": pa.array(list(ROWS))}), tmp_path / "x.parquet")
    source = TableStore(parse_address(f"{tmp_path}/x.parquet?id=doc"))
    target = open_store(parse_address(f"lancedb:{tmp_path}/db/docs?id=doc"))
    moving.move(source, MAP, target, tmp_path / "state.json", resume=False, on_step=quiet)
    found = all_rows(target)
    assert found.ids == sorted(ids)
    assert [payload["doc"] for payload in found.dicts()] == found.ids


@pytest.mark.parametrize("kind", ["lancedb", "chroma", "qdrant"])
def test_a_move_that_cannot_begin_leaves_nothing(kind, tmp_path, start_server, capfd):
    """LanceDB makes a table at the first write, and Chroma fails once more while it is closed."""
    pytest.importorskip(CLIENTS[kind], reason=f"the client of {kind} is not installed")
    (tmp_path / "file").write_text("")
    source, target = open_both(MAKERS["faiss"](tmp_path, start_server, ROWS, NUMBERS), f"{kind}:{tmp_path}/file/x")
    with pytest.raises(InputError, match="cannot be used: "):
        moving.move(source, MAP, target, tmp_path / "state.json", resume=False, on_step=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs.faiss", "file"]
    assert capfd.readouterr().err == ""


def test_what_cannot_be_kept_is_refused_before_anything_is_made(tmp_path, start_server):
    source = open_store(parse_address(MAKERS["lancedb"](tmp_path, start_server, ROWS, NUMBERS)))
    for address, message in (("faiss:{}/new.faiss", "found payloads"), ("qdrant:{}/q/new", "found 'doc-")):
        target = open_store(parse_address(address.format(tmp_path)))
        with pytest.raises(InputError, match=message):
            moving.move(source, MAP, target, tmp_path / "state.json", resume=False, on_step=quiet)
        assert not target.exists()
        assert not (tmp_path / "state.json").exists()
