"""What is compiled is kept, whatever is wrong with the folder or with what is in it."""

import os
import resource
import warnings

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mv2v_jax.cli import shared
from mv2v_jax.errors import InputError
from mv2v_jax.runs.compilation_cache import default_folder, keep_compiled, remove_oldest

HIT = "/jax/compilation_cache/cache_hits"


@pytest.fixture
def warned(monkeypatch):
    """What `keep_compiled` warns of; afterwards JAX and the warnings are as before."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    compilation_cache.reset_cache()
    with warnings.catch_warnings():
        yield []
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compute():
    """A small function, compiled anew or read from the cache: its result, and how often the cache had it."""
    hits = []
    jax.clear_caches()

    def listen(event, **_):
        hits.append(event == HIT)

    jax.monitoring.register_event_listener(listen)
    try:
        result = jax.jit(lambda x: jnp.sin(x) @ x.T)(np.arange(12, dtype=np.float32).reshape(3, 4))
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return np.asarray(result), sum(hits)


def test_what_is_compiled_is_found_again(warned, tmp_path):
    folder = tmp_path / "new" / "folder"
    keep_compiled(folder, warned.append)
    expected, hits = compute()
    assert hits == 0
    found, hits = compute()
    np.testing.assert_array_equal(found, expected)
    assert hits == 1
    assert folder.stat().st_mode & 0o077 == 0
    assert not warned


@pytest.mark.parametrize("damage", [lambda old: old[: len(old) // 2], lambda old: b"", lambda old: b"another program"])
def test_a_damaged_entry_is_replaced(warned, tmp_path, damage):
    """JAX alone would warn, and would find the same entry damaged for ever."""
    keep_compiled(tmp_path, warned.append)
    expected, _ = compute()
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    with warnings.catch_warnings(record=True) as others:
        keep_compiled(tmp_path, warned.append)
        found, hits = compute()
    np.testing.assert_array_equal(found, expected)
    assert hits == 0
    assert len(entry.read_bytes()) >= len(whole) - 8
    assert compute()[1] == 1
    assert not warned
    assert not others


@pytest.mark.parametrize(("kind", "reason"), [("file", "File exists"), ("full", "File too large")])
def test_where_nothing_can_be_kept_the_result_is_the_same(warned, tmp_path, kind, reason):
    """One warning says so. A limit on the size of files stands for a full disk."""
    expected, _ = compute()
    folder = tmp_path / "folder"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if kind == "file":
        folder.write_text("a file is in the way")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        keep_compiled(folder, warned.append)
        for _ in range(2):
            found, hits = compute()
            np.testing.assert_array_equal(found, expected)
            assert hits == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (text,) = warned
    assert text.startswith(f"what is compiled cannot be kept in {folder}, found ")
    assert reason in text
    assert text.endswith("; the result is the same")


def test_other_warnings_are_shown(warned, tmp_path):
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        keep_compiled(tmp_path, warned.append)
        warnings.warn("of another kind", stacklevel=1)
    assert [str(other.message) for other in others] == ["of another kind"]
    assert not warned


def test_the_entries_used_longest_ago_are_removed_and_no_other_file(tmp_path):
    entries = [tmp_path / f"jit_fun-{number:064x}-cache" for number in range(10)]
    for age, path in enumerate(entries):
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 + age, 1e9))
    other = tmp_path / "thesis.tex"
    other.write_bytes(bytes(10_000))
    os.utime(other, (1e8, 1e8))
    remove_oldest(tmp_path, 1_000)
    assert len(list(tmp_path.iterdir())) == 11
    remove_oldest(tmp_path, 999)
    assert sorted(tmp_path.iterdir()) == sorted([*entries[-4:], other])
    remove_oldest(tmp_path / "missing", 10)


def test_the_default_is_a_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_folder() == tmp_path / ".cache" / "mv2v_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == tmp_path / ".cache" / "mv2v_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert default_folder() == tmp_path / "caches" / "mv2v_jax"


def test_which_folder_the_command_line_uses(monkeypatch, tmp_path):
    used = []
    monkeypatch.setattr(shared, "keep_compiled", lambda folder, warn: used.append(folder))
    monkeypatch.setattr(shared, "default_folder", lambda: tmp_path / "default")
    for named in (None, "", str(tmp_path / "named")):
        shared.use_cache(named)
    assert used == [tmp_path / "default", tmp_path / "named"]
    monkeypatch.setattr(shared, "default_folder", lambda: None)
    shared.use_cache(None)
    monkeypatch.setitem(jax.config.values, "jax_compilation_cache_dir", "of JAX")
    shared.use_cache(None)
    assert len(used) == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^--compilation-cache: "):
        shared.use_cache(str(tmp_path / "file"))
