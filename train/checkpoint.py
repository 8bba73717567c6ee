"""A reference to a directory that holds a checkpoint, on any filesystem; Ray's class of the same name.

Local checkpoints are used in place. Others are downloaded at most once a node: the processes of a node agree on the directory by the
checkpoint's id, which travels with it, and on who downloads by a file lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from runtime.errors import ArgumentTypeError
from train.storage import split_scheme, storage_access

__all__ = ["MARKER", "METADATA_FILE", "Checkpoint"]

METADATA_FILE = ".metadata.json"
MARKER = "COMMITTED"  # written last by the controller; no part of what the user stored
_GONE = {
    "from_dict": "write the dict to a file in a directory and use Checkpoint.from_directory(directory)",
    "to_dict": "read the file that you wrote: with checkpoint.as_directory() as directory: ...",
    "from_bytes": "write the bytes to a file in a directory and use Checkpoint.from_directory(directory)",
    "to_bytes": "read the file that you wrote: with checkpoint.as_directory() as directory: ...",
    "from_uri": "use Checkpoint(uri)",
    "to_uri": "use checkpoint.path and checkpoint.filesystem",
    "uri": "use checkpoint.path and checkpoint.filesystem",
    "get_preprocessor": "store the preprocessor in the directory, or use checkpoint.set_metadata(...)",
    "set_preprocessor": "store the preprocessor in the directory, or use checkpoint.set_metadata(...)",
    "get_internal_representation": "use checkpoint.path and checkpoint.filesystem",
}


class _Migration(type):
    """Class attributes of old releases raise with a recipe."""

    def __getattr__(cls, name: str) -> NoReturn:
        raise AttributeError(_missing(cls.__name__, name))


def _missing(owner: str, name: str) -> str:
    recipe = _GONE.get(name)
    return f"{owner} has no {name!r}" + (f": {recipe}." if recipe else ".")


class Checkpoint(metaclass=_Migration):
    """A directory, local or not.

    Args:
        path: a local path, a URL, or with ``filesystem`` a path of that.
        filesystem: an fsspec or pyarrow filesystem; by default the one of the URL's scheme, or the local one.
    """

    def __init__(self, path: str | os.PathLike[str], filesystem: Any = None) -> None:
        if not isinstance(path, str | os.PathLike):
            raise ArgumentTypeError(f"Checkpoint(path={path!r:.80}): got {type(path).__name__}; pass a path or a URL as text.")
        text = os.fspath(path)
        scheme, rest = split_scheme(text)
        if filesystem is None and scheme not in ("", "file", "local"):
            import fsspec

            with storage_access("open", text):
                filesystem, rest = fsspec.url_to_fs(text)
        self._filesystem = filesystem
        self.path = os.path.abspath(os.path.expanduser(rest)) if self._is_local else rest.rstrip("/")
        self._id = uuid.uuid4().hex

    @property
    def filesystem(self) -> Any:
        """The fsspec (or the user's pyarrow) filesystem that ``path`` is a path of."""
        if self._filesystem is None:
            import fsspec

            return fsspec.filesystem("file")
        return self._filesystem

    @property
    def _is_local(self) -> bool:
        filesystem = self._filesystem
        return filesystem is None or type(filesystem).__name__ == "LocalFileSystem"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(_missing("Checkpoint", name))

    def __repr__(self) -> str:
        where = "local" if self._is_local else getattr(self._filesystem, "protocol", None) or type(self._filesystem).__name__
        return f"Checkpoint(filesystem={where[0] if isinstance(where, tuple) else where}, path={self.path})"

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """A checkpoint of a local directory, which is not copied.

        Raises: FileNotFoundError, NotADirectoryError.
        """
        made = cls(path)
        if made._is_local and not os.path.isdir(made.path):
            if os.path.exists(made.path):
                raise NotADirectoryError(f"Checkpoint.from_directory({made.path!r}): it is a file. Put it into a directory and pass that.")
            raise FileNotFoundError(f"Checkpoint.from_directory({made.path!r}): there is no such directory on this host. "
                                    "Create and fill it before you report it.")
        return made

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> str:
        """Copy the files to a local directory and return its path; by default one in the temporary directory, the same in all processes."""
        if path is not None:
            target = os.path.abspath(os.fspath(path))
            os.makedirs(target, exist_ok=True)
            self._copy_to(target)
            return target
        with _locked(f"{self._temporary}.lock"):
            if not os.path.exists(f"{self._temporary}.done"):
                os.makedirs(self._temporary, mode=0o700, exist_ok=True)
                self._copy_to(self._temporary)
                Path(f"{self._temporary}.done").touch()
        return self._temporary

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        """The files as a local directory: in place when they are local, else a copy that the last of its readers on this node removes."""
        if self._is_local:
            yield self.path
            return
        reader = f"{self._temporary}.del_lock_{os.getpid()}_{uuid.uuid4().hex[:8]}"
        Path(reader).touch()
        try:
            yield self.to_directory()
        finally:
            with _locked(f"{self._temporary}.lock"):
                os.unlink(reader)
                if not _siblings(self._temporary, ".del_lock_"):
                    for leftover in _siblings(self._temporary, ".done"):
                        os.unlink(leftover)
                    shutil.rmtree(self._temporary, ignore_errors=True)
                    os.unlink(f"{self._temporary}.lock")

    @property
    def _temporary(self) -> str:
        return os.path.join(tempfile.gettempdir(), f"checkpoint_tmp_{self._id}")

    def _copy_to(self, target: str) -> None:
        if self._is_local:
            if not os.path.isdir(self.path):
                raise FileNotFoundError(f"{self!r} does not exist on this host.")
            shutil.copytree(self.path, target, dirs_exist_ok=True, ignore=lambda folder, _: [MARKER] if folder == self.path else [])
            return
        from train.storage_fsspec import as_fsspec

        filesystem = as_fsspec(self._filesystem)
        with storage_access("download", self.path):
            filesystem.invalidate_cache()
            base = filesystem._strip_protocol(self.path).rstrip("/") + "/"
            for source in filesystem.find(self.path):
                name = source.removeprefix(base)
                if name != MARKER:
                    os.makedirs(os.path.dirname(os.path.join(target, name)), exist_ok=True)
                    filesystem.get_file(source, os.path.join(target, name))

    def get_metadata(self) -> dict[str, Any]:
        """The metadata stored with the checkpoint; empty if there is none."""
        data = self._read(METADATA_FILE)
        found = json.loads(data) if data else {}
        return found if isinstance(found, dict) else {}

    def set_metadata(self, metadata: dict[str, Any]) -> None:
        """Replace the metadata; values must be what JSON can hold."""
        self._write(METADATA_FILE, json.dumps(metadata).encode())

    def update_metadata(self, metadata: dict[str, Any]) -> None:
        """Merge into the metadata; new values win."""
        self.set_metadata({**self.get_metadata(), **metadata})

    def _read(self, name: str) -> bytes | None:
        try:
            if self._is_local:
                return Path(self.path, name).read_bytes()
            from train.storage_fsspec import as_fsspec

            return bytes(as_fsspec(self._filesystem).cat_file(f"{self.path}/{name}"))
        except FileNotFoundError:
            return None

    def _write(self, name: str, data: bytes) -> None:
        if self._is_local:
            temporary = Path(self.path, f"{name}.{uuid.uuid4().hex[:8]}.tmp")
            temporary.write_bytes(data)
            temporary.replace(Path(self.path, name))
            return
        from train.storage_fsspec import as_fsspec

        as_fsspec(self._filesystem).pipe_file(f"{self.path}/{name}", data)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_same_file(descriptor, path):
                continue  # the last reader removed the lock file while this process waited for it
            yield
            return
        finally:
            os.close(descriptor)


def _is_same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _siblings(path: str, suffix: str) -> list[str]:
    folder, base = os.path.split(path)
    return [os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(base + suffix)]
