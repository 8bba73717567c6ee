"""Bytes that a distribution and what it requires take on disk beside torch and what torch requires: ``installed_size.py headway``."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def closure(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """The distributions that have to be installed for this one; empty if it is not installed itself."""
    found: set[str] = set()
    todo = [(name, extras)]
    while todo:
        name, extras = todo.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        name = distribution.metadata["Name"].lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for requirement in map(Requirement, distribution.requires or ()):
            wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
            if wanted:
                todo.append((requirement.name, frozenset(requirement.extras)))
    return found


def size(name: str) -> int:
    """Bytes of the files of a distribution; those of an editable one are looked up beside the package that it names."""
    files = [Path(str(file.locate())) for file in metadata.distribution(name).files or ()]
    if any(file.name.startswith("__editable__") for file in files):
        folders = {Path(folder) for package in ("runtime", "train", "lightning_ext") for folder in __import__(package).__path__}
        files += [file for folder in folders for file in folder.rglob("*") if "__pycache__" not in file.parts]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    wanted = Requirement(sys.argv[1])
    parts = {name: size(name) for name in closure(wanted.name, frozenset(wanted.extras)) - closure("torch")}
    print(json.dumps(parts))
