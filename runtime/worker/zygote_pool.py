"""The daemon's zygotes, one for each preload set, and the way round them.

A zygote is started ahead (``preload``) or with the first actor that needs its set; a set that turns out unfit for forking (an import fails,
starts a thread or touches the GPU) is discarded for good with one line that says why, and its actors are exec'd.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import msgpack

from runtime.errors import ActorStartError
from runtime.limits import Limits
from runtime.worker.birth import FDS_PER_ACTOR, FORCED_ENV, Birth
from runtime.worker.spawn import Exit, Watcher, kill_group, start_python
from runtime.worker.sweep import MARKER, Lineage
from runtime.worker.zygote import LENGTH, MAX_BIRTHS, ZygoteOptions, pack_request

__all__ = ["ZygoteDiedError", "ZygotePool", "exec_actor"]

logger = logging.getLogger(__name__)

STDERR = 2


class _Answer(TypedDict):
    pids: list[int]
    errno: int  # why there are fewer pids than births


class ZygoteDiedError(Exception):
    """The zygote ended before it answered; another one may do better, with fresh descriptors."""


class UnfitError(Exception):
    """The zygote said that it must not be forked."""


def exec_actor(birth: Birth, fds: Sequence[int]) -> int:
    """Start one actor in a fresh interpreter; ``fds``: lifeline, hand-over socket, log. Returns: its pid."""
    lifeline_fd, handover_fd, log_fd = fds
    env = {**os.environ, **birth.env, MARKER: birth.marker}
    fields = json.dumps({**dataclasses.asdict(birth), "env": {}})  # variables may hold secrets, an argument is for all to see
    return start_python("main_exec", [fields], env={name: value for name, value in env.items() if value is not None},
                        fds=(lifeline_fd, handover_fd), output_fd=log_fd)


class ZygotePool:
    """Forks actors; ``enabled=False`` makes every fork a refusal, so that all actors are exec'd."""

    def __init__(self, watcher: Watcher, lineage: Lineage, session_dir: Path, limits: Limits, *, enabled: bool = True) -> None:
        self._watcher = watcher
        self._lineage = lineage
        self._session_dir = session_dir
        self._limits = limits
        self._enabled = enabled
        self._zygotes: dict[frozenset[str], _Zygote] = {}
        self._discarded: set[frozenset[str]] = set()

    @property
    def pids(self) -> list[int]:
        """Of the living zygotes."""
        return [zygote.pid for zygote in self._zygotes.values()]

    @property
    def described(self) -> tuple[str, ...]:
        """Each set for people: "torch: ready"."""
        states = {modules: "ready" if zygote.ready.done() else "starting" for modules, zygote in self._zygotes.items()}
        states |= dict.fromkeys(self._discarded, "unfit, its actors are exec'd")
        return tuple(f"{', '.join(sorted(modules)) or 'runtime only'}: {state}" for modules, state in states.items())

    @property
    def is_forking(self) -> bool:
        """True while children may exist whose pids were not told yet."""
        return any(zygote.is_busy for zygote in self._zygotes.values())

    def preload(self, modules: Collection[str]) -> None:
        """Have a zygote with these modules, soon."""
        if self._enabled and frozenset(modules) not in self._discarded:
            self._choose(frozenset(modules))

    async def wait_ready(self, modules: Collection[str], *, unless: asyncio.Event) -> None:
        """Wait until ``fork`` has an answer for this set at once, be it a refusal, or until ``unless`` is set."""
        wanted = frozenset(modules)
        if self._enabled and wanted not in self._discarded:
            given_up = asyncio.create_task(unless.wait(), name="order given up")
            either: list[asyncio.Future[Any]] = [self._choose(wanted).ready, given_up]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            given_up.cancel()

    async def fork(self, modules: Collection[str], births: Sequence[Birth], fds: Sequence[int]) -> list[int] | None:
        """Fork one actor for each birth. Returns: their pids; None when this set has to go by ``exec_actor``.

        Args: fds: FDS_PER_ACTOR for each birth; the caller closes its copies.
        Raises: ZygoteDiedError: it may have forked some; they end when their lifelines close. ActorStartError: the system refused.
        """
        wanted = frozenset(modules)
        if not self._enabled or wanted in self._discarded:
            return None
        zygote = self._choose(wanted)
        pids: list[int] = []
        try:
            for start in range(0, len(births), MAX_BIRTHS):
                end = start + MAX_BIRTHS
                pids += await zygote.fork(list(births[start:end]), fds[start * FDS_PER_ACTOR:end * FDS_PER_ACTOR])
        except UnfitError as exc:
            self._discard(zygote, str(exc))
            return None
        except ZygoteDiedError:
            self._drop(zygote)
            raise
        return pids

    async def close(self) -> None:
        """Kill all zygotes; their actors live on."""
        zygotes = list(self._zygotes.values())
        self._zygotes.clear()
        for zygote in zygotes:
            await zygote.close()

    def _choose(self, wanted: frozenset[str]) -> _Zygote:
        """The smallest zygote that has what is wanted, else a new one."""
        fitting = [modules for modules in self._zygotes if wanted <= modules]
        if fitting:
            return self._zygotes[min(fitting, key=len)]
        zygote = _Zygote(wanted, self._watcher, self._lineage, self._session_dir, self._limits, on_unfit=self._discard, on_gone=self._drop)
        self._zygotes[wanted] = zygote
        return zygote

    def _discard(self, zygote: _Zygote, reason: str) -> None:
        if zygote.modules not in self._discarded:
            self._discarded.add(zygote.modules)
            names = ", ".join(sorted(zygote.modules)) or "nothing but the runtime"
            logger.warning("the zygote with %s preloaded is discarded: %s. Actors that want this set are started by exec, which is slower.",
                           names, reason)
        self._drop(zygote)

    def _drop(self, zygote: _Zygote) -> None:
        if self._zygotes.get(zygote.modules) is zygote:
            del self._zygotes[zygote.modules]
        zygote.kill()


class _Zygote:
    """One zygote process as its daemon sees it. One task reads its answers; requests go one at a time."""

    def __init__(self, modules: frozenset[str], watcher: Watcher, lineage: Lineage, session_dir: Path, limits: Limits, *,
                 on_unfit: Callable[[_Zygote, str], None], on_gone: Callable[[_Zygote], None]) -> None:
        self.modules = modules
        self.is_busy = False
        self._limits = limits
        self._on_unfit = on_unfit
        self._on_gone = on_gone
        self._turn = asyncio.Lock()
        self._is_gone = asyncio.Event()
        self.ready = self._awaited = _future()
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        options = ZygoteOptions(os.getpid(), tuple(sorted(modules)), str(session_dir), lineage.marker())
        env = {**os.environ, **FORCED_ENV, MARKER: lineage.marker()}
        with theirs:
            self.pid = start_python("main", [json.dumps(dataclasses.asdict(options))], env=env, fds=[theirs.fileno()], output_fd=STDERR)
        watcher.watch(self.pid, self._on_exit)
        self._reader = asyncio.create_task(self._read_answers(), name=f"answers of zygote {self.pid}")

    async def fork(self, births: list[Birth], fds: Sequence[int]) -> list[int]:
        """The pids of the births. Raises: UnfitError, ZygoteDiedError, ActorStartError."""
        async with self._turn:
            await asyncio.shield(self.ready)
            self.is_busy = True
            try:
                async with asyncio.timeout(self._limits.start_s):
                    answer = await self._ask(pack_request(births), fds)
            except TimeoutError as exc:
                raise ZygoteDiedError(f"zygote {self.pid} did not answer within {self._limits.start_s:g} s") from exc
            finally:
                self.is_busy = False
        pids = answer["pids"]
        if len(pids) < len(births):
            for pid in pids:
                kill_group(pid)
            raise ActorStartError(f"{len(births)} actors could not be started: fork number {len(pids) + 1} failed "
                                  f"({os.strerror(answer['errno'])}). Free memory or raise the limit of processes (ulimit -u).")
        return pids

    def kill(self) -> None:
        """End the process; who waits for it gets an error."""
        if not self._is_gone.is_set():
            kill_group(self.pid)

    async def close(self) -> None:
        """End the process and wait until it is gone."""
        self.kill()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._is_gone.wait()

    async def _ask(self, request: bytes, fds: Sequence[int]) -> _Answer:
        loop = asyncio.get_running_loop()
        answer = self._awaited = _future()
        try:
            sent = socket.send_fds(self._socket, [request], fds)
            await loop.sock_sendall(self._socket, request[sent:])
        except OSError as exc:
            raise ZygoteDiedError(f"zygote {self.pid} is gone: {exc}") from exc
        return await answer

    async def _read_answers(self) -> None:
        """Until the process ends or turns out unfit; the socket is closed here, when nobody reads it any more."""
        try:
            async with asyncio.timeout(self._limits.start_s):
                self.ready.set_result(await self._answer())
            while True:
                answer = await self._answer()
                if not self._awaited.done():  # who asked may have lost patience
                    self._awaited.set_result(answer)
        except TimeoutError:
            self._fail(UnfitError(f"it was not ready within {self._limits.start_s:g} s"))
        except (UnfitError, ZygoteDiedError) as exc:
            self._fail(exc)
        finally:
            self._socket.close()

    def _fail(self, error: UnfitError | ZygoteDiedError) -> None:
        for future in {self.ready, self._awaited}:
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may be waiting: that is no mistake
        if isinstance(error, UnfitError):
            self._on_unfit(self, str(error))

    async def _answer(self) -> _Answer:
        (size,) = LENGTH.unpack(await self._read(LENGTH.size))
        answer = msgpack.unpackb(await self._read(size))
        if answer.get("error"):
            raise UnfitError(answer["error"])
        return cast(_Answer, answer)

    async def _read(self, num_bytes: int) -> bytes:
        data = bytearray()
        loop = asyncio.get_running_loop()
        while len(data) < num_bytes:
            try:
                chunk = await loop.sock_recv(self._socket, num_bytes - len(data))
            except OSError as exc:
                raise ZygoteDiedError(f"zygote {self.pid} is gone: {exc}") from exc
            if not chunk:
                raise ZygoteDiedError(f"zygote {self.pid} ended")
            data += chunk
        return bytes(data)

    def _on_exit(self, ended: Exit) -> None:
        self._is_gone.set()
        self._on_gone(self)


def _future() -> asyncio.Future[_Answer]:
    return asyncio.get_running_loop().create_future()
