"""What no user means and somebody gives: every command ends with 0, 2 or 3 and at most one sentence, and no escape."""

import errno
import json
import os
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from cli.commands import CACHE
from click.testing import CliRunner

from mv2v_jax.__main__ import main
from mv2v_jax.cli import cli, output
from mv2v_jax.cli.failures import describe_failure
from mv2v_jax.runs import rendezvous

ROWS = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
LONG = "a" * 300
TENSORS = {
    "W": np.eye(4, dtype=np.float32),
    **{name: np.zeros(4, np.float32) for name in ("mean_x", "mean_y")},
    **{name: np.array(1, np.float32) for name in ("scale_x", "scale_y")},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", ROWS)
    safetensors.numpy.save_file(TENSORS, tmp_path / "map.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def end(monkeypatch, capfd):
    """A function that runs a command and returns its exit code, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mv2v", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    return call


def assert_refused(ended):
    code, out, error = ended
    assert (code, out) == (2, ""), error
    assert error.startswith("Error: ")
    assert len(error.splitlines()) == 1
    assert error[:-1].isprintable()
    return error


# -------------------------------------------------------------------------------------------------------------- headers

HEADERS = [
    "{'descr': [('a', '<f4'), ('b', [('c', '<f4')])], 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': ('<f4', (3,)), 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': ('<f4',), 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': (((((), ), ), ), ), 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 2)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -2)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (10**9, 2)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 2)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 0)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4.0, 2)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': [2, 2]}",
    "{'descr': '<f4', 'fortran_order': 3, 'shape': (2, 2)}",
    "{[]: 1, 'fortran_order': False, 'shape': (2, 2)}",
    "{1: 2, 'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2",
    "  {'descr': '<f4',\n 'fortran_order': False,\n\t\t'shape': (2, 2)}",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (2, 2)}",
    "{'descr': '\x1b[31m', 'fortran_order': False, 'shape': (2, 2)}",
    "(" * 3000,
    "[" * 9000,
    "\\",
    "\x00" * 50,
    "",
    "1",
    "'" * 51,
    "__import__('os').system('true')",
]


def with_header(number):
    """The content of a `.npy` file with one of these headers."""
    text = HEADERS[number].encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def test_a_log_is_not_appended_to_what_is_no_log(folder, end):
    for name in ("map.safetensors", "x.npy"):
        kept = (folder / name).read_bytes()
        assert_refused(end("--log-file", name, "apply", "map.safetensors", "x.npy", "-o", "none/out.npy"))
        assert (folder / name).read_bytes() == kept


def test_a_map_with_a_tensor_that_numpy_cannot_hold(folder, end):
    content = (folder / "map.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header["odd"] = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [len(data), len(data) + 4]}
    text = json.dumps(header).encode()
    (folder / "odd.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data + bytes(4))
    assert_refused(end("info", "odd.safetensors"))


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_headers_of_row_numbers_that_numpy_did_not_write(folder, end, number):
    (folder / "rows.npy").write_bytes(with_header(number))
    assert_refused(end("evaluate-search", "map.safetensors", "x.npy", "x.npy", "--rows", "rows.npy"))


@pytest.mark.parametrize("place", ["file", "shard", "archive"])
@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_headers_that_numpy_did_not_write(folder, end, number, place):
    content = with_header(number)
    source = folder / {"file": "bad.npy", "shard": "bad/1.npy", "archive": "bad.npz"}[place]
    source.parent.mkdir(exist_ok=True)
    if place == "archive":
        import zipfile

        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("rows.npy", content)
    else:
        source.write_bytes(content)
    if place == "shard":
        np.save(folder / "bad" / "0.npy", ROWS)
    name = "bad" if place == "shard" else source.name
    assert_refused(end("apply", "map.safetensors", name, "-o", "out.npy"))
    assert not (folder / "out.npy").exists()


@pytest.mark.parametrize("name", ["W", "scale_x"])
def test_a_name_twice_in_a_header(folder, end, name):
    """The library that reads takes the last one; others the first."""
    content = (folder / "map.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + size].strip(), content[8 + size :]
    entry = b'"%s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},' % name.encode()
    header = b"{" + entry + header[1:]
    (folder / "twice.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert f"the name '{name}' twice" in assert_refused(end("info", "twice.safetensors"))
    error = assert_refused(end("apply", "map.safetensors", "twice.safetensors:W", "-o", "out.npy"))
    assert f"the name '{name}' twice" in error


# ------------------------------------------------------------------------------------------------------------- terminal

ESCAPE = "\x1b]0;pwned\x07\x1b[2J\r\u202e\x9b31m"
NAMES = {
    "align": ("align", f"{ESCAPE}.npy", "x.npy", "-o", "o.safetensors"),
    "apply": ("apply", "map.safetensors", f"{ESCAPE}.npy", "-o", "out.npy"),
    "apply to": ("apply", "map.safetensors", "x.npy", "-o", f"none{ESCAPE}/out.npy"),
    "apply by": ("apply", f"{ESCAPE}.safetensors", "x.npy", "-o", "out.npy"),
    "a key": ("apply", "map.safetensors", f"map.safetensors:{ESCAPE}", "-o", "out.npy"),
    "evaluate": ("evaluate", "map.safetensors", f"{ESCAPE}.npy", "x.npy"),
    "info": ("info", f"{ESCAPE}.safetensors"),
    "stability": ("stability", f"{ESCAPE}.npy", "x.npy", "-o", "study", "--no-plots"),
    "sizes": ("stability", "x.npy", "x.npy", "-o", "study", "--no-plots", "--sizes", ESCAPE),
    "an option": ("align", "x.npy", "x.npy", "-o", "o.safetensors", f"--{ESCAPE}"),
    "a number": ("align", "x.npy", "x.npy", "-o", "o.safetensors", "--seed", ESCAPE),
    "a choice": ("align", "x.npy", "x.npy", "-o", "o.safetensors", "--preset", ESCAPE),
    "a command": (ESCAPE,),
    "a coordinator": ("align", "x.npy", "x.npy", "-o", "o.safetensors", "--distributed", "--coordinator", ESCAPE),
}


@pytest.mark.parametrize("name", NAMES)
def test_no_escape_of_a_name_reaches_the_terminal(folder, end, name):
    assert_refused(end(*NAMES[name]))


def test_no_escape_of_a_file_reaches_the_terminal(folder, end):
    (folder / f"{ESCAPE.replace('/', '')}.npy").write_bytes((folder / "x.npy").read_bytes())
    code, out, error = end("apply", "map.safetensors", f"{ESCAPE}.npy", "-o", f"{ESCAPE}2.npy")
    assert (code, error) == (0, "")
    assert out[:-1].isprintable()


HOSTILE_FACTS = {
    "escapes": {"note": ESCAPE, ESCAPE: "1", "verdict": ESCAPE, "confidence": "1", "estimated_top1": "1"},
    "markup": {"[/x]": "[bold]a[/nope] :smile:", "reason": "[/red]"},
    "wrong types": {"n": '"a"', "m": "[1]", "verdict": "[]", "confidence": "{}", "estimated_top1": "null"},
    "wrong types of a verdict": {
        **{"verdict": "aligned", "confidence": "0.5", "estimated_top1": "0.5", "n": "1", "m": "1"},
        **{"closeness": '["a"]', "agreement": "[1]", "restart_agreement": '"[/q]"', "restarts": "true", "basins": "7"},
        **{"config": '{"max_rows": "a", "held_out_rows": []}', "reason": "7", "score": "[[1]]"},
    },
    "numbers out of range": {"n": "9" * 5000, "m": "1e999", "confidence": "9" * 400, "estimated_top1": "NaN"},
    "nesting": {"config": "[" * 100_000, "agreement": '{"a":' * 900 + "1" + "}" * 900, "verdict": "x"},
    "infinite confidence": {"verdict": "aligned", "confidence": "Infinity", "estimated_top1": "-Infinity"},
    "a huge count": {"verdict": "aligned", "confidence": "1", "estimated_top1": "1", "n": "9" * 30, "m": "-5"},
    "odd config": {"config": '{"max_rows": -1, "held_out_rows": -1}', "n": "0", "m": "0"},
}


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.parametrize("name", HOSTILE_FACTS)
def test_metadata_that_we_did_not_write(folder, end, name, as_json):
    safetensors.numpy.save_file(TENSORS, folder / "odd.safetensors", metadata=HOSTILE_FACTS[name])
    code, out, error = end("info", "odd.safetensors", *as_json)
    assert (code, error) == (0, "")
    assert all(line.isprintable() for line in out.splitlines())
    code, out, error = end("apply", "odd.safetensors", "x.npy", "-o", "out.npy")
    assert code == 0
    assert len(error.splitlines()) <= 1
    assert all(line.isprintable() for line in (out + error).splitlines())


def test_a_stage_with_brackets_breaks_no_progress_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with output.progress_bar() as on_step:
        on_step("reading [/red]\x1b[2J.npy", 0, 2)
        on_step("reading [/red]\x1b[2J.npy", 2, 2)


# ---------------------------------------------------------------------------------------------------------------- paths

TOO_LONG = {
    "a map": ("info", f"{LONG}.safetensors"),
    "rows": ("apply", "map.safetensors", f"{LONG}.npy", "-o", "out.npy"),
    "rows with a key": ("apply", "map.safetensors", f"{LONG}.npz:a", "-o", "out.npy"),
    "a table": ("apply", "map.safetensors", f"{LONG}.parquet", "-o", "out.npy"),
    "an output": ("apply", "map.safetensors", "x.npy", "-o", f"{LONG}.npy"),
    "a map to write": ("align", "x.npy", "x.npy", "-o", f"{LONG}.safetensors", "--anchors-num-clusters", "5"),
    "an output in a folder": ("apply", "map.safetensors", "x.npy", "-o", f"{LONG}/out.npy"),
    "a study": ("stability", "x.npy", "x.npy", "-o", LONG, "--no-plots", "--anchors-num-clusters", "5"),
    "an export": ("demo", "--export", LONG),
    "a cache": ("--compilation-cache", LONG, "info", "map.safetensors"),
    "a path": ("info", "a/" * 5000),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_names_too_long_for_the_file_system(folder, end, name):
    before = sorted(folder.rglob("*"))
    assert_refused(end(*TOO_LONG[name]))
    assert sorted(folder.rglob("*")) == before


def test_a_map_may_have_the_longest_name_that_there_is(folder):
    from mv2v_jax.data.atomic_files import save_npy

    for name in ("ä" * 125, "a" * 251):
        save_npy(folder / f"{name}.npy", ROWS)
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), ROWS)


ORDINARY_USER = """
import importlib, os, pkgutil, sys
import rich.progress, rich.table
import mv2v_jax
from mv2v_jax.__main__ import main
for module in pkgutil.walk_packages(mv2v_jax.__path__, "mv2v_jax.", onerror=lambda name: None):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:
            pass  # an extra that is not installed
for number, arguments in enumerate({commands!r}):
    if number:
        os.setgid(65534), os.setuid(65534)
    sys.argv = ["mv2v", *arguments]
    try:
        main()
    except SystemExit as ended:
        print(ended.code, flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user")
def test_what_an_ordinary_user_may_not_read_or_write(folder):
    """Root may do everything, so the commands run as the user ``nobody``.

    That user cannot always read the checkout, which may lie in a folder of root. Therefore all modules are imported
    before, and the first command runs as root.
    """
    (folder / "closed").mkdir()
    np.save(folder / "closed" / "x.npy", ROWS)
    np.save(folder / "secret.npy", ROWS)
    (folder / "closed").chmod(0o700)
    (folder / "secret.npy").chmod(0o600)
    (folder / "listed").mkdir(mode=0o744)
    np.save(folder / "listed" / "x.npy", ROWS)
    for name in ("map.safetensors", "x.npy"):
        (folder / name).chmod(0o644)
    for parent in (folder, *list(folder.parents)[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    clusters = ("--anchors-num-clusters", "5")
    commands = [
        ("evaluate", "map.safetensors", "x.npy", "x.npy", "--json"),
        ("apply", "map.safetensors", "closed/x.npy", "-o", "/tmp/out.npy"),
        ("apply", "map.safetensors", "closed", "-o", "/tmp/out.npy"),
        ("apply", "map.safetensors", "listed", "-o", "/tmp/out.npy"),
        ("apply", "map.safetensors", "secret.npy", "-o", "/tmp/out.npy"),
        ("apply", "map.safetensors", "x.npy", "-o", "closed/out.npy"),
        ("apply", "map.safetensors", "x.npy", "-o", "out.npy"),
        ("apply", "closed/map.safetensors", "x.npy", "-o", "/tmp/out.npy"),
        ("align", "closed/x.npy", "x.npy", "-o", "/tmp/out.safetensors", *clusters),
        ("align", "x.npy", "x.npy", "-o", "closed/out.safetensors", *clusters),
        ("evaluate", "map.safetensors", "closed/x.npy", "x.npy"),
        ("stability", "x.npy", "x.npy", "-o", "closed/study", "--no-plots", *clusters),
        ("stability", "x.npy", "x.npy", "-o", "study", "--no-plots", *clusters),
        ("info", "closed/map.safetensors"),
    ]
    before = sorted(folder.rglob("*"))
    program = [sys.executable, "-c", ORDINARY_USER.format(commands=commands)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MV2V_COMPILATION_CACHE": ""}
    done = subprocess.run(program, cwd=folder, env=environment, text=True, capture_output=True)
    assert done.stdout.splitlines()[1:] == ["0"] + ["2"] * (len(commands) - 1), done.stderr
    assert [line[:7] for line in done.stderr.splitlines()] == ["Error: "] * (len(commands) - 1)
    assert sorted(folder.rglob("*")) == before


# -------------------------------------------------------------------------------------------------------------- streams


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "encoding"),
    [
        ("info", "ascii"),
        *(("evaluate", name) for name in ("ascii", "cp1252", "latin1", "utf-8")),
    ],
)
def test_an_output_in_another_encoding(folder, command, encoding):
    name = "карта [→] é.npy"
    (folder / name).write_bytes((folder / "x.npy").read_bytes())
    (folder / f"{name}.safetensors").write_bytes((folder / "map.safetensors").read_bytes())
    arguments = {"info": (f"{name}.safetensors",), "evaluate": (f"{name}.safetensors", name, name)}[command]
    done = subprocess.run(
        [sys.executable, "-m", "mv2v_jax", command, *arguments],
        cwd=folder,
        env={**os.environ, **CACHE, "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    done.stdout.decode(encoding)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "code"), [("/dev/full", 2), ("closed pipe", 141)])
def test_an_output_that_takes_nothing(folder, target, code):
    if target == "/dev/full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "mv2v_jax", "info", "map.safetensors"], cwd=folder, stdout=stdout, stderr=subprocess.PIPE
    )
    os.close(stdout)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (1 if code == 2 else 0)


def test_warnings_of_libraries_are_not_printed(folder, end, monkeypatch):
    import warnings

    from mv2v_jax.cli import info

    load = info.load_map
    monkeypatch.setattr(info, "load_map", lambda path: warnings.warn("of a library", stacklevel=1) or load(path))
    code, _, error = end("info", "map.safetensors")
    assert (code, error) == (0, "")


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x.npy"), "x.npy must be readable"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), "Permission denied"),
        (OSError("odd"), "odd"),
        (MemoryError(), "found too little"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_failures_that_are_no_defects_are_one_sentence(error, part):
    message, code = describe_failure(error)
    assert part in message
    assert "\n" not in message
    assert code in (2, 130)


def test_a_defect_is_no_sentence():
    assert describe_failure(TypeError("x")) is None
    assert describe_failure(RuntimeError("x")) is None


@pytest.mark.slow
def test_a_platform_that_is_not_there(folder):
    done = subprocess.run(
        [sys.executable, "-m", "mv2v_jax", "apply", "map.safetensors", "x.npy", "-o", "out.npy"],
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cuda"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: JAX must find a device, found none: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("module", ["mv2v_jax.cli", "jax", "numpy"])
def test_an_interrupt_while_modules_are_imported(folder, module):
    """It arrives at the first import of a module, and the program ends as after any other interrupt."""
    program = f"""
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from mv2v_jax.__main__ import main
sys.argv = ["mv2v", "info", "map.safetensors"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, text=True, capture_output=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "Error: interrupted; no file is left half-written\n"


@pytest.mark.slow
def test_an_interrupt_as_the_output_is_renamed(folder):
    program = """
import os, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
replace = pathlib.Path.replace
def interrupted(self, target):
    result = replace(self, target)
    if str(target) == "out.npy":
        os.kill(os.getpid(), signal.SIGINT)
    return result
pathlib.Path.replace = interrupted
from mv2v_jax.__main__ import main
sys.argv = ["mv2v", "apply", "map.safetensors", "x.npy", "-o", "out.npy"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, text=True, capture_output=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "Error: interrupted; no file is left half-written\n"
    assert np.load(folder / "out.npy").shape == ROWS.shape
    again = CliRunner().invoke(cli, ["apply", "map.safetensors", "x.npy", "-o", "out.npy", "--resume"])
    assert again.exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["map.safetensors", "out.npy", "x.npy"]


# --------------------------------------------------------------------------------------------------------------- ranges

OUT_OF_RANGE = [
    ("--anchors-num-starts", "10000000000"),
    ("--anchors-num-starts", str(2**31)),
    ("--anchors-search-steps", str(2**63)),
    ("--settling-steps", str(10**12)),
    ("--annealing-steps", "9" * 5000),
    ("--restarts", "10" * 20),
    ("--settled", str(2**64)),
    ("--index-size", "1" + "0" * 400),
    ("--seed", "-1"),
    ("--seed", str(2**32)),
    ("--row-devices", str(2**40)),
    ("--num-processes", str(2**40)),
    ("--whitening-power", "nan"),
    ("--components-likeness", "inf"),
    ("--pair-weight", "1e999"),
]


@pytest.mark.parametrize(("option", "value"), OUT_OF_RANGE)
def test_counts_out_of_range(folder, end, option, value):
    assert_refused(end("align", "x.npy", "x.npy", "-o", "o.safetensors", option, value))


@pytest.mark.parametrize(
    ("coordinator", "found"),
    [
        ("127.0.0.1", "must be HOST:PORT"),
        (":1", "must be HOST:PORT"),
        ("127.0.0.1:99999", "must be HOST:PORT"),
        ("127.0.0.1:²", "must be HOST:PORT"),
        ("no-such-host.invalid:1234", "must be an address"),
        ("127.0.0.1:{free}", "found nobody at 127.0.0.1:"),
    ],
)
def test_a_coordinator_that_is_not_there(folder, end, monkeypatch, coordinator, found):
    """JAX would end the process by a signal after five minutes."""
    monkeypatch.setattr(rendezvous, "_WAIT_SECONDS", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = coordinator.format(free=free.getsockname()[1])
    distributed = ("--distributed", "--coordinator", place, "--num-processes", "2", "--process", "1")
    assert found in assert_refused(end("align", "x.npy", "x.npy", "-o", "o.safetensors", *distributed))


def test_a_process_number_that_is_too_large(folder, end):
    distributed = ("--distributed", "--coordinator", "127.0.0.1:1", "--num-processes", "2", "--process", "2")
    error = assert_refused(end("align", "x.npy", "x.npy", "-o", "o.safetensors", *distributed))
    assert "--process must be below --num-processes (2), found 2" in error


def test_a_map_with_an_empty_config(folder, end):
    safetensors.numpy.save_file(TENSORS, folder / "odd.safetensors", metadata={"config": "{}"})
    assert end("info", "odd.safetensors")[0] == 0


def test_an_interrupt_in_a_callback_of_the_garbage_collector_is_not_lost(folder):
    """Python drops exceptions there, after it has printed them."""
    program = """
import gc, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from mv2v_jax.cli import info
from mv2v_jax.__main__ import main
once = []
def callback(phase, facts):
    if once:
        return
    once.append(os.kill(os.getpid(), signal.SIGINT))
    for _ in range(1000):
        pass
load = info.load_map
def interrupted(path):
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(5)
    return load(path)
info.load_map = interrupted
sys.argv = ["mv2v", "info", "map.safetensors"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, text=True, capture_output=True)
    assert done.returncode == 130, done.stderr
    assert (done.stdout, done.stderr) == ("", "Error: interrupted; no file is left half-written\n")
