"""A run directory on any filesystem that fsspec knows (object stores, memory, SFTP), or on one that the user passes.

Object stores have no directories and no rename: a file appears whole when its upload ends, which is all that the commit protocol needs.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

from train.storage import COPY_BYTES, FileFacts, Storage, split_scheme, storage_access

__all__ = ["FsspecStorage", "as_fsspec"]


def as_fsspec(filesystem: Any) -> Any:
    """An fsspec filesystem for whatever the user passed (fsspec's own, or pyarrow's).

    Raises: ArgumentTypeError: it is neither.
    """
    import fsspec

    if isinstance(filesystem, fsspec.AbstractFileSystem):
        return filesystem
    if type(filesystem).__module__.startswith("pyarrow"):
        from fsspec.implementations.arrow import ArrowFSWrapper

        return ArrowFSWrapper(filesystem)
    from runtime.errors import ArgumentTypeError

    raise ArgumentTypeError(f"got {type(filesystem).__name__} as a filesystem; pass an fsspec or pyarrow filesystem, or a URL as path.")


class FsspecStorage(Storage):
    """``url`` is a URL, or with ``filesystem`` a path of it."""

    def __init__(self, url: str, run_name: str, filesystem: Any = None) -> None:
        if filesystem is None:
            import fsspec

            with storage_access("open storage", url):
                self.filesystem, path = fsspec.url_to_fs(url)
        else:
            self.filesystem, path = as_fsspec(filesystem), split_scheme(url)[1]
        self._given = filesystem
        super().__init__(path, run_name)

    @property
    def user_filesystem(self) -> Any:
        """The one that was given, so that pyarrow users get theirs back."""
        return self._given if self._given is not None else self.filesystem

    def make_run(self, *, exclusive: bool) -> None:
        """Exclusive only as far as a look before can tell: object stores have no directories."""
        with storage_access("create run directory", self.path):
            taken = exclusive and self.filesystem.exists(self.path)
            if not taken:
                self.filesystem.makedirs(self.path, exist_ok=True)
        if taken:
            raise FileExistsError(self.path)

    def make_dir(self, name: str) -> None:
        """As ``make_run``."""
        with storage_access("create", self.at(name)):
            taken = self.filesystem.exists(self.at(name))
            if not taken:
                self.filesystem.makedirs(self.at(name), exist_ok=True)
        if taken:
            raise FileExistsError(self.at(name))

    def read(self, name: str) -> bytes | None:
        """As a whole, past fsspec's caches."""
        with storage_access("read", self.at(name)):
            self.filesystem.invalidate_cache()
            try:
                return bytes(self.filesystem.cat_file(self.at(name)))
            except FileNotFoundError:
                return None

    def replace(self, name: str, data: bytes) -> None:
        """One put, which object stores show whole or not at all."""
        with storage_access("write", self.at(name)):
            self.filesystem.pipe_file(self.at(name), data)

    def put(self, source: str, name: str) -> FileFacts:
        """Streamed, hashed on the way."""
        target = self.at(name)
        with storage_access("write", target):
            with contextlib.suppress(FileExistsError):
                self.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
            digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(COPY_BYTES))
            with open(source, "rb", buffering=0) as reader, self.filesystem.open(target, "wb") as writer:
                while count := reader.readinto(buffer):
                    digest.update(buffer[:count])
                    writer.write(bytes(buffer[:count]))
                    size += count
        return FileFacts(size, digest.hexdigest())

    def append(self, name: str, source: str, heading: str) -> None:
        """By writing all of it anew: object stores can't append."""
        with storage_access("append to", self.at(name)), open(source, "rb") as reader:
            self.filesystem.pipe_file(self.at(name), (self.read(name) or b"") + heading.encode() + reader.read())

    def files(self, name: str) -> dict[str, int]:
        """By ``find``."""
        base = self.at(name)
        with storage_access("list", base):
            self.filesystem.invalidate_cache()
            try:
                found = self.filesystem.find(base, detail=True)
            except FileNotFoundError:
                return {}
        prefix = self.filesystem._strip_protocol(base).rstrip("/") + "/"
        return {path.removeprefix(prefix): int(info["size"] or 0) for path, info in found.items() if path.startswith(prefix)}

    def sync(self, name: str) -> None:
        """Nothing to do: an upload that has ended is durable."""

    def exists(self, name: str) -> bool:
        """Past fsspec's caches."""
        with storage_access("look for", self.at(name)):
            self.filesystem.invalidate_cache()
            return bool(self.filesystem.exists(self.at(name)))

    def remove(self, name: str) -> None:
        """Recursively."""
        with storage_access("remove", self.at(name)), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(self.at(name), recursive=True)
