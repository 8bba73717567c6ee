"""The GPUs of this host: inventory by UUID, and what an actor may see of them.

The driver's own tool is asked, never a library in this process: a CUDA context in the daemon or in a zygote would be fatal to its forks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from runtime.errors import ArgumentError

__all__ = ["SIMULATED", "hardware_gpus", "host_has_gpus", "inventory", "visible_devices"]

SIMULATED = "simulated-"

# nvidia-smi takes 0.1 to 2 s, and much longer on a host whose driver hangs.
QUERY_S = 20.0


def inventory(num_gpus: int | None = None) -> tuple[list[str], bool]:
    """UUIDs of the GPUs to offer, by index, and whether they are simulated.

    Args: num_gpus: offer so many; None: all that the host has. On a host without any they are simulated, for tests.
    Raises: ArgumentError: the host has GPUs, but fewer.
    """
    found = hardware_gpus()
    if num_gpus is None:
        return found, False
    if not found:
        return [f"{SIMULATED}{i}" for i in range(num_gpus)], num_gpus > 0
    if num_gpus > len(found):
        raise ArgumentError(f"num_gpus={num_gpus}: this host has {len(found)} GPUs ({', '.join(found)}). Ask for at most these.")
    return found[:num_gpus], False


def hardware_gpus() -> list[str]:
    """UUIDs of the GPUs that this process may use, in the order of CUDA_VISIBLE_DEVICES if that is set."""
    tool = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or visible is not None and not visible.strip():
        return []
    try:
        listing = subprocess.run([tool, "--query-gpu=uuid", "--format=csv,noheader"], stdin=subprocess.DEVNULL, capture_output=True,
                                 text=True, timeout=QUERY_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = [line.strip() for line in listing.splitlines() if line.strip().startswith("GPU-")]
    return found if visible is None else _select(found, visible)


def host_has_gpus() -> bool:
    """Whether the host has GPUs at all, asked without starting a process."""
    return os.path.exists("/dev/nvidia0") or os.path.isdir("/proc/driver/nvidia/gpus")


def visible_devices(visible_gpu_ids: Sequence[int], gpus: Sequence[str], *, simulated: bool, host_has_gpus: bool) -> str:
    """The value of CUDA_VISIBLE_DEVICES: "" hides all; UUIDs of real GPUs; simulated ones are never mistaken for real ones."""
    if simulated:
        return "" if host_has_gpus else ",".join(map(str, visible_gpu_ids))
    return ",".join(gpus[i] for i in visible_gpu_ids)


def _select(found: list[str], visible: str) -> list[str]:
    """What CUDA would see: entries are indices or (the beginnings of) UUIDs, and the first that names none ends the list."""
    chosen: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            matches = found[int(entry):int(entry) + 1]
        else:
            matches = [uuid for uuid in found if entry and uuid.startswith(entry)]
        if entry.startswith("MIG-"):
            chosen.append(entry)
        elif len(matches) == 1:
            chosen.append(matches[0])
        else:
            break
    return chosen
