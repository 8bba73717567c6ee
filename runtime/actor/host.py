"""The process that runs user code: the actor lives on the main thread, so signal handlers, debuggers and CUDA work as in a script.

``main`` loads the class, runs its constructor and then one call after the other, and ends the process by exit hooks, a flush and
``os._exit``: finalising an interpreter that was forked with torch in it takes most of a second.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from types import TracebackType
from typing import Any, NoReturn

from runtime.actor import context
from runtime.actor.mailbox import QueuedCall
from runtime.actor.service import Service
from runtime.client import serialization
from runtime.wire.messages import CallError, InitFailed, Result, Setup

__all__ = ["main"]

# Texts and pickled errors travel in control frames of 1 MiB.
MAX_TEXT_CHARS = 64 * 1024
MAX_ERROR_BYTES = 256 * 1024

OUR_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def main(*, lifeline_fd: int, handover_fd: int, log_path: str) -> NoReturn:
    """Be the actor that the daemon tells over the lifeline, to the end of this process."""
    service = Service(lifeline_fd=lifeline_fd, handover_fd=handover_fd)
    setup, buffers = service.wait_setup()
    context.install(setup, log_path=log_path, loop=service.io.loop)
    try:
        code = _live(service, setup, buffers)
    except SystemExit as exc:
        code = _exit_code(exc)
    except KeyboardInterrupt:
        code = 130
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # replaced, closed or broken by user code
            continue
    service.leave(code)


def _live(service: Service, setup: Setup, buffers: list[bytes | memoryview]) -> int:
    """Returns: the exit code."""
    try:
        cls, args, kwargs = serialization.loads(buffers)
        del buffers
        service.tell_loaded()
        instance = cls(*args, **kwargs)
        del args, kwargs
        service.serve(setup)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:  # noqa: BLE001 - user code: whatever it raises is reported to the caller
        text = _user_traceback(exc)
        sys.stderr.write(text)
        error = serialization.dumps_error(exc)
        service.tell_failed(InitFailed(setup.spec.actor_id, error if len(error) <= MAX_ERROR_BYTES else b"", text))
        return 1
    while (call := service.mailbox.get()) is not None:
        _run_call(service, instance, call)
    return 0


def _run_call(service: Service, instance: Any, call: QueuedCall) -> None:
    """Run one method and post what came of it. Raises: SystemExit: the method wants the process to end."""
    try:
        method = getattr(instance, call.method)
        args, kwargs = serialization.loads(call.buffers)
        call.buffers = []
        value = method(*args, **kwargs)
        buffers = serialization.dumps(value, what=f"the result of {type(instance).__name__}.{call.method}")
    except SystemExit:
        raise
    except BaseException as exc:  # noqa: BLE001 - user code: whatever it raises is reported to the caller
        error = serialization.dumps_error(exc)
        failure = CallError(type(exc).__qualname__, _message(exc), _user_traceback(exc))
        service.reply(call.peer, call.call_id, failure, [error] if 0 < len(error) <= MAX_ERROR_BYTES else [])
    else:
        service.reply(call.peer, call.call_id, Result(), buffers)


def _message(error: BaseException) -> str:
    try:
        return _text(str(error))
    except Exception:  # noqa: BLE001 - user code (__str__), which must not hide the error itself
        return "<its __str__() failed>"


def _user_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, from the first frame of the user on."""
    return _text("".join(traceback.format_exception(type(error), error, _without_ours(error.__traceback__))))


def _without_ours(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(OUR_FOLDER):
        tb = tb.tb_next
    return tb


def _text(text: str) -> str:
    """As it may travel: valid UTF-8, and of too long a text the end, where the error is."""
    if len(text) > MAX_TEXT_CHARS:
        text = f"… {len(text) - MAX_TEXT_CHARS} characters left out …\n{text[-MAX_TEXT_CHARS:]}"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _exit_code(exit_: SystemExit) -> int:
    """What the interpreter makes of it."""
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF
    sys.stderr.write(f"{exit_.code}\n")
    return 1
