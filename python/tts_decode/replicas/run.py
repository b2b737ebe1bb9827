"""Runs replicas on a Ray cluster until a signal ends them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tts_kernels.checks import integer

from ..cluster.connection import LOCAL, connect, nodes
from ..cluster.placing import Place, Wish, places
from ..decoding.decoder import TreeDecoder
from ..errors import ClusterError, MissingExtraError
from ..extras import install_extra, require
from ..serve.config import Limits, ServerConfig
from ..serve.run import is_loopback
from .deployments import FrontDeployment
from .engine import Engine

APPLICATION = "tts-decode"
_CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")  # Ray Serve's actor: name and namespace
_MANY = 1 << 20  # concurrent requests that Ray Serve lets through; the servers refuse excess ones themselves
_LONGEST_GRACE = 86400.0  # seconds; stands for no limit
# For a cluster on this machine: workers keep this process's niceness, and the proxy gets more than
# the default 5 s to start on a busy machine.
_SETTINGS = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
_CLOSE_SECONDS = 30.0  # for the front to end cancelled requests
_HEALTH_SECONDS = 2.0  # between health checks of replicas


@dataclass(frozen=True)
class Replicas:
    """What is served, and where.

    opens: makes a replica's decoder and its server's configuration. It is pickled; what it loads must exist
    on every node. count: number of replicas. address: the cluster's, as for `connect`. cpus: cores of each
    replica, None for an equal share of its node. gpus: whether each has a GPU. host, port: where HTTP is
    received: on each node with a replica, or on the head alone if the host is a loopback address. keys,
    limits: the servers'.
    """

    opens: Callable[[], tuple[TreeDecoder, ServerConfig]]
    count: int
    host: str
    port: int
    address: str = LOCAL
    cpus: int | None = None
    gpus: bool = False
    keys: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        integer("replicas", self.count, 1)


@contextmanager
def serving(replicas: Replicas, *, grace: float) -> Iterator[None]:
    """Runs replicas until the block ends.

    grace: seconds for requests under way to end, or math.inf; after that they are cancelled.

    Raises:
        MissingExtraError: Ray or Ray Serve is not installed.
        ClusterError: the cluster does not answer, runs Ray Serve already or lacks room, or a replica does not
            start, or differs from the others.
    """
    require("ray")
    if replicas.address == LOCAL:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
    try:
        import ray.serve
    except ModuleNotFoundError as missing:
        message = f"ray.serve: {missing.name} is not installed; run: {install_extra('ray')}"
        raise MissingExtraError(message, name=missing.name) from missing

    connected = connect(replicas.address)
    try:
        placed = _placed(replicas)
        _refuse_other(replicas.address)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            front = _start(replicas, placed)
            try:
                yield
            finally:
                seconds = min(grace, _LONGEST_GRACE)
                with suppress(Exception):  # the front may be gone, and what it had with it
                    front.close.remote(seconds).result(timeout_s=seconds + _CLOSE_SECONDS)
        finally:
            ray.serve.shutdown()
    finally:
        if connected:
            ray.shutdown()


def _placed(replicas: Replicas) -> Place:
    """Returns the cores and GPUs of each replica. Raises ClusterError if the cluster lacks room."""
    try:
        return places(nodes(), Wish(replicas.count, replicas.cpus, replicas.gpus))[0]
    except ClusterError as error:
        raise ClusterError(str(error).replace("actors:", "replicas:", 1)) from None


def _refuse_other(address: str) -> None:
    """Raises ClusterError if Ray Serve runs: a cluster has one, with one address and one end."""
    import ray

    try:
        ray.get_actor(*_CONTROLLER)
    except ValueError:  # there is none
        return
    raise ClusterError(
        f"address: at {address} Ray Serve runs already; end it by `serve shutdown`, or give another cluster"
    )


def _start(replicas: Replicas, place: Place) -> Any:
    """Returns the front's handle once all replicas serve. Raises ClusterError with a replica's error."""
    from ray import serve

    serve.start(
        proxy_location="HeadOnly" if is_loopback(replicas.host) else "EveryNode",
        http_options={"host": replicas.host, "port": replicas.port},
    )
    options: dict[str, Any] = {
        "num_replicas": 1,
        "max_ongoing_requests": _MANY,
        "health_check_period_s": _HEALTH_SECONDS,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 1.0,
    }
    resources = {"num_cpus": place.cpus, "num_gpus": place.gpus}
    engines = [
        serve.deployment(
            name=f"replica-{number}", ray_actor_options=resources, max_constructor_retry_count=1, **options
        )(Engine).bind(replicas.opens, place.cpus)
        for number in range(replicas.count)
    ]
    front = serve.deployment(name="front", ray_actor_options={"num_cpus": 0}, **options)(FrontDeployment)
    application = front.bind(engines, tuple(replicas.keys), replicas.limits)
    try:
        handle = serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as cause:
        raise ClusterError(f"replicas: they do not start: {_reason()}") from cause
    if (refused := handle.complete.remote().result()) is not None:
        raise ClusterError(f"replicas: {refused}")
    return handle


def _reason() -> str:
    """Returns the last line of a replica's error, from Ray Serve's status."""
    from ray import serve

    deployments = serve.status().applications[APPLICATION].deployments.values()
    failed = [each.message.strip() for each in deployments if each.status != "HEALTHY" and each.message]
    return failed[0].splitlines()[-1].strip() if failed else "Ray Serve tells no reason"
