"""What the command line does with running clusters: find those of this user, ask for their status, stop, read."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ArgumentError, AuthenticationError, ConnectError, HeadwayError
from runtime.limits import LIMITS
from runtime.wire.address import parse_address
from runtime.wire.messages import AskStatus, ClusterStatus
from runtime.wire.peer import Identity, Peer, Received, connect, load_token

__all__ = ["Cluster", "find_clusters", "open_clusters"]

HEAD = Path("~/.headway/head.json")
EMBEDDED = Path("~/.headway/embedded")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a head is. ``driver_pid``: of an embedded one's driver, else 0."""

    address: str
    token_file: str | None
    driver_pid: int = 0


@dataclass(slots=True, eq=False)
class Cluster:
    """An open connection to a head, and what it answered. ``received``: what else it sends."""

    place: Place
    peer: Peer
    status: ClusterStatus
    received: asyncio.Queue[Any]


def find_clusters(address: str | None) -> list[Place]:
    """The cluster at ``address``, or at HEADWAY_ADDRESS; without either all that this user runs on this host.

    Raises: ConnectError: none. ArgumentError: ``address`` is none.
    """
    address = address or os.environ.get("HEADWAY_ADDRESS") or None
    if address not in (None, "auto", "local"):
        return [Place(str(parse_address(str(address))), None)]
    records = [HEAD.expanduser()] if address != "local" else []
    if address != "auto":
        with contextlib.suppress(OSError):
            records += sorted(EMBEDDED.expanduser().glob("*.json"))
    places = [place for path in records if (place := _read(path)) is not None]
    if not places:
        raise ConnectError("nothing runs here: this user has no head and no embedded cluster on this host. Name a cluster elsewhere by "
                           "--address HOST:PORT (or HEADWAY_ADDRESS).")
    return places


def _read(path: Path) -> Place | None:
    """What the file says, unless the process that wrote it is gone."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        place = Place(str(record["address"]), record["token_file"], int(record.get("driver_pid", 0)))
        os.kill(int(record["pid"]), 0)
    except PermissionError:
        return None  # the number is another user's by now
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return place


@contextlib.asynccontextmanager
async def open_clusters(address: str | None) -> AsyncIterator[tuple[list[Cluster], list[tuple[str, str]]]]:
    """All clusters that were found and answer, and (address, error) of those that do not; closed at the end.

    Raises: HeadwayError: none was found, or none answers.
    """
    clusters, failed, errors = list[Cluster](), list[tuple[str, str]](), list[HeadwayError]()
    try:
        for place in find_clusters(address):
            try:
                clusters.append(await _open(place))
            except ArgumentError:
                raise
            except HeadwayError as exc:
                failed.append((place.address, str(exc)))
                errors.append(exc)
        if not clusters:
            raise errors[0]
        yield clusters, failed
    finally:
        for cluster in clusters:
            cluster.peer.close("done")
            await cluster.peer.wait_closed()


async def _open(place: Place) -> Cluster:
    queue: asyncio.Queue[Any] = asyncio.Queue()

    def on_message(peer: Peer, received: Received) -> None:
        queue.put_nowait(received.message)

    def on_close(peer: Peer, error: HeadwayError) -> None:
        queue.put_nowait(error)

    try:
        token = load_token(place.token_file)
    except AuthenticationError as exc:
        if place.driver_pid:  # it is ending
            raise ConnectError(f"the embedded cluster of pid {place.driver_pid} is gone") from exc
        raise
    peer = await connect(place.address, token=token, identity=Identity("cli", who()), on_message=on_message, on_close=on_close)
    try:
        answer = (await peer.call(AskStatus(), timeout_s=LIMITS.dial_s)).message
    except BaseException:
        peer.close()
        await peer.wait_closed()
        raise
    assert isinstance(answer, ClusterStatus), answer
    return Cluster(place, peer, answer, queue)


def who() -> str:
    """Who runs this command, for the log of who is stopped by it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no entry for this uid, as in containers
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()} (pid {os.getpid()})"
