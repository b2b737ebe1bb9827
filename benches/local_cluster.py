"""A Ray cluster with all nodes on this machine, for tests and measurements."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "500",  # a node that is killed is missed soon
    "RAY_worker_niceness": "0",  # more than this process, with which actors are compared
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",  # not 5: a busy machine
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}
_STORE_BYTES = 100 << 20


class LocalCluster:
    """`nodes`: the first one holds the cluster together, and this process is connected to it."""

    def __init__(self) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self.nodes: list[Any] = []

    @property
    def address(self) -> str:
        found: str = self._cluster.address
        return found

    def add(self, cpus: int, gpus: int = 0) -> Any:
        """A node. Its ports are given: where agents are to tell theirs, a busy machine misses the time."""
        from ray import NodeID

        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        node_id = NodeID.from_random().hex()
        os.environ["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = node_id
        threading.Thread(target=_tell, args=(node_id, ports), daemon=True).start()
        try:
            node = self._cluster.add_node(
                num_cpus=cpus,
                num_gpus=gpus,
                object_store_memory=_STORE_BYTES,
                include_dashboard=False,
                **ports,
            )
        finally:
            del os.environ["RAY_OVERRIDE_NODE_ID_FOR_TESTING"]
        self.nodes.append(node)
        return node

    def kill(self, node: Any) -> None:
        """As if its machine had lost its power."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def actors(self) -> set[int]:
        """The processes of actors, of whichever pool."""
        raylets = {info.process.pid for node in self.nodes for info in node.all_processes["raylet"]}
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in raylets and (folder / "cmdline").read_bytes().startswith(b"ray::SearchActor"):
                    found.add(int(folder.name))
        return found

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def local_cluster(*cpus: int) -> Iterator[LocalCluster]:
    """Nodes of so many cores each; this process is connected meanwhile."""
    import logging

    import ray

    cluster = LocalCluster()
    try:
        for count in cpus:
            cluster.add(count)
        ray.init(
            address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False
        )
        yield cluster
    finally:
        ray.shutdown()
        cluster.close()


def _tell(node_id: str, ports: dict[str, int]) -> None:
    """Writes the files in which a node's agents tell their ports. They do that also where ports are given, as
    late as they are up; the node waits 15 s for it, then ends."""
    from ray._raylet import persist_port

    while not (sessions := list(Path("/tmp/ray").glob(f"session_*_{os.getpid()}"))):
        time.sleep(0.05)
    session = max(sessions, key=lambda folder: folder.stat().st_mtime)
    for name, port in ports.items():
        persist_port(str(session), node_id, name, port)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
