"""Where a run lives: one directory ``<storage_path>/<run name>``, local by plain ``os`` calls with fsync, any other scheme through fsspec.

A ``Storage`` knows one run directory; names are relative to it, with ``/`` between parts. It is picklable: ranks write their files of a
checkpoint straight into the directory that the controller named. What makes a checkpoint whole is in ``train.commit``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import ArgumentError, ArgumentTypeError, HeadwayError
from train.errors import StorageError

if TYPE_CHECKING:
    from train.checkpoint import Checkpoint

__all__ = [
    "DEFAULT_STORAGE_PATH", "LOGS_DIR", "RESERVED_NAMES", "FileFacts", "LocalStorage", "OpenedRun", "Storage", "check_storage_path",
    "log_name", "open_existing", "open_run", "split_scheme", "storage_access",
]

DEFAULT_STORAGE_PATH = "~/headway_results"
LOGS_DIR = "logs"
RESERVED_NAMES = frozenset({LOGS_DIR, "metrics.jsonl", "checkpoint_index.json"})  # of the run directory; no checkpoint can have them
# 4 MiB: large enough that the calls cost nothing beside hashing and writing, small enough to stay in cache.
COPY_BYTES = 4 * 1024 * 1024


def log_name(rank: int) -> str:
    """Where a rank's output is kept in the run directory."""
    return f"{LOGS_DIR}/rank_{rank}.log"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Size and SHA-256 (hexadecimal) of a stored file.

    SHA-256 is the faster of the strong digests where the processor has instructions for it (1.2 GB/s against 0.9 of BLAKE2b), and about as
    fast as a local disk takes data elsewhere.
    """

    size: int
    sha256: str


@contextlib.contextmanager
def storage_access(doing: str, path: str) -> Iterator[None]:
    """Turn whatever a filesystem raises into a StorageError that says what was being done, where, and as whom."""
    try:
        yield
    except HeadwayError:
        raise
    except Exception as exc:  # object stores raise classes of their own
        reason = getattr(exc, "strerror", None) or f"{type(exc).__name__}: {exc}"
        hint = ""
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f", {_free_bytes(path)}"
        elif isinstance(exc, PermissionError):
            hint = f", uid {os.getuid()}"
        raise StorageError(f"cannot {doing} {path!r} ({reason}{hint}).") from exc


def _free_bytes(path: str) -> str:
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(path).free} bytes free"
    return "free space unknown"


class Storage(ABC):
    """One run directory.

    ``path`` is what users see (``Result.path``); ``filesystem`` is the fsspec filesystem that it is a path of.
    """

    def __init__(self, root: str, run_name: str) -> None:
        self.root = root.rstrip("/") or "/"
        self.run_name = run_name
        self.path = self.root.rstrip("/") + "/" + run_name

    def at(self, name: str) -> str:
        """The full path of a name of this run; of the run directory for an empty one."""
        return f"{self.path}/{name}" if name else self.path

    def checkpoint(self, name: str) -> Checkpoint:
        """The stored checkpoint of this name, as users get it."""
        from train.checkpoint import Checkpoint

        return Checkpoint(self.at(name), self.user_filesystem)

    @property
    def user_filesystem(self) -> Any:
        """What ``Checkpoint.filesystem`` and ``Result.filesystem`` are made of; None is the local one."""
        return None

    @abstractmethod
    def make_run(self, *, exclusive: bool) -> None:
        """Make the run directory.

        Raises: FileExistsError: ``exclusive`` and it exists. StorageError.
        """

    @abstractmethod
    def make_dir(self, name: str) -> None:
        """Make a directory that must not exist yet, durably.

        Raises: FileExistsError, StorageError.
        """

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Write a file durably; readers see the old content or the new one, never a part."""

    @abstractmethod
    def put(self, source: str, name: str) -> FileFacts:
        """Copy the local file ``source``, durably but for the directory's entry (``sync``)."""

    @abstractmethod
    def append(self, name: str, source: str, heading: str) -> None:
        """Append ``heading`` and the local file ``source`` to a file, making it if need be; not durable at once."""

    @abstractmethod
    def files(self, name: str) -> dict[str, int]:
        """Sizes of all files below the directory ``name``, by names relative to it; empty if there is none."""

    @abstractmethod
    def sync(self, name: str) -> None:
        """Make the entries of the directory ``name`` and of those below it durable."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file or directory of this name."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a directory with all below it; nothing happens if there is none."""

    def probe(self) -> None:
        """Write, read and delete a file in the run directory.

        Raises: StorageError: one of these failed; the text says what to do.
        """
        name, nonce = f".headway_probe_{secrets.token_hex(8)}", secrets.token_bytes(16)
        try:
            self.replace(name, nonce)
            found = self.read(name)
            self.remove(name)
        except StorageError as exc:
            raise StorageError(f"{str(exc).rstrip('.')}: checkpoints could not be stored there. Choose another RunConfig(storage_path=...) "
                               "or give this user access.") from exc
        if found != nonce:
            raise StorageError(f"{self.at(name)!r} was written and reads back differently: this storage can't keep checkpoints. "
                               "Choose another RunConfig(storage_path=...).")


class LocalStorage(Storage):
    """A directory of this host or a shared one (NFS)."""

    def make_run(self, *, exclusive: bool) -> None:
        """``os.mkdir``, which is exclusive by itself."""
        with storage_access("create run directory", self.path):
            os.makedirs(self.root, exist_ok=True)
        try:
            os.mkdir(self.path)
        except FileExistsError:
            if exclusive or not os.path.isdir(self.path):
                raise
        except OSError:
            with storage_access("create run directory", self.path):
                raise
        else:
            _fsync_dir(self.root)

    def make_dir(self, name: str) -> None:
        """``os.mkdir`` and fsync of the run directory."""
        try:
            os.mkdir(self.at(name))
        except FileExistsError:
            raise
        except OSError:
            with storage_access("create", self.at(name)):
                raise
        _fsync_dir(self.path)

    def read(self, name: str) -> bytes | None:
        """As a whole."""
        with storage_access("read", self.at(name)):
            try:
                with open(self.at(name), "rb") as file:
                    return file.read()
            except FileNotFoundError:
                return None

    def replace(self, name: str, data: bytes) -> None:
        """Temporary file, fsync, rename, fsync of the directory."""
        target = self.at(name)
        temporary = f"{target}.{secrets.token_hex(4)}.tmp"
        with storage_access("write", target):
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            _fsync_dir(os.path.dirname(target))

    def put(self, source: str, name: str) -> FileFacts:
        """Read once for copying and hashing; never a link, for the user may change the original."""
        target = self.at(name)
        with storage_access("write", target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(COPY_BYTES))
            with open(source, "rb", buffering=0) as reader, open(target, "wb") as writer:
                while count := reader.readinto(buffer):
                    digest.update(buffer[:count])
                    writer.write(buffer[:count])
                    size += count
                writer.flush()
                os.fsync(writer.fileno())
        return FileFacts(size, digest.hexdigest())

    def append(self, name: str, source: str, heading: str) -> None:
        """In place."""
        with storage_access("append to", self.at(name)):
            os.makedirs(os.path.dirname(self.at(name)), exist_ok=True)
            with open(source, "rb") as reader, open(self.at(name), "ab") as writer:
                writer.write(heading.encode())
                shutil.copyfileobj(reader, writer)

    def files(self, name: str) -> dict[str, int]:
        """By ``os.walk``."""
        base = self.at(name)
        with storage_access("list", base):
            return {os.path.relpath(os.path.join(folder, file), base).replace(os.sep, "/"): os.path.getsize(os.path.join(folder, file))
                    for folder, _, names in os.walk(base) for file in names}

    def sync(self, name: str) -> None:
        """Every directory by fsync, the innermost first."""
        with storage_access("sync", self.at(name)):
            for folder, _, _ in os.walk(self.at(name), topdown=False):
                _fsync_dir(folder)

    def exists(self, name: str) -> bool:
        """Also true for a dangling link."""
        return os.path.lexists(self.at(name))

    def remove(self, name: str) -> None:
        """Links are removed, never followed."""
        target = self.at(name)
        with storage_access("remove", target):
            if os.path.isdir(target) and not os.path.islink(target):
                shutil.rmtree(target)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)


def _fsync_dir(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network filesystems can't sync directories and need not
            raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run directory that exists and takes files. ``is_new``: nobody named it, so nothing can be in it."""

    storage: Storage
    is_new: bool


def open_run(name: str | None, storage_path: str | os.PathLike[str] | None, filesystem: Any = None) -> OpenedRun:
    """Make or find the run directory and probe it. Without a name a new one is made exclusively, with a suffix on collision.

    Raises: StorageError: it can't be made, written, read or deleted from.
    """
    if name is not None:
        storage = _storage(storage_path, filesystem, name)
        try:
            storage.make_run(exclusive=False)
        except FileExistsError as exc:
            raise StorageError(f"{storage.path!r} exists and is no directory: choose another RunConfig(name=...).") from exc
    else:
        base = time.strftime("run-%Y-%m-%d_%H-%M-%S")
        number = 1
        while True:
            storage = _storage(storage_path, filesystem, base if number == 1 else f"{base}-{number}")
            try:
                storage.make_run(exclusive=True)
                break
            except FileExistsError:
                number += 1
    storage.probe()
    return OpenedRun(storage, is_new=name is None)


def open_existing(path: str, filesystem: Any = None) -> Storage:
    """The storage of a run directory that is there already (or is not: nothing is made)."""
    folder, _, name = path.rstrip("/").rpartition("/")
    return _storage(folder or ("/" if path.startswith("/") else "."), filesystem, name)


def _storage(path: str | os.PathLike[str] | None, filesystem: Any, name: str) -> Storage:
    text = os.fspath(path) if path is not None else DEFAULT_STORAGE_PATH
    scheme, rest = split_scheme(text)
    if filesystem is None and scheme in ("", "file", "local"):
        return LocalStorage(os.path.abspath(os.path.expanduser(rest)), name)
    from train.storage_fsspec import FsspecStorage

    return FsspecStorage(text, name, filesystem)


def split_scheme(path: str) -> tuple[str, str]:
    """("s3", "bucket/x") of "s3://bucket/x"; ("", path) without a scheme. Of a chain ("a::b://x") the first counts, and nothing is cut."""
    head, separator, rest = path.partition("://")
    if not separator:
        return "", path
    return (head.split("::")[0], path) if "::" in head else (head, rest)


def check_storage_path(path: object, filesystem: object = None) -> None:
    """Raise unless ``path`` can name a storage: a path, or a URL of a scheme that fsspec knows and has the package for."""
    if path is None:
        return
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"RunConfig(storage_path={path!r:.80}): got {type(path).__name__}; pass a path or a URL as text.")
    text = os.fspath(path)
    if not isinstance(text, str) or not text.strip():
        raise ArgumentError(f"RunConfig(storage_path={text!r}): pass a path or a URL, or None for {DEFAULT_STORAGE_PATH}.")
    scheme, _ = split_scheme(text)
    if filesystem is None and scheme not in ("", "file", "local"):
        _check_scheme(scheme, text)


def _check_scheme(scheme: str, text: str) -> None:
    import importlib.util

    from fsspec.registry import get_filesystem_class, known_implementations

    try:
        get_filesystem_class(scheme)
    except ImportError as exc:
        raise ArgumentError(f"RunConfig(storage_path={text!r}): scheme {scheme!r} needs another package: {exc}.") from exc
    except ValueError as exc:
        outside = {name for name, entry in known_implementations.items() if not entry["class"].startswith("fsspec.")
                   and (entry["class"].split(".")[0] in sys.modules or importlib.util.find_spec(entry["class"].split(".")[0]))}
        schemes = ", ".join(f"{name}://" for name in sorted({"file", "memory", *outside}))
        raise ArgumentError(f"RunConfig(storage_path={text!r}): scheme {scheme!r} is unknown: use a path, or one of the installed schemes "
                            f"{schemes} (s3:// needs the package s3fs, gs:// gcsfs).") from exc
