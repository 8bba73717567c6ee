"""Every time-out, size and count of the runtime in one table, with units (``python -m runtime.head --print-limits``).

``HEADWAY_TIME_SCALE`` multiplies the times, and the times alone: process tests run at 0.3. Sizes and counts are fixed.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """One field a limit; a name that ends in ``_s`` is a duration in seconds and scales, all else does not."""

    # Liveness: the same verdict as torchelastic's 15 s; a 5 s glitch stays invisible.
    heartbeat_s: float = 1.0
    suspect_s: float = 5.0
    dead_s: float = 15.0
    reconnect_grace_s: float = 3.0
    redial_min_s: float = 0.1
    redial_max_s: float = 1.0
    connect_s: float = 30.0  # a client's whole attempt to reach the head, re-dials included
    dial_s: float = 5.0  # one attempt to open a socket
    head_loss_grace_s: float = 600.0  # ranks without a head go on for this long
    driver_lease_s: float = 30.0  # a remote driver's job after its connection is lost

    # Handshake
    handshake_s: float = 5.0
    handshake_max_bytes: int = 4 * KIB
    max_unauthenticated: int = 128
    max_unauthenticated_per_address: int = 16

    # Frames. 1 MiB control: msgpack can expand empty containers 75-fold, bin not at all.
    max_control_bytes: int = 1 * MIB
    max_bulk_bytes: int = 1 * MIB
    inline_bytes: int = 64 * KIB  # buffers of a message up to this total travel inside its control frame
    send_queue_bytes: int = 16 * MIB
    max_message_bytes: int = 8 * 1024 * MIB  # all buffers of one call or result
    max_array_len: int = 65_536
    max_map_len: int = 65_536
    report_max_bytes: int = 16 * MIB
    function_warn_bytes: int = 10 * MIB
    function_max_bytes: int = 256 * MIB

    # Life and death of processes
    start_s: float = 60.0  # fork to "constructor may run"; imports of the preload set included
    stop_grace_s: float = 5.0
    kill_wait_s: float = 5.0  # SIGKILL to seen gone
    job_close_s: float = 15.0
    placement_infeasible_s: float = 60.0
    collateral_s: float = 0.2  # an exit by signal outranks exceptions of other ranks that arrive within this
    death_notice_s: float = 5.0  # a closed call connection to the news of the actor's death
    log_flush_s: float = 2.0  # an actor's end to its last log line at the driver

    # Logs
    log_tail_lines: int = 50
    log_line_bytes: int = 64 * KIB
    log_stream_bytes_per_s: int = 5 * MIB
    log_warn_bytes: int = 1024 * MIB

    # Tables
    channel_window: int = 64
    dead_actors_kept: int = 1000  # names and causes of dead actors that the head remembers

    # TCP. Keep-alive alone does not notice a partition while a write is pending; USER_TIMEOUT does. Not before dead_s: heartbeats say
    # whether a silent host is dead (with 10 s, a cut of 5 s that swallowed the three probes of an idle connection ended it).
    tcp_user_timeout_s: float = 15.0
    tcp_keepalive_idle_s: float = 5.0
    tcp_keepalive_interval_s: float = 2.0
    tcp_keepalive_count: int = 3

    def scaled(self, factor: float) -> Limits:
        """The same table with every duration multiplied by ``factor``.

        Raises: ValueError: ``factor`` is not a finite number above 0.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"time scale {factor!r} must be a finite number above 0 (1 = the documented times).")
        times = {f.name: getattr(self, f.name) * factor for f in dataclasses.fields(self) if f.name.endswith("_s")
                 and not f.name.endswith("_per_s")}
        return dataclasses.replace(self, **times)

    def table(self) -> str:
        """One line a limit: name, value, unit by the name's ending."""
        rows = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value:g}" if isinstance(value, float) else f"{name:<{width}}  {value}"
                         for name, value in rows)


def _from_environment() -> Limits:
    text = os.environ.get("HEADWAY_TIME_SCALE", "1")
    try:
        return Limits().scaled(float(text))
    except ValueError as exc:
        raise ValueError(f"HEADWAY_TIME_SCALE={text!r}: {exc}") from exc


LIMITS = _from_environment()
