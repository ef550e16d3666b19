"""How a program ends that is interrupted where no exception may be raised."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

INTERRUPTED = "interrupted; no file is left half-written"
INTERRUPTED_EXIT = 130


def end_interrupted() -> NoReturn:
    """End at once, as after an interrupt of a command."""
    print(f"Error: {INTERRUPTED}", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED_EXIT)


@contextlib.contextmanager
def ending_at_interrupts() -> Iterator[None]:
    """End at an interrupt inside the block, where modules are imported.

    An exception could come out of a library as another one, with a traceback.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        # Interrupts are ignored, or the program that calls us handles them.
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: end_interrupted())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
