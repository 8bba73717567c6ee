"""What a reader has to know about the machine to believe a figure: versions, cores, governor, load."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "describe_machine", "load"]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("headway", "torch", "uvloop", "msgpack", "cloudpickle")


def describe_machine(ray_python: str | None) -> dict[str, Any]:
    """Facts that do not change while the benchmarks run."""
    facts = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}, "commit": _commit(),
             "kernel": f"{platform.system()} {platform.release()}", "cpu": _cpu(), "cores": len(os.sched_getaffinity(0)),
             "governor": _governor(), "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)}
    return facts | {"ray": ray_version(ray_python) or "missing"}


def load() -> list[float]:
    """Load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def ray_version(ray_python: str | None) -> str:
    """Of the Ray that ``ray_python`` imports; empty if there is none."""
    if not ray_python:
        return ""
    try:
        found = _run([ray_python, "-c", "import ray.train, torch; print(ray.__version__)"])
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.splitlines()[-1] if found else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _commit() -> str:
    try:
        commit = _run(["git", "rev-parse", "--short", "HEAD"])
        changed = _run(["git", "status", "--porcelain", "--untracked-files=no", "--", "runtime", "train"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with changes" if changed else commit


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "none visible (a virtual machine)"


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
