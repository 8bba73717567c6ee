"""References: settled once, waited for by threads and coroutines."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
import time
from typing import Any

import pytest

from runtime.client.object_ref import ObjectRef, failed, get, pickled, value, wait
from runtime.client.serialization import dumps
from runtime.errors import ArgumentError, ArgumentTypeError, GetTimeoutError, HeadwayError, SerializationError


def done_ref(result: Any = 1) -> ObjectRef:
    ref = ObjectRef("A.f")
    ref.settle(value(result))
    return ref


def later(*actions: Any, after_s: float = 0.05) -> None:
    """Run the actions on another thread a moment from now."""
    def run() -> None:
        time.sleep(after_s)
        for action in actions:
            action()

    threading.Thread(target=run, daemon=True).start()


def test_A2_a_reference_is_settled_once() -> None:
    ref = ObjectRef("A.f")
    assert ref.settle(value(1))
    assert not ref.settle(failed(ValueError("x")))
    assert get(ref) == 1


def test_get_waits_for_one_and_for_several() -> None:
    a, b = ObjectRef("A.f"), ObjectRef("A.g")
    later(lambda: b.settle(value(2)), lambda: a.settle(value(1)))
    assert get([a, b, a], timeout=10) == [1, 2, 1]
    assert get(a) == 1
    assert get([]) == []


def test_a_value_is_loaded_once_and_by_who_asks() -> None:
    ref = ObjectRef("A.f")
    ref.settle(pickled(dumps([1], what="x"), "A.f"))
    first = get(ref)
    assert get(ref) is first
    assert ref.outcome().buffers is None  # type: ignore[union-attr]


def test_get_raises_as_soon_as_one_fails() -> None:
    never, bad = ObjectRef("A.f"), ObjectRef("A.g")
    later(lambda: bad.settle(failed(KeyError("x"))))
    with pytest.raises(KeyError):
        get([never, bad], timeout=10)
    with pytest.raises(KeyError):
        get([never, bad], timeout=0)


def test_errors_are_made_when_asked_for_and_kept() -> None:
    made: list[Exception] = []

    def make() -> Exception:
        made.append(ValueError("x"))
        return made[-1]

    ref = ObjectRef("A.f")
    ref.settle(failed(make))
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            get(ref)
    assert len(made) == 1


def test_a_result_that_cannot_be_loaded_says_so() -> None:
    ref = ObjectRef("A.f")
    ref.settle(pickled([b"garbage"], "A.f"))
    with pytest.raises(SerializationError, match="The result of A.f arrived, but can't be loaded here"):
        get(ref)


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_get_times_out_naming_the_call(timeout: float) -> None:
    with pytest.raises(GetTimeoutError, match=r"A.f and 1 more had no result within"):
        get([ObjectRef("A.f"), ObjectRef("A.g")], timeout=timeout)


def test_wait_returns_what_is_done_in_the_order_given() -> None:
    refs = [ObjectRef(str(i)) for i in range(4)]
    refs[3].settle(value(3))
    assert wait(refs) == ([refs[3]], refs[:3])
    later(lambda: refs[1].settle(failed(ValueError())))
    assert wait(refs, num_returns=2, timeout=10) == ([refs[1], refs[3]], [refs[0], refs[2]])
    assert wait(refs, num_returns=1) == ([refs[1]], [refs[0], refs[2], refs[3]])
    assert wait(refs, num_returns=4, timeout=0.01) == ([refs[1], refs[3]], [refs[0], refs[2]])
    assert wait(refs, num_returns=4, timeout=0) == ([refs[1], refs[3]], [refs[0], refs[2]])
    assert refs[0]._callbacks == []


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda ref: get(3), ArgumentTypeError, "an ObjectRef or a list of them, not int"),
    (lambda ref: get([ref, 3]), ArgumentTypeError, "item 1 of the list is int"),
    (lambda ref: get(ref, timeout="1"), ArgumentTypeError, "timeout='1'"),
    (lambda ref: get(ref, timeout=-1), ArgumentError, "at least 0"),
    (lambda ref: get(ref, timeout=float("nan")), ArgumentError, "at least 0"),
    (lambda ref: wait(ref), ArgumentTypeError, "a list of ObjectRefs, not ObjectRef"),
    (lambda ref: wait([ref, ref]), ArgumentError, "twice"),
    (lambda ref: wait([ref], num_returns=2), ArgumentError, "between 1 and the number of references, 1"),
    (lambda ref: wait([ref], num_returns=True), ArgumentTypeError, "must be an int"),
    (lambda ref: wait([ref], num_returns=0), ArgumentError, "between 1"),
])
def test_bad_arguments(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(ObjectRef("A.f"))


def test_get_in_a_callback_of_the_io_thread_is_refused() -> None:
    problems: list[Exception] = []

    def callback() -> None:
        try:
            get(ObjectRef("A.f"))
        except HeadwayError as exc:
            problems.append(exc)

    thread = threading.Thread(target=callback, name="headway-io")
    thread.start()
    thread.join()
    assert "I/O thread" in str(problems[0])


def test_ctrl_c_interrupts_get_and_leaves_nothing_registered() -> None:
    ref = ObjectRef("A.f")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    later(lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))  # type: ignore[arg-type]
    try:
        with pytest.raises(KeyboardInterrupt):
            get(ref, timeout=10)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ref._callbacks == []


def test_done_callbacks_run_once_and_their_errors_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ref, calls = ObjectRef("A.f"), []

    def bad(ref: ObjectRef) -> None:
        raise RuntimeError("oops")

    ref.add_done_callback(bad)
    ref.add_done_callback(calls.append)
    ref.settle(value(1))
    ref.add_done_callback(calls.append)
    assert calls == [ref, ref]
    assert "oops" in caplog.text


def test_as_a_concurrent_future() -> None:
    good, bad, cancelled = ObjectRef("A.f"), ObjectRef("A.g"), ObjectRef("A.h")
    futures = [ref.future() for ref in (good, bad, cancelled)]
    assert futures[2].cancel()
    good.settle(value(1))
    bad.settle(failed(ValueError("x")))
    cancelled.settle(value(3))
    assert concurrent.futures.wait(futures).not_done == set()
    assert futures[0].result() == 1
    assert isinstance(futures[1].exception(), ValueError)


@pytest.mark.asyncio
async def test_await_on_a_running_loop() -> None:
    a, b = ObjectRef("A.f"), ObjectRef("A.g")
    later(lambda: a.settle(value(1)), lambda: b.settle(failed(KeyError("x"))))
    results = await asyncio.gather(a, b, done_ref(3), return_exceptions=True)
    assert results[0] == 1
    assert isinstance(results[1], KeyError)
    assert results[2] == 3


@pytest.mark.asyncio
async def test_a_cancelled_await_leaves_nothing_registered() -> None:
    ref = ObjectRef("A.f")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ref
    assert ref._callbacks == []


def test_a_loop_that_is_closed_meanwhile_is_no_problem() -> None:
    ref = ObjectRef("A.f")

    async def leave() -> None:
        asyncio.ensure_future(asyncio.wait_for(ref, 5))  # noqa: RUF006
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    ref.settle(value(1))


def test_repr_shows_the_state() -> None:
    ref = ObjectRef("A.f")
    assert repr(ref) == "<ObjectRef A.f: pending>"
    ref.settle(failed(ValueError()))
    assert repr(ref) == "<ObjectRef A.f: failed>"
    assert repr(done_ref()) == "<ObjectRef A.f: ready>"
