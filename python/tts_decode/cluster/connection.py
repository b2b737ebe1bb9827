"""Connects to Ray: to a running cluster, or to one of this machine alone."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

from ..errors import ClusterError
from ..extras import require
from .placing import Node

LOCAL = "local"
ANSWER_SECONDS = 10.0  # time limit for an address to answer as a gRPC server
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # with empty settings
_SETTINGS = 4  # type of the first frame of an HTTP/2 server
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def connect(address: str, runtime_env: dict[str, Any] | None = None) -> bool:
    """Connects this process, or keeps an existing connection; returns whether it connected.

    If so, the caller has to disconnect.

    address: "local" starts a cluster of this machine's cores and GPUs, which ends with the process; "auto" is
    the one running on this machine, or RAY_ADDRESS; otherwise HOST:PORT.

    Raises:
        MissingExtraError: Ray is not installed.
        ClusterError: the address is invalid, nothing answers there, or it is of another version of Ray.
    """
    require("ray")
    import ray

    if ray.is_initialized():
        return False
    if address not in (LOCAL, "auto"):
        _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's future behaviour; the current one warns if an actor asks for no GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    in_main = threading.current_thread() is threading.main_thread()
    handlers = [signal.getsignal(number) for number in _SIGNALS]
    try:
        ray.init(
            address=address,
            runtime_env=runtime_env,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **own,
        )
    except (Exception, SystemExit) as cause:  # Ray raises plain exceptions
        reason = " ".join(str(cause).split())
        raise ClusterError(
            f"address: got {address}, where no cluster of Ray can be used: {reason}"
        ) from cause
    finally:
        if in_main:  # Ray replaces them with its own
            for number, handler in zip(_SIGNALS, handlers, strict=True):
                signal.signal(number, handler)
    return True


def nodes() -> list[Node]:
    """Returns the live nodes of the cluster."""
    import ray

    found = []
    for told in ray.nodes():
        if told["Alive"]:
            has, host, ip = told["Resources"], told["NodeName"], told["NodeManagerAddress"]
            name = f"{host if host == ip else f'{host} {ip}'} {told['NodeID'][:8]}"
            found.append(Node(told["NodeID"], name, has.get("CPU", 0), has.get("GPU", 0)))
    return found


def _check_answers(address: str) -> None:
    """Fails early: Ray itself looks for a cluster for minutes, and ends the process if there is none."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536) or "/" in host:
        raise ClusterError(f"address: got {address!r}, expected local, auto or HOST:PORT of a cluster's head")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as stream:
            stream.settimeout(ANSWER_SECONDS)
            stream.sendall(_HELLO)
            head = b""
            while len(head) < 4 and (got := stream.recv(9)):
                head += got
    except OSError as cause:
        raise ClusterError(
            f"address: {address} does not answer ({cause.strerror or cause}); start the cluster there with "
            "`ray start --head`, or give another address"
        ) from cause
    if head[3:4] != bytes([_SETTINGS]):
        raise ClusterError(f"address: what answers at {address} is no cluster of Ray; give the head's port")
