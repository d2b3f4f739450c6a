"""Whom workers can become."""

from __future__ import annotations

import os

import pytest

from forwarder.config import ConfigError
from forwarder.identity import find_identity
from forwarder.sandbox import prepare

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="nobody but root becomes somebody else")


def test_nobody_is_somebody_else() -> None:
    identity = find_identity("nobody")
    assert identity is not None
    assert identity.uid != 0


@pytest.mark.parametrize(
    ("user", "message"),
    [("nobody-at-all", "does not exist on this host"), ("root", "is root; the workers need")],
)
def test_user_that_workers_cannot_become_is_refused(user: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_identity(user)
    with pytest.raises(ConfigError, match=f"user: .*{message}"):
        prepare(user, wants_filter=False)
