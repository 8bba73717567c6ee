"""What makes a checkpoint whole: the manifests of its ranks, and ``COMMITTED``, which the controller writes last.

Manifests are exchanged before bytes, so that no two ranks write one name. Ranks write in place; a directory counts only when its marker is
there and every file that it lists has the size that it lists. Nothing is renamed, so the same protocol serves local disks, NFS and object
stores. ``.metadata.json`` is stored and not listed: users may change it later.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from train.checkpoint import MARKER, METADATA_FILE
from train.errors import CheckpointError, ReportError
from train.metrics import encode_json
from train.storage import FileFacts, Storage

__all__ = ["FileEntry", "Marker", "assign_files", "manifest_of", "marked_files", "remove_checkpoint", "verify", "write_files",
           "write_marker"]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file that a rank offers: its name relative to the checkpoint, with ``/``, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Marker:
    """Content of ``COMMITTED``. ``files``: {name: {"size", "sha256", "rank"}}."""

    run: str
    attempt: int
    report_index: int
    metrics: dict[str, Any]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    def encode(self) -> bytes:
        """As JSON, with a digest of itself."""
        body = json.loads(encode_json(asdict(self)))  # what a reader will have, and therefore hash
        return encode_json({"marker": body, "sha256": _digest(body)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Marker:
        """The marker of these bytes.

        Raises: ValueError: they are none, or were changed or cut.
        """
        try:
            outer = json.loads(data)
            body = outer["marker"]
            if _digest(body) != outer["sha256"]:
                raise ValueError("its digest does not fit its content")
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']!r} is not {FORMAT}: it was written by another version")
            return cls(**body)
        except (KeyError, TypeError, UnicodeDecodeError) as exc:
            raise ValueError(f"it is no marker ({type(exc).__name__}: {exc})") from exc


def _digest(body: Any) -> str:
    return hashlib.sha256(encode_json(body).encode()).hexdigest()


def manifest_of(directory: str) -> tuple[FileEntry, ...]:
    """All files of a local directory; links are followed; an old marker of ours at its root is left out.

    Raises: CheckpointError: something in it is no regular file, or is called like our marker.
    """
    entries = []

    def fail(exc: OSError) -> None:
        raise CheckpointError(f"cannot list the checkpoint directory {directory!r} ({exc.strerror or exc}).") from exc

    for folder, _, names in os.walk(directory, onerror=fail, followlinks=True):
        for name in names:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, directory).replace(os.sep, "/")
            try:
                facts = os.stat(path)
            except OSError as exc:
                raise CheckpointError(f"cannot read {path!r} of the reported checkpoint ({exc.strerror}).") from exc
            if not stat.S_ISREG(facts.st_mode):
                raise CheckpointError(f"{path!r} of the reported checkpoint is a socket, pipe or device, no regular file: remove it first.")
            if relative == MARKER:
                _check_old_marker(path)
                continue
            entries.append(FileEntry(relative, facts.st_size))
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _check_old_marker(path: str) -> None:
    try:
        with open(path, "rb") as file:
            Marker.decode(file.read())
    except ValueError as exc:
        raise CheckpointError(f"{path!r}: the name {MARKER!r} at the root of a checkpoint is taken for its commit marker. "
                              "Give your file another name.") from exc


def assign_files(manifests: Mapping[int, tuple[FileEntry, ...]]) -> dict[int, tuple[str, ...]]:
    """Who writes what: each name goes to the lowest rank that offers it.

    Raises: ReportError: a name is unsafe, or is a file at one rank and a directory at another.
    """
    owner: dict[str, int] = {}
    for rank in sorted(manifests):
        for entry in manifests[rank]:
            parts = PurePosixPath(entry.name).parts
            if not parts or entry.name.startswith("/") or ".." in parts or "\0" in entry.name or entry.name == MARKER:
                raise ReportError(f"rank {rank} reported a checkpoint with the file name {entry.name!r:.200}, which is not allowed.")
            owner.setdefault(entry.name, rank)
    for name, rank in owner.items():
        for parent in PurePosixPath(name).parents:
            if str(parent) in owner:
                raise ReportError(f"rank {owner[str(parent)]} reported a checkpoint with the file {str(parent)!r}, which is a directory at "
                                  f"rank {rank} (with {name!r}).")
    return {rank: tuple(sorted(name for name, of in owner.items() if of == rank)) for rank in manifests}


def write_files(storage: Storage, checkpoint: str, directory: str, manifest: tuple[FileEntry, ...], names: tuple[str, ...]
                ) -> dict[str, FileFacts]:
    """In a rank: store these files of ``directory`` in the checkpoint.

    Raises: StorageError. CheckpointError: a file has changed since its manifest was made.
    """
    sizes = {entry.name: entry.size for entry in manifest}
    written = {}
    for name in names:
        facts = storage.put(os.path.join(directory, name), f"{checkpoint}/{name}")
        if facts.size != sizes[name]:
            raise CheckpointError(f"{name!r} had {sizes[name]} bytes when it was reported and {facts.size} when it was stored: something "
                                  f"still writes to {directory!r}. Call report() when all files are complete.")
        written[name] = facts
    return written


def write_marker(storage: Storage, checkpoint: str, marker: Marker) -> None:
    """In the controller, when all ranks have written: make the directory whole.

    Raises: StorageError.
    """
    storage.sync(checkpoint)
    storage.replace(f"{checkpoint}/{MARKER}", marker.encode())


def marked_files(written: Mapping[int, Mapping[str, FileFacts]]) -> dict[str, dict[str, Any]]:
    """``Marker.files`` of what the ranks wrote."""
    return {name: {"size": facts.size, "sha256": facts.sha256, "rank": rank}
            for rank in sorted(written) for name, facts in sorted(written[rank].items()) if name != METADATA_FILE}


def remove_checkpoint(storage: Storage, checkpoint: str) -> None:
    """Delete it, the marker first: a crash on the way leaves nothing that looks whole.

    Raises: StorageError.
    """
    storage.remove(f"{checkpoint}/{MARKER}")
    storage.remove(checkpoint)


def verify(storage: Storage, checkpoint: str) -> Marker:
    """The marker of a whole checkpoint.

    Raises: CheckpointError: it is not whole; the text says what is missing. StorageError.
    """
    data = storage.read(f"{checkpoint}/{MARKER}")
    if data is None:
        raise CheckpointError(f"{checkpoint} is incomplete (no {MARKER} marker).")
    try:
        marker = Marker.decode(data)
    except ValueError as exc:
        raise CheckpointError(f"{checkpoint} is damaged ({MARKER}: {exc}).") from exc
    found = storage.files(checkpoint)
    for name, facts in marker.files.items():
        if name not in found:
            raise CheckpointError(f"{checkpoint} is incomplete ({name!r} of rank {facts['rank']} is missing).")
        if found[name] != facts["size"]:
            raise CheckpointError(f"{checkpoint} is damaged ({name!r} of rank {facts['rank']} has {found[name]} of {facts['size']} bytes).")
    return marker
