"""Ctrl-C is kept while something is ended whole."""

from __future__ import annotations

import signal
import threading

import pytest

from runtime.client.interrupts import interrupts_deferred


def test_ctrl_c_takes_effect_at_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():
        signal.raise_signal(signal.SIGINT)
        done.append("still here")
    assert done == ["still here"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_at_exit_it_has_no_effect() -> None:
    with interrupts_deferred(then_raise=False):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_inside_comes_first() -> None:
    with pytest.raises(ValueError, match="mine"), interrupts_deferred():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_have_no_signals_to_defer() -> None:
    seen = []

    def work() -> None:
        with interrupts_deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
