"""Several processes as one run, by JAX's own runtime: how they start, what they agree on, how they end together."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mv2v_jax.data.npy_rows import RowShare
from mv2v_jax.data.scan import (
    DIGEST_ROWS,
    Measured,
    OnRows,
    RowStatistics,
    describe_rows,
    join_digest,
    refuse_equal,
    refuse_not_finite,
    refuse_too_long,
    refuse_too_short,
    scan_everything,
)
from mv2v_jax.errors import InputError

_HEARTBEAT_SECONDS = 60


_PROBE_ROWS = 256


# Exit codes that all processes end with together.
_ALL_AT_ONCE = (0, 3)


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
        jax.distributed.initialize(coordinator, num_processes, process, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            "--distributed must find the other processes: under Slurm, Open MPI or on TPU by itself, elsewhere by "
            f"--coordinator HOST:PORT, --num-processes and --process; found {str(error).strip().splitlines()[0]}"
        ) from error
    with translate_process_loss():
        multihost_utils.sync_global_devices("mv2v start")


def _has_cpu_only() -> bool:
    """Whether JAX will find no accelerator; asking JAX would start it too early."""
    platforms = jax.config.values["jax_platforms"]
    if platforms:
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def all_or_none(action: Callable[[], T]) -> T:
    """Do something that may fail; where it does in one process all of them raise, the others `InputError`."""
    result: T | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        # Whatever it is, the others wait.
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


def probe(rows: Any) -> tuple[Any, ...]:
    """What tells other rows from these, most likely, without reading more than some of them; nothing where one
    process has nobody to compare with.
    """
    if jax.process_count() == 1:
        return ()
    some = np.linspace(0, len(rows) - 1, min(len(rows), _PROBE_ROWS)).astype(np.int64)
    return (*rows.shape, str(rows.dtype), hashlib.sha256(np.ascontiguousarray(rows[some]).tobytes()).hexdigest())


def describe_shares(rows: Any, name: str, on_rows: OnRows | None = None) -> RowStatistics:
    """As `measure.describe_rows`, each process reading its share of the rows.

    Rows that equal one of another share are not counted as duplicates.
    """
    parts, part = jax.process_count(), jax.process_index()
    if parts == 1:
        return describe_rows(rows, name, on_rows)
    n, d = rows.shape
    num_blocks = -(-n // DIGEST_ROWS)
    bounds = [min(n, DIGEST_ROWS * (num_blocks * number // parts)) for number in range(parts + 1)]
    share = RowShare(rows, bounds[part], bounds[part + 1])

    def look() -> Measured:
        found = scan_everything(share, on_rows)
        refuse_not_finite(share, name, found.moments)
        refuse_too_long(share, name, found.moments)
        return found

    moments, difference, digest, duplicates = all_or_none(look)
    # As bytes: JAX would make float32 of float64.
    numbers = np.zeros(d + 5)
    present = share.shape[0] - moments.num_zero
    numbers[:5] = present, moments.num_zero, duplicates.count(), moments.mean_norm, difference.found
    numbers[5:] = moments.mean if present else 0
    found = _from_all(numbers.tobytes(), numbers.nbytes).view(np.float64)
    blocks = _from_all(digest.finish(), 32 * (-(-num_blocks // parts)))
    digests = b"".join(
        row[: 32 * (-(-(last - first) // DIGEST_ROWS))].tobytes()
        for row, first, last in zip(blocks, bounds, bounds[1:], strict=False)
    )
    weights = found[:, 0] / max(found[:, 0].sum(), 1)
    means = found[:, 5:]
    # Shares of equal rows differ where their means do.
    difference.found = bool(
        found[:, 4].any() or not np.allclose(means[weights > 0], means[weights.argmax()], rtol=1e-12, atol=0)
    )
    refuse_equal(rows, name, difference)
    statistics = RowStatistics(
        mean=weights @ means,
        mean_norm=float(weights @ found[:, 3]),
        num_zero=int(found[:, 1].sum()),
        num_duplicates=int(found[:, 2].sum()),
        digest=join_digest(rows, digests),
    )
    refuse_too_short(rows, name, statistics)
    return statistics


def _from_all(own: bytes, most: int) -> np.ndarray:
    """Bytes of every process, at most ``most`` of each: ``[processes, most]`` uint8, zeros behind the last."""
    padded = np.zeros(most, np.uint8)
    padded[: len(own)] = np.frombuffer(own, np.uint8)
    return np.ascontiguousarray(multihost_utils.process_allgather(padded))


@contextlib.contextmanager
def translate_process_loss() -> Iterator[None]:
    """Turn what JAX raises where another process has died into `LostProcess`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        lost = (
            "Gloo",
            "coordination",
            "heartbeat",
            "Connection closed",
            "Connection reset",
            "DEADLINE_EXCEEDED",
            "NCCL",
        )
        if isinstance(error, InputError) or not any(sign in str(error) for sign in lost):
            raise
        raise LostProcess(
            f"another process of this run is gone ({str(error).strip().splitlines()[0][:120]}); no file is left "
            "half-written. Start all of them again; a study goes on with --resume"
        ) from error


def exit_together(code: int) -> NoReturn:
    """End this process, not waiting for others that may be gone."""
    if not jax.distributed.is_initialized():
        sys.exit(code)
    if code in _ALL_AT_ONCE:
        with contextlib.suppress(Exception):
            multihost_utils.sync_global_devices("mv2v end")
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX's own end waits for every process, and aborts where the service in the first one has ended before.
    os._exit(code)
