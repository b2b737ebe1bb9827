"""A cluster of two nodes on this machine, for all tests of the room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from needed import missing

from benches.local_cluster import LocalCluster, local_cluster

HELPERS = str(Path(__file__).parents[1] / "helpers")


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """Two nodes of a core each. Actors find the tests' helpers."""
    if find_spec("ray") is None:
        missing("needs the package ray: pip install '.[ray]'")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([HELPERS, *([before] if before else [])])
    try:
        with local_cluster(1, 1) as cluster:
            yield cluster
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
