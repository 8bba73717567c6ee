"""The program's end of ``benchmarks.program.Program``: requests on stdin, answers on what was stdout; what is printed goes to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["pin_threads", "serve"]


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answer until stdin ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            answer = operations[request.pop("op")](**request)
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def pin_threads(cores: list[int]) -> None:
    """Let all threads of this process run on these cores only."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)
