"""Lines of actors on the driver's stderr: ``[rank 1 host] text``."""

from __future__ import annotations

import sys

from runtime.wire.messages import LogLines

__all__ = ["show"]


def show(message: LogLines) -> None:
    """Write the lines to stderr in one write and flush it; a driver without a stderr loses them."""
    prefix = f"[{message.label} {message.node_name}] "
    lines = [f"{prefix}{line}\n" for line in message.lines]
    if message.dropped:
        lines.insert(0, f"{prefix}{message.dropped} lines dropped, full log at {message.log_path}\n")
    try:
        sys.stderr.write("".join(lines))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed, or None
        pass
