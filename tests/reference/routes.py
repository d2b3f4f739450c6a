"""Longest-prefix match by looking at every route."""

from typing import Generic, TypeVar

from forwarder.fib.routes import IPAddress, Prefix

Hop = TypeVar("Hop")


class RouteTable(Generic[Hop]):
    """Routes of both families in one dict."""

    def __init__(self) -> None:
        self.routes: dict[Prefix, Hop] = {}

    def set(self, prefix: Prefix, hop: Hop | None) -> None:
        """`hop` None: no route."""
        if hop is None:
            self.routes.pop(prefix, None)
        else:
            self.routes[prefix] = hop

    def lookup(self, address: IPAddress) -> Hop | None:
        covering = [
            prefix
            for prefix in self.routes
            if prefix.version == address.version and prefix.address <= int(address) <= prefix.last
        ]
        if not covering:
            return None
        return self.routes[max(covering, key=lambda prefix: prefix.length)]
