"""The only file that pickles: values, calls, functions and exceptions to bytes and back.

Plain pickle (protocol 5) comes first, it is several times faster; cloudpickle is the fall-back. What lives in ``__main__`` goes by value,
because the other side's ``__main__`` is another one; so does a user's module that has the name of one of ours and was displaced by it
(runtime.pinned). Contiguous buffers of 64 KiB and more (NumPy arrays) stay outside the pickle, so that they cross the wire without further
copies. If something can't be pickled, the error names the argument and the captured variable that is to blame.
"""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from runtime.client.notice import say
from runtime.errors import ArgumentError, SerializationError
from runtime.limits import LIMITS
from runtime.pinned import displaced, displaced_hidden

__all__ = ["Buffer", "dumps", "dumps_actor", "dumps_call", "dumps_error", "dumps_function", "join_call", "loads", "loads_error"]

Buffer = bytes | memoryview

# 64 KiB: below it a copy is cheaper than a buffer of its own; also what a message carries inline (limits.inline_bytes).
OUT_OF_BAND_BYTES = 64 * 1024
# How deep the search for the culprit goes: deeper than people nest, shallow enough to end soon in cyclic object graphs.
SEARCH_DEPTH = 12


def dumps(value: object, *, what: str, parts: Iterable[tuple[str, object]] | None = None) -> list[Buffer]:
    """The pickle of ``value``, then its out-of-band buffers (copies: the caller may change the originals at once).

    Args: what: names the value in an error. parts: named pieces of the value, searched for the culprit instead of the whole.
    Raises: SerializationError: it can't be pickled; the text names the part and the variable to blame.
    """
    try:
        return _pickled(value)
    except Exception as exc:
        raise _explain(list(parts) if parts is not None else [(what, value)], what, exc) from exc


def dumps_call(args: tuple[Any, ...], kwargs: dict[str, Any], *, what: str) -> list[Buffer]:
    """Arguments of a call of ``what`` ("Counter.add"), as ``dumps``."""
    return dumps((args, kwargs), what=what, parts=_named_arguments(args, kwargs, what))


def dumps_actor(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str) -> list[Buffer]:
    """Class (or what loads as the class) and constructor arguments of an actor: the triple (cls, args, kwargs), as ``dumps``."""
    what = f"actor class {name}"
    return dumps((cls, args, kwargs), what=what, parts=[(what, cls), *_named_arguments(args, kwargs, name)])


def dumps_function(function: Callable[..., Any], what: str) -> bytes:
    """One pickle of a function with all that it captures.

    A line on stderr names the biggest captured values above 10 MiB (limits.function_warn_bytes).
    Raises: SerializationError: it can't be pickled. ArgumentError: it is bigger than 256 MiB (limits.function_max_bytes).
    """
    try:
        data = _pickle_in_band(function)
    except Exception as exc:
        raise _explain([(what, function)], what, exc) from exc
    if len(data) > LIMITS.function_warn_bytes:
        text = f"{what} pickles to {_mib(len(data))}, which is sent to every node. The biggest that it captures: {_biggest(function)}."
        if len(data) > LIMITS.function_max_bytes:
            raise ArgumentError(f"{text} The limit is {_mib(LIMITS.function_max_bytes)}: load or create big data inside the function.")
        say(f"{text} Load or create big data inside the function.")
    return data


def loads(data: Buffer | Sequence[Buffer]) -> Any:
    """The value of ``dumps`` or ``dumps_function``. Arrays are writable and the receiver's own."""
    if isinstance(data, (bytes, memoryview)):
        return pickle.loads(data)
    return pickle.loads(data[0], buffers=[bytearray(b) if memoryview(b).readonly else b for b in data[1:]])


def dumps_error(error: BaseException) -> bytes:
    """The pickle of an exception, checked to load again; empty when there is no way to keep its class.

    Many exception classes can be pickled and not loaded (their constructor wants other arguments than ``args``):
    these are rebuilt without calling their constructor.
    """
    for candidate in (error, _Rebuilt(error)):
        try:
            data = _pickle_in_band(candidate)
            if isinstance(pickle.loads(data), BaseException):
                return data
        except Exception:  # noqa: BLE001 - user code (__reduce__, __init__) runs here; the caller sends the error's text in any case
            continue
    return b""


def loads_error(data: Buffer | Sequence[Buffer]) -> BaseException | None:
    """The exception of ``dumps_error``; None when there is none or its class can't be loaded here."""
    if not isinstance(data, (bytes, memoryview)):
        data = data[0] if data else b""
    if not len(data):
        return None
    try:
        error = pickle.loads(data)
    except Exception:  # noqa: BLE001 - user code; the caller has the error's text
        return None
    return error if isinstance(error, BaseException) else None


class Placeholder:
    """Stands in pickled arguments for the ``index``-th value that another call of the same client is still working on."""

    def __init__(self, index: int) -> None:
        self.index = index


def join_call(call: Sequence[Buffer], values: Sequence[Sequence[Buffer]]) -> list[Buffer]:
    """Arguments pickled with placeholders, and the values (pickled by other actors) to fill in, as one call. Nothing is unpickled here."""
    pieces = (list(map(bytes, call)), [list(map(bytes, value)) for value in values])
    return [pickle.dumps(_Joined(pieces), 5)]


class _Joined:
    def __init__(self, pieces: tuple[list[bytes], list[list[bytes]]]) -> None:
        self._pieces = pieces

    def __reduce__(self) -> tuple[Any, ...]:
        return _fill_in, self._pieces


def _fill_in(call: list[bytes], values: list[list[bytes]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = loads(call)
    found = [loads(value) for value in values]

    def filled(value: Any) -> Any:
        return found[value.index] if type(value) is Placeholder else value

    return tuple(filled(value) for value in args), {name: filled(value) for name, value in kwargs.items()}


class _Rebuilt:
    """Pickles as an exception that is made without its class's ``__init__`` and without attributes that can't be pickled."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self._error).items() if not _fails(value)}
        return _rebuild_error, (type(self._error), self._error.args, state)


def _rebuild_error(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


# ---- pickling ----


def _pickled(value: object) -> list[Buffer]:
    buffers: list[Buffer] = []

    def keep_inside(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        buffers.append(raw if raw.readonly else bytes(raw))
        return False

    data = _plain(value, keep_inside)
    if data is None:
        buffers.clear()
        data = _by_value(value, keep_inside)
    return [data, *buffers]


def _pickle_in_band(value: object) -> bytes:
    data = _plain(value, None)
    return data if data is not None else _by_value(value, None)


def _plain(value: object, keep_inside: Callable[[pickle.PickleBuffer], bool] | None) -> bytes | None:
    """The plain pickle; None where cloudpickle has to do it: something is local, in ``__main__`` or of a module registered "by value"."""
    cloudpickle = sys.modules.get("cloudpickle")
    if displaced or (cloudpickle is not None and cloudpickle.cloudpickle.list_registry_pickle_by_value()):
        return None
    try:
        data = pickle.dumps(value, 5, buffer_callback=keep_inside)
    except Exception:  # noqa: BLE001 - user code; whatever it was, cloudpickle tries again and its error is the one reported
        return None
    return None if b"__main__" in data else data


def _by_value(value: object, keep_inside: Callable[[pickle.PickleBuffer], bool] | None) -> bytes:
    file = io.BytesIO()
    with displaced_hidden():
        _pickler_class()(file, protocol=5, buffer_callback=keep_inside).dump(value)
    return file.getvalue()


@functools.cache
def _pickler_class() -> Callable[..., Any]:
    """Pickler of cloudpickle (imported late: 20 ms) that sends displaced modules by value."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no annotations
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, types.ModuleType) and obj.__name__ in displaced:  # the user's, or ours through which it is reached
                theirs = vars(displaced[obj.__name__])
                state = {key: value for key, value in theirs.items() if not (key.startswith("__") and key.endswith("__"))}
                return _DisplacedModule, (obj.__name__,), state
            return super().reducer_override(obj)

    return Pickler


class _DisplacedModule(types.ModuleType):
    """A user's module on the other side; what it lacks is looked up in ours of that name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


# ---- naming the culprit ----


def _named_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> Iterator[tuple[str, object]]:
    yield from ((f"argument {i} of {what}", value) for i, value in enumerate(args))
    yield from ((f"argument {name!r} of {what}", value) for name, value in kwargs.items())


def _explain(parts: Sequence[tuple[str, object]], what: str, exc: Exception) -> SerializationError:
    for name, value in parts:
        if _fails(value):
            path, leaf = _culprit(value)
            return SerializationError(_describe(name, value, path, leaf, exc))
    return SerializationError(f"{what} can't be pickled: {type(exc).__name__}: {exc}")


def _describe(name: str, value: object, path: str, leaf: object, exc: Exception) -> str:
    leaf_type = f"{type(leaf).__module__}.{type(leaf).__qualname__}".removeprefix("builtins.")
    if not path:
        return f"{name} is a {leaf_type}, which cannot be sent ({exc}): create it on the other side."
    if callable(value):
        return f"{name} captures {path!r} ({leaf_type}), which cannot be sent: create it inside the {_kind(value)}."
    return f"{name} holds {path!r} ({leaf_type}), which cannot be sent: leave it out, or create it on the other side."


def _kind(value: object) -> str:
    return "class" if isinstance(value, type) else "function"


def _fails(value: object) -> bool:
    try:
        _pickle_in_band(value)
    except Exception:  # noqa: BLE001 - user code; that it fails is the answer
        return True
    return False


def _culprit(value: object) -> tuple[str, object]:
    """Path to and value of the innermost thing that can't be pickled; the path is empty when it is ``value`` itself."""
    path = ""
    seen = {id(value)}
    for _ in range(SEARCH_DEPTH):
        for step, child in _children(value):
            if id(child) not in seen and _fails(child):
                path, value = (path + step if path else step.removeprefix(".")), child
                seen.add(id(child))
                break
        else:
            break
    return path, value


def _children(value: object) -> Iterator[tuple[str, object]]:
    """What a pickle of ``value`` would have to hold, each with the step that leads there as it would be written in Python."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", child) for key, child in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", child) for i, child in enumerate(value))
    elif isinstance(value, types.FunctionType):
        yield from ((f".{name}", child) for name, child in _captured(value).items())
    elif isinstance(value, types.MethodType):
        yield from ((".self", value.__self__), (".__func__", value.__func__))
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, (classmethod, staticmethod)):
        yield ".__func__", value.__func__
    elif isinstance(value, (type, types.ModuleType)) or hasattr(value, "__dict__"):
        hidden = ("__dict__", "__weakref__") if isinstance(value, type) else ()
        yield from ((f".{name}", child) for name, child in list(vars(value).items()) if name not in hidden)


def _captured(function: types.FunctionType) -> dict[str, object]:
    """Closure variables, globals in use and defaults of a function, by name."""
    found: dict[str, object] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    found.update({name: function.__globals__[name] for name in _global_names(function.__code__) if name in function.__globals__})
    count = function.__code__.co_argcount
    defaults = function.__defaults__ or ()
    found.update(zip(function.__code__.co_varnames[count - len(defaults):count], defaults, strict=True))
    found.update(function.__kwdefaults__ or {})
    return found


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _biggest(function: Callable[..., Any]) -> str:
    """The three biggest captured values, as text."""
    inner = function.func if isinstance(function, functools.partial) else getattr(function, "__func__", function)
    captured = _captured(inner) if isinstance(inner, types.FunctionType) else {}
    if isinstance(function, functools.partial):
        captured = {**captured, **{f"argument {i}": value for i, value in enumerate(function.args)}, **function.keywords}
    sizes = sorted(((len(_pickle_in_band(value)), name) for name, value in captured.items()), reverse=True)
    return ", ".join(f"{name!r} ({_mib(size)})" for size, name in sizes[:3]) or "nothing that has a name"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
