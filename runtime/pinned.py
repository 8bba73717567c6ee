"""Our top-level names stay ours: ``train`` and ``lightning_ext`` are loaded from beside this package, whatever ``sys.path`` says.

Users call their scripts ``train.py``, and then ``from train.torch import TorchTrainer`` would find the script. ``import runtime`` as its
first line, or ``headway run train.py``, prevents that. If a user's module was imported under one of our names before, it is displaced:
its attributes stay reachable through ours (``main.py`` may import its own ``train.py``, which imports us), and what it defines is
pickled by value.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["NAMES", "ROOT", "displaced", "displaced_hidden", "pin"]

NAMES = ("train", "lightning_ext")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

displaced: dict[str, ModuleType] = {}
_hidden = threading.local()


def pin() -> None:
    """Make ``import train`` and ``import lightning_ext`` ours in this process; only their light ``__init__`` runs."""
    for name in NAMES:
        file = os.path.join(ROOT, name, "__init__.py")
        found = sys.modules.get(name)
        if (found is not None and _file(found) == os.path.realpath(file)) or not os.path.exists(file):
            continue
        if found is not None:
            _displace(name, found)
        ours = _load(name, file)
        if name in displaced:
            _fall_back(ours, displaced[name])


@contextmanager
def displaced_hidden() -> Iterator[None]:
    """While this is held, the calling thread does not find a displaced module's names in ours: pickling must not refer to them."""
    _hidden.active = True
    try:
        yield
    finally:
        _hidden.active = False


def _file(module: ModuleType) -> str:
    return os.path.realpath(getattr(module, "__file__", None) or "")


def _displace(name: str, module: ModuleType) -> None:
    where = getattr(module, "__file__", None) or "without a file"
    sys.stderr.write(f"headway: your module {name!r} ({where}) has the name of one of ours, which displaces it; what it defines is sent "
                     "by value. Better rename it.\n")
    displaced[name] = module
    for key, part in list(sys.modules.items()):
        # A module that is still being imported (its first line was `import runtime`) must stay until that import ends.
        if key.startswith(f"{name}.") and not getattr(part.__spec__, "_initializing", False):
            displaced[key] = sys.modules.pop(key)


def _load(name: str, file: str) -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(name, file, submodule_search_locations=[os.path.dirname(file)])
    assert spec is not None and spec.loader is not None, file
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _fall_back(ours: ModuleType, theirs: ModuleType) -> None:
    own = vars(ours).get("__getattr__")

    def find(name: str) -> Any:
        error: Exception = AttributeError(f"module {ours.__name__!r} has no attribute {name!r}")
        if own is not None:
            try:
                return own(name)
            except (AttributeError, ImportError) as exc:
                error = exc
        if name in vars(theirs) and not name.startswith("__") and not getattr(_hidden, "active", False):
            return vars(theirs)[name]
        raise error

    vars(ours)["__getattr__"] = find
