"""Which installed modules a training function needs, so that processes for its ranks can be forked with them imported.

Only installed packages count (site-packages): a module beside the script may be edited between two runs and must not go stale. The answer
is a guess that costs nothing when wrong: what it lacks is imported by the rank itself.
"""

from __future__ import annotations

import dis
import importlib.util
import os
import site
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["modules_of"]

# Functions and classes of the user that are looked into: more than scripts have, and an end for generated code.
MAX_OBJECTS = 1000
OURS = ("runtime", "train", "lightning_ext")


def modules_of(*roots: object) -> tuple[str, ...]:
    """Top-level names of the installed packages that these functions (and the user's functions and classes they name) refer to, sorted."""
    found: set[str] = set()
    seen: set[int] = set()
    todo = list(roots)
    while todo and len(seen) < MAX_OBJECTS:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        top = name.partition(".")[0] if isinstance(name, str) else ""
        if _is_installed(top):
            found.add(top)
        elif top in OURS:
            continue  # its needs are the backend's business
        elif not isinstance(value, types.ModuleType):
            todo += _parts(value, found)
    return tuple(sorted(found))


def _parts(value: Any, found: set[str]) -> Iterator[object]:
    """What a function or class of the user refers to; names that it imports go to ``found``."""
    if isinstance(value, type):
        yield from value.__bases__
        yield from (part for part in vars(value).values() if callable(part) or isinstance(part, property | staticmethod | classmethod))
        return
    function = _function_of(value)
    if function is None:
        return
    for code in _codes(function.__code__):
        for name in code.co_names:
            if name in function.__globals__:
                yield function.__globals__[name]
        found |= {top for top in (str(i.argval).partition(".")[0] for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME")
                  if _is_installed(top)}
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _function_of(value: Any) -> types.FunctionType | None:
    for attribute in ("func", "fget", "__func__", "__wrapped__"):  # partial, property, bound and static methods, decorated functions
        inner: Callable[..., Any] | None = getattr(value, attribute, None)
        if isinstance(inner, types.FunctionType):
            return inner
    return value if isinstance(value, types.FunctionType) else None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_installed(top: str) -> bool:
    if not top or top in sys.stdlib_module_names or top == "__main__" or top in OURS:
        return False
    module = sys.modules.get(top)
    try:
        spec = module.__spec__ if module is not None else importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = list(spec.submodule_search_locations or []) if spec else []
    if spec is not None and spec.origin:
        places.append(spec.origin)
    return any(place.startswith(_INSTALLED) for place in places)


def _installed_folders() -> tuple[str, ...]:
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages(), site.getusersitepackages()}
    return tuple(folder.rstrip(os.sep) + os.sep for folder in folders if folder)


_INSTALLED = _installed_folders()
