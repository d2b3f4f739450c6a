"""`python -m tests.netns.broken_kernel`: a forwarder on a kernel none of whose offloads works."""

from collections.abc import Callable

from forwarder import selftest
from forwarder.__main__ import command
from forwarder.selftest import TESTS, Findings, PrivateNetwork


def fail_all(make_network: Callable[[], PrivateNetwork] = PrivateNetwork) -> Findings:
    return Findings(dict.fromkeys(TESTS, "this kernel is broken"))


if __name__ == "__main__":
    selftest.run = fail_all
    command()
