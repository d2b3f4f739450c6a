"""Whom the workers become."""

import os
import pwd
from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """The unprivileged user and group the workers become."""

    uid: int
    gid: int


def find_identity(user: str) -> Identity | None:
    """Of a user's name.  None when we hold no privilege that could be given up.

    Raises ValueError for a user that is not there, or that is root.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f"{user!r} does not exist on this host") from None
    if entry.pw_uid == 0:
        raise ValueError(f"{user!r} is root; the workers need an unprivileged user")
    return Identity(entry.pw_uid, entry.pw_gid)
