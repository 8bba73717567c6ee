"""Our own lines for the user: to stderr, flushed, one write each. stdout belongs to the user's script."""

from __future__ import annotations

import sys

__all__ = ["say"]


def say(text: str) -> None:
    """Print one line (or several, as one piece)."""
    sys.stderr.write(f"[headway] {text}\n")
    sys.stderr.flush()
