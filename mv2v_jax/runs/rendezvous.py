"""Whether the coordinator of several processes can be reached: where it cannot, JAX ends the process by a signal."""

import socket
import time

from mv2v_jax.errors import InputError, first_line

# As long as JAX waits.
_WAIT_SECONDS = 300.0
_RETRY_SECONDS = 0.5


def await_coordinator(coordinator: str | None, num_processes: int | None, process: int | None) -> None:
    """Wait until process 0 listens at ``HOST:PORT``.

    Without an address JAX finds the others by itself, and there is nothing to wait for.

    Raises:
        InputError: the address is none, process numbers do not fit together, or nobody listens there for five minutes.
    """
    if process is not None and num_processes is not None and process >= num_processes:
        raise InputError(f"--process must be below --num-processes ({num_processes}), found {process}")
    if coordinator is None:
        return
    host, colon, port = coordinator.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise InputError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, found {coordinator!r}")
    if process:
        _connect(coordinator, host.strip("[]"), int(port))


def _connect(coordinator: str, host: str, port: int) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=max(_RETRY_SECONDS, _WAIT_SECONDS / 10)).close()
            return
        except socket.gaierror as error:
            raise InputError(f"--coordinator must be an address, found {host!r}: {first_line(error)}") from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"--coordinator must be where process 0 listens, found nobody at {coordinator} for "
                    f"{_WAIT_SECONDS:.0f} seconds: {first_line(error)}; start process 0 first"
                ) from error
            time.sleep(_RETRY_SECONDS)
