"""The pages of a node's health server: /healthz, /readyz and /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.health import Pages, health_pages
from control.status import not_ready_reasons

if TYPE_CHECKING:
    from control.daemon import Daemon


def node_pages(daemon: Daemon) -> Pages:
    """What the health server of this control process serves; nothing where it serves nowhere."""
    options = daemon.options
    if options.healthz_port == 0:
        return {}
    from control.metrics import metrics_page  # slow to import, and not everybody asks for it

    return {
        **health_pages(lambda: daemon.beat_at, lambda: not_ready_reasons(daemon)),
        "/metrics": metrics_page(options.run_dir, options.metrics_peers),
    }
