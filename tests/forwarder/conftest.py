"""Fixtures of the data path's tests: batches are large, so there is one of each."""

import pytest
from hypothesis import settings

from forwarder.batch import Inbound, Outbound, allocate_inbound, allocate_outbound
from tests.forwarder.stages import LANES

settings.register_profile("kernels", deadline=None)  # a first call may have to compile
settings.load_profile("kernels")


@pytest.fixture(scope="session")
def outbound_batch() -> Outbound:
    return allocate_outbound(2 * LANES)


@pytest.fixture(scope="session")
def inbound_batch() -> Inbound:
    return allocate_inbound()
