"""Our own lines to the user: on stderr, one write each, at once. stdout belongs to the user's script."""

from __future__ import annotations

import sys

__all__ = ["say"]


def say(text: str) -> None:
    """Write one line of ours to stderr. A closed stderr is no reason to fail."""
    try:
        sys.stderr.write(f"headway: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed, or None under pythonw
        pass
