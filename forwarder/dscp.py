"""The DSCP of outer packets (RFC 2474): what the underlay's routers and queues go by.

Fixed for all, as a kernel vxlan device with `tos` has it, or each inner packet's own (`tos inherit`
there; RFC 2983 names the two the pipe and the uniform model).  ECN is not touched by it.
"""

COPY = -1
"""In place of a DSCP: that of the inner packet."""
COPY_TEXT = "copy"
DSCP_MAX = 63


def parse_dscp(text: str) -> int:
    """The DSCP that `text` names, or COPY.  Raises ValueError."""
    if text == COPY_TEXT:
        return COPY
    if not text.isascii() or not text.isdigit() or int(text) > DSCP_MAX:
        raise ValueError(f"{text!r} is not allowed; allowed: 0 to {DSCP_MAX}, or {COPY_TEXT!r}")
    return int(text)
