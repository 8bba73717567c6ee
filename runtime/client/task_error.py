"""The error that ``get`` raises for a method that raised: a ``TaskError`` and an instance of the user's class at once."""

from __future__ import annotations

import functools
import types
from typing import Any

from runtime.client.serialization import Buffer, dumps_error, loads_error
from runtime.errors import TaskError
from runtime.wire.messages import CallError

__all__ = ["from_call_error", "make_task_error"]

REMOTE = "\n\nRemote traceback:\n"
# Not Exceptions, or with a meaning of their own for the interpreter: the error stays a plain TaskError, the original is its cause.
NEVER_COMBINED = (StopIteration, StopAsyncIteration)


def from_call_error(failure: CallError, buffers: list[Buffer], where: str) -> TaskError:
    """The error of a call of ``where`` ("Counter.add on host-a") that was answered with ``failure``."""
    return make_task_error(bytes(buffers[0]) if buffers else b"", failure.class_name, failure.text, failure.traceback, where)


def make_task_error(original: bytes, class_name: str, text: str, traceback: str, where: str) -> TaskError:
    """An error whose text has the remote traceback; ``original`` (of ``dumps_error``) becomes its ``__cause__`` if it can be loaded."""
    cause = loads_error(original)
    if isinstance(cause, TaskError):  # passed on by an actor that called another: stays an instance of the user's class
        cause = cause.__cause__ or cause
    error = (_combined(cause) if cause is not None else None) or _RemoteError()
    state = dict(vars(cause)) if cause is not None else {}
    vars(error).update(state, remote_traceback=traceback, _parts=(class_name, text, traceback, where))
    error.__cause__ = cause
    return error


class _RemoteError(TaskError):
    """Shown as ``runtime.errors.TaskError``."""

    @property
    def cause(self) -> BaseException | None:
        """Ray's name for ``__cause__``."""
        return self.__cause__

    def __str__(self) -> str:
        class_name, text, traceback, where = vars(self)["_parts"]
        text = text.partition(REMOTE)[0]  # of an error that was passed on, which its traceback shows in full
        summary = f"{where} raised {class_name}: {text}" if text else f"{where} raised {class_name}"
        return f"{summary}{REMOTE}{traceback.rstrip()}" if traceback else summary

    def __reduce__(self) -> tuple[Any, ...]:
        return make_task_error, (dumps_error(self.__cause__) if self.__cause__ is not None else b"", *vars(self)["_parts"])


_RemoteError.__module__, _RemoteError.__name__, _RemoteError.__qualname__ = TaskError.__module__, "TaskError", "TaskError"


def _combined(cause: BaseException) -> TaskError | None:
    """An instance of both classes, without running the user's ``__init__``; None where the class does not allow that."""
    kind: Any = type(cause)
    try:
        if not issubclass(kind, Exception) or issubclass(kind, NEVER_COMBINED):
            return None
        both = _combined_class(kind)
        error: TaskError = both.__new__(both, *cause.args)
        if isinstance(kind.__init__, types.WrapperDescriptorType):  # a built-in's: sets its fields (OSError.errno) and runs no user code
            kind.__init__(error, *cause.args)
        error.args = cause.args
    except Exception:  # noqa: BLE001 - user code (__new__, __init_subclass__) runs here; the plain TaskError says the same
        return None
    return error


@functools.lru_cache(maxsize=256)
def _combined_class(kind: Any) -> type[TaskError]:
    return type(f"TaskError({kind.__name__})", (_RemoteError, kind), {"__module__": TaskError.__module__})
