"""Several processes as one run, by JAX's own runtime: how they start, what they agree on, how they end together."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mv2v_jax.errors import InputError

_HEARTBEAT_SECONDS = 60
T = TypeVar("T")


class LostProcess(Exception):
    """Another process of the run is gone; what is on disk is whole."""


def start(coordinator: str | None, num_processes: int | None, process: int | None) -> None:
    """Join the run, before JAX has done anything else.

    Args:
        coordinator: ``HOST:PORT`` where process 0 can be reached; found by JAX under Slurm, Open MPI and on TPU.
        num_processes: how many there are; found likewise.
        process: number of this one, from 0; found likewise.

    Raises:
        InputError: JAX finds no run to join, or the others do not come.
    """
    if _has_cpu_only():
        # Else JAX's service aborts this process when another is gone, before the collective that waits for it can say
        # so. An accelerator's collective may wait for ever, and has to be aborted.
        jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            "--distributed must find the other processes: under Slurm, Open MPI or on TPU by itself, elsewhere by "
            f"--coordinator HOST:PORT, --num-processes and --process; found {str(error).strip().splitlines()[0]}"
        ) from error
    with clear_losses():
        multihost_utils.sync_global_devices("mv2v start")


def _has_cpu_only() -> bool:
    """Whether JAX will find no accelerator; asking JAX would start it too early."""
    platforms = jax.config.jax_platforms
    if platforms:
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return jax.process_index() == 0


def from_first(values: Any) -> Any:
    """Arrays or numbers as the first process has them."""
    return multihost_utils.broadcast_one_to_all(values) if jax.process_count() > 1 else values


def wait_for_all(what: str) -> None:
    """Wait until every process is here."""
    multihost_utils.sync_global_devices(what)


def together(action: Callable[[], T]) -> T:
    """Do something that may end in `InputError`; where it does in one process, it does in all of them."""
    result, error = None, None
    try:
        result = action()
    except InputError as caught:
        error = caught
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(error is not None)))
        if error is None and failed.size:
            raise InputError(f"process {failed[0]} could not go on, its own message says why")
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def check_same(facts: dict[str, Any]) -> None:
    """Raise `InputError` in every process where one has other ``facts``, values by their names, than the first."""
    if jax.process_count() == 1:
        return
    own = [np.frombuffer(hashlib.sha256(repr(fact).encode()).digest(), np.uint8) for fact in facts.values()]
    found = np.asarray(multihost_utils.process_allgather(np.stack(own)))
    for number, others in enumerate(found):
        different = [name for name, equal in zip(facts, (others == found[0]).all(axis=1), strict=True) if not equal]
        if different:
            raise InputError(
                f"all processes must be given the same {', '.join(facts)}; found another {', '.join(different)} in "
                f"process {number} than in process 0"
            )


@contextlib.contextmanager
def clear_losses() -> Iterator[None]:
    """Turn what JAX raises where another process has died into `LostProcess`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        lost = ("Gloo", "coordination", "heartbeat", "Connection closed", "Connection reset", "DEADLINE_EXCEEDED")
        if isinstance(error, InputError) or not any(sign in str(error) for sign in lost):
            raise
        raise LostProcess(
            f"another process of this run is gone ({str(error).strip().splitlines()[0][:120]}); no file is left "
            "half-written. Start all of them again; a study goes on with --resume"
        ) from error
