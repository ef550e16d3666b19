"""How a program ends that is interrupted where no exception may be raised."""

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

INTERRUPTED = "interrupted; no file is left half-written"
INTERRUPTED_EXIT = 130
_AGAIN_SECONDS = 0.01


def end_interrupted() -> NoReturn:
    """End at once, as after an interrupt of a command."""
    print(f"Error: {INTERRUPTED}", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED_EXIT)


@contextlib.contextmanager
def losing_no_interrupt() -> Iterator[None]:
    """Interrupt once more where the exception of an interrupt is dropped, as in callbacks of the garbage collector.

    Python would print its traceback, and the program would go on.
    """
    usual = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # A little later, when the callback has ended; at once would be dropped as well.
            again = threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main)
            again.daemon = True
            again.start()
        else:
            usual(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual


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
