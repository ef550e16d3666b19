"""Servers for the tests of this folder."""

import contextlib
import functools

import pytest
from stores.servers import SERVERS


@pytest.fixture(scope="session")
def start_server():
    """A function that starts a server of `SERVERS` where it is not running, and returns its address."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda kind: SERVERS[kind](stack))
