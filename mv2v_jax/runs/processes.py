"""Several processes that work as one run: how they start, how they agree on inputs and errors, and how they end."""

import atexit
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mv2v_jax.data.checks import (
    describe_rows,
    refuse_equal,
    refuse_not_finite,
    refuse_too_long,
    refuse_too_short,
)
from mv2v_jax.data.scan import (
    DIGEST_ROWS,
    Difference,
    Digest,
    Duplicates,
    Moments,
    OnRows,
    RowStatistics,
    join_digest,
    sampled_median_length,
    scan_rows,
)
from mv2v_jax.errors import InputError
from mv2v_jax.runs.rendezvous import await_coordinator

_HEARTBEAT_SECONDS = 60
_PROBE_ROWS = 256
# SHA-256.
_DIGEST_BYTES = 32
# Exit codes with which all processes end at the same time.
_SHARED_EXITS = (0, 3)
# Parts of the messages of JAX and its libraries when another process is gone.
_LOSS_SIGNS = (
    "Gloo",
    "coordination",
    "heartbeat",
    "Connection closed",
    "Connection reset",
    "DEADLINE_EXCEEDED",
    "NCCL",
)

T = TypeVar("T")


class LostProcess(Exception):
    """Another process of the run is gone. Every file on disk is whole."""


# --------------------------------------------------------------------------------------------------------------- start


def start(coordinator: str | None, num_processes: int | None, process: int | None) -> None:
    """Join the other processes. Call this before JAX does anything else.

    Under Slurm, Open MPI and on TPU, JAX finds all three arguments by itself.

    Args:
        coordinator: ``HOST:PORT`` where process 0 can be reached.
        num_processes: number of processes.
        process: number of this process, from 0.

    Raises:
        InputError: JAX finds no other processes to join, or they do not come.
    """
    await_coordinator(coordinator, num_processes, process)
    if _has_cpu_only():
        # Otherwise JAX's service aborts this process when another is gone, before the collective that waits for the
        # other can report it. On an accelerator that collective may wait for ever, so there the abort is needed.
        jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(coordinator, num_processes, process, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError, IndexError) as error:
        raise InputError(
            f"--distributed must find the other processes, found {str(error).strip().splitlines()[0]}; except under "
            "Slurm, Open MPI and on TPU, give --coordinator HOST:PORT, --num-processes and --process"
        ) from error
    with translate_process_loss():
        multihost_utils.sync_global_devices("mv2v start")


def _has_cpu_only() -> bool:
    """Whether JAX will find no accelerator. Asking JAX itself would initialise it too early."""
    platforms = jax.config.values["jax_platforms"]
    if platforms:
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


# ----------------------------------------------------------------------------------------------------------- agreement


def all_or_none(action: Callable[[], T]) -> T:
    """Call ``action`` in every process; if it fails in one process, raise in all.

    Raises:
        Exception: the error of ``action`` in this process.
        InputError: ``action`` failed in another process.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        # Any error: the other processes wait for the result.
        error = caught
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(error is not None)))
        if error is None and failed.size:
            raise InputError(f"process {failed[0]} failed; its own message gives the reason")
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def check_same(facts: dict[str, Any]) -> None:
    """Raise `InputError` in every process unless all have the same ``facts``, which are values by name."""
    if jax.process_count() == 1:
        return
    own = [np.frombuffer(hashlib.sha256(repr(fact).encode()).digest(), np.uint8) for fact in facts.values()]
    found = np.asarray(multihost_utils.process_allgather(np.stack(own)))
    for number, others in enumerate(found):
        different = [name for name, equal in zip(facts, (others == found[0]).all(axis=1), strict=True) if not equal]
        if different:
            raise InputError(
                f"all processes must be given the same {', '.join(facts)}, found that {', '.join(different)} of "
                f"process {number} differs from that of process 0"
            )


def probe(rows: Any) -> tuple[Any, ...]:
    """Shape, dtype and a hash of at most 256 of the ``rows [n, d]``, for `check_same`; empty for a single process."""
    if jax.process_count() == 1:
        return ()
    some = np.linspace(0, len(rows) - 1, min(len(rows), _PROBE_ROWS)).astype(np.int64)
    return (*rows.shape, str(rows.dtype), hashlib.sha256(np.ascontiguousarray(rows[some]).tobytes()).hexdigest())


# ---------------------------------------------------------------------------------------------------------------- rows


def describe_shares(rows: Any, name: str, on_rows: OnRows | None = None) -> RowStatistics:
    """Check and describe ``rows [n, d]`` as `describe_rows` does, each process reading its own share of them.

    Duplicates are counted within each share: a row that equals a row of another share is not counted.

    Args:
        rows: the same rows in every process.
        name: what an error message calls them.
        on_rows: called after every block with the number of rows seen and the number of rows to see in this process.

    Raises:
        InputError: as `describe_rows`, in every process.
    """
    num_shares, number = jax.process_count(), jax.process_index()
    if num_shares == 1:
        return describe_rows(rows, name, on_rows)
    num_rows, num_dims = rows.shape
    num_blocks = -(-num_rows // DIGEST_ROWS)
    bounds = [min(num_rows, DIGEST_ROWS * (num_blocks * share // num_shares)) for share in range(num_shares + 1)]

    def scan_share() -> tuple[np.ndarray, bytes]:
        # Every process draws the same rows from all, so that all shorten by the same length.
        moments = Moments(sampled_median_length(rows))
        difference, digest, duplicates = Difference(), Digest(), Duplicates(rows)
        first, last = bounds[number], bounds[number + 1]
        scan_rows(rows, moments, difference, digest, duplicates, first=first, last=last, on_rows=on_rows)
        refuse_not_finite(rows, name, moments)
        refuse_too_long(rows, name, moments)
        scalars = (moments.num_present, moments.num_zero, duplicates.count(), moments.mean_norm, difference.found)
        mean = np.broadcast_to(moments.mean, num_dims)
        reference = np.zeros(num_dims) if difference.reference is None else difference.reference.astype(np.float64)
        return np.concatenate([np.array(scalars, np.float64), mean, reference]), digest.finish()

    numbers, digests = all_or_none(scan_share)
    # As bytes: JAX would round float64 to float32.
    numbers = _gather_bytes(numbers.tobytes(), numbers.nbytes).view(np.float64)
    num_present, num_zero, num_duplicates, mean_norm, differs = numbers[:, :5].T
    means, references = numbers[:, 5 : 5 + num_dims], numbers[num_present > 0, 5 + num_dims :]
    weights = num_present / max(num_present.sum(), 1)
    difference = Difference()
    difference.found = bool(differs.any() or (references != references[:1]).any())
    refuse_equal(rows, name, difference)
    gathered = _gather_bytes(digests, _DIGEST_BYTES * -(-num_blocks // num_shares))
    blocks = [-(-(last - first) // DIGEST_ROWS) for first, last in itertools.pairwise(bounds)]
    joined = b"".join(row[: _DIGEST_BYTES * count].tobytes() for row, count in zip(gathered, blocks, strict=True))
    statistics = RowStatistics(
        mean=weights @ means,
        mean_norm=float(weights @ mean_norm),
        num_zero=int(num_zero.sum()),
        num_duplicates=int(num_duplicates.sum()),
        digest=join_digest(rows, joined),
    )
    refuse_too_short(rows, name, statistics)
    return statistics


def _gather_bytes(own: bytes, max_bytes: int) -> np.ndarray:
    """The bytes of every process, at most ``max_bytes`` each: ``[processes, max_bytes]`` uint8, padded with zeros."""
    padded = np.zeros(max_bytes, np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    return np.ascontiguousarray(multihost_utils.process_allgather(padded))


# ----------------------------------------------------------------------------------------------------------------- end


@contextlib.contextmanager
def translate_process_loss() -> Iterator[None]:
    """Raise `LostProcess` in place of the errors that JAX raises when another process is gone."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if isinstance(error, InputError) or not any(sign in str(error) for sign in _LOSS_SIGNS):
            raise
        raise LostProcess(
            f"another process of this run is gone ({str(error).strip().splitlines()[0][:120]}); no file is left "
            "half-written. Start all processes again; a study continues with --resume"
        ) from error


def exit_together(code: int) -> NoReturn:
    """End this process with ``code``, without waiting for processes that may be gone."""
    # An interrupt while Python ends would print a traceback and change the code.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    if not jax.distributed.is_initialized():
        sys.exit(code)
    if code in _SHARED_EXITS:
        with contextlib.suppress(Exception):
            multihost_utils.sync_global_devices("mv2v end")
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX's own shutdown waits for every process, and aborts if the service in process 0 has already ended.
    os._exit(code)
