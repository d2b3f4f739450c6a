"""A cluster of loden nodes, shared by the tests of one module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.nodes import Cluster, cluster_of


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Nodes 0 and 1, started at the same moment."""
    with cluster_of(3, tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.init()
        cluster.start(0, 1)
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """With nodes 0 and 1 ready; the logs are shown when the test fails."""
    running.start(0, 1)
    yield running
    print(running.logs())
