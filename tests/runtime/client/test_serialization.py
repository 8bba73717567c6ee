"""Values, calls, functions and exceptions as bytes; errors that name the culprit."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.client import serialization
from runtime.client.serialization import (
    Placeholder,
    dumps,
    dumps_actor,
    dumps_call,
    dumps_error,
    dumps_function,
    join_call,
    loads,
    loads_error,
)
from runtime.errors import ArgumentError, SerializationError

ROOT = Path(__file__).resolve().parents[3]


def in_main(source: str) -> dict[str, Any]:
    """Names defined by ``source`` as if it were the user's script."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(source, names)
    return names


def load_elsewhere(buffers: list[Any], expression: str) -> str:
    """What ``expression`` of the loaded ``value`` prints in another interpreter."""
    code = ("import pickle, sys; from runtime.client.serialization import loads\n"
            f"value = loads(pickle.load(sys.stdin.buffer)); print({expression})")
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps([bytes(b) for b in buffers]), capture_output=True, cwd=ROOT,
                          check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.mark.parametrize("value", [None, 1, "x", b"y" * 100_000, [1, {"a": (2, 3)}], {1, 2}, 2.5])
def test_values_round_trip(value: object) -> None:
    assert loads(dumps(value, what="value")) == value


def test_big_arrays_travel_outside_the_pickle_and_arrive_writable() -> None:
    array = np.arange(100_000, dtype=np.float64)
    small = np.arange(10)
    buffers = dumps({"big": array, "small": small}, what="value")
    assert len(buffers) == 2
    assert len(buffers[0]) < 2000
    assert len(buffers[1]) == array.nbytes
    loaded = loads(buffers)
    assert (loaded["big"] == array).all()
    assert (loaded["small"] == small).all()
    loaded["big"][0] = 7
    assert array[0] == 0


def test_later_changes_of_an_array_do_not_reach_the_pickle() -> None:
    array = np.zeros(100_000)
    buffers = dumps(array, what="value")
    array[:] = 1
    assert loads(buffers).sum() == 0


def test_received_memoryviews_are_used_in_place() -> None:
    data, big = dumps(np.zeros(100_000), what="value")
    received = bytearray(big)
    loads([data, memoryview(received)])[0] = 1.0
    assert received[:8] != bytes(8)


def test_closures_and_main_go_by_value() -> None:
    names = in_main("class Point:\n    def __init__(self, x): self.x = x\n    def double(self): return helper(self.x)\n"
                    "def helper(x): return 2 * x")
    assert load_elsewhere(dumps(names["Point"](21), what="value"), "value.double()") == "42"
    offset = 5
    assert load_elsewhere(dumps(lambda x: x + offset, what="value"), "value(1)") == "6"


def test_a_class_of_main_that_comes_back_is_the_same_class() -> None:
    point = in_main("class Point: pass")["Point"]
    buffers = dumps(point, what="value")
    code = ("import pickle, sys; from runtime.client.serialization import loads, dumps\n"
            "cls = loads(pickle.load(sys.stdin.buffer)); sys.stdout.buffer.write(pickle.dumps(dumps(cls(), what='x')))")
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(buffers), capture_output=True, cwd=ROOT, check=True)
    assert type(loads(pickle.loads(done.stdout))) is point


def test_modules_registered_by_value_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudpickle

    module = types.ModuleType("my_helpers")
    exec("def f(): return 7", vars(module))
    monkeypatch.setitem(sys.modules, "my_helpers", module)
    cloudpickle.register_pickle_by_value(module)
    try:
        buffers = dumps(module.f, what="value")
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert load_elsewhere(buffers, "value()") == "7"


def run_main(folder: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "main.py"], capture_output=True, cwd=folder, env=environment, check=False)


USE = ("import pickle, sys\nfrom runtime.client.serialization import dumps\n"
       "def use(): return helper(1), Model().run(), train.helper(2)\n"
       "sys.stdout.buffer.write(pickle.dumps(dumps(use, what='use')))\n")
USERS_TRAIN = "SCALE = 3\ndef helper(x): return SCALE * x\nclass Model:\n    def run(self): return helper(4)\n"


@pytest.mark.parametrize("first_line", ["", "import runtime\nfrom train import ScalingConfig\n"])
def test_a_users_module_with_our_name_goes_by_value_with_one_line(tmp_path: Path, first_line: str) -> None:
    (tmp_path / "train.py").write_text(first_line + USERS_TRAIN)
    (tmp_path / "main.py").write_text("import train\nfrom train import Model, helper\nimport runtime\n" + USE)
    done = run_main(tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1
    assert "'train'" in done.stderr.decode()
    assert load_elsewhere(pickle.loads(done.stdout), "value()") == "(3, 12, 6)"


def test_captured_variable_is_named() -> None:
    lock = threading.Lock()

    def train_loop() -> None:
        lock.acquire()

    with pytest.raises(SerializationError, match=r"train_loop_per_worker captures 'lock' \(_thread.lock\).*create it inside the function"):
        dumps(train_loop, what="train_loop_per_worker")


def test_captured_global_and_nested_attribute_are_named() -> None:
    names = in_main("import threading\nclass Box: pass\nbox = Box(); box.parts = {'a': [threading.Lock()]}\ndef f(): return box\n")
    with pytest.raises(SerializationError, match=r"f captures \"box.parts\['a'\]\[0\]\" \(_thread.lock\)"):
        dumps(names["f"], what="f")


def test_bad_argument_of_a_call_is_named() -> None:
    with pytest.raises(SerializationError, match=r"argument 1 of Counter.add is a _thread.lock"):
        dumps_call((1, threading.Lock()), {}, what="Counter.add")
    with pytest.raises(SerializationError, match=r"argument 'config' of Counter.add holds \"\['lock'\]\" \(_thread.lock\)"):
        dumps_call((1,), {"config": {"lock": threading.Lock()}}, what="Counter.add")


def test_bad_actor_class_and_argument_are_named() -> None:
    lock = threading.Lock()

    class Holder:
        def run(self) -> None:
            lock.acquire()

    with pytest.raises(SerializationError, match=r"actor class Holder captures '.*lock' \(_thread.lock\).*inside the class"):
        dumps_actor(Holder, (), {}, name="Holder")
    with pytest.raises(SerializationError, match=r"argument 0 of int is a _thread.lock"):
        dumps_actor(int, (lock,), {}, name="int")


def test_cyclic_values_end_the_search() -> None:
    box: dict[str, Any] = {"lock": threading.Lock()}
    box["self"] = box
    with pytest.raises(SerializationError, match="lock"):
        dumps(box, what="box")


def test_defaults_partials_and_methods_are_searched() -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"captures 'given'"):
        dumps(lambda given=lock: given, what="f")
    with pytest.raises(SerializationError, match=r"captures 'args\[0\]'"):
        dumps(functools.partial(print, lock), what="f")


def test_functions_round_trip_as_one_pickle() -> None:
    big = np.arange(100_000)
    data = dumps_function(lambda: big.sum(), "f")
    assert isinstance(data, bytes)
    assert loads(data)() == big.sum()


def test_big_functions_are_warned_about_and_refused_with_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    limits = serialization.LIMITS
    table, tiny = b"x" * 50_000, b"y" * 100
    import dataclasses

    monkeypatch.setattr(serialization, "LIMITS", dataclasses.replace(limits, function_warn_bytes=10_000))
    dumps_function(lambda: (table, tiny), "train_loop_per_worker")
    warning = capsys.readouterr().err
    assert warning.startswith("headway: train_loop_per_worker pickles to")
    assert warning.index("'table'") < warning.index("'tiny'")
    monkeypatch.setattr(serialization, "LIMITS", dataclasses.replace(limits, function_warn_bytes=10_000, function_max_bytes=20_000))
    with pytest.raises(ArgumentError, match="'table'"):
        dumps_function(lambda: (table, tiny), "train_loop_per_worker")


class NeedsTwo(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")
        self.second = second


def test_exceptions_that_pickle_but_do_not_load_keep_their_class() -> None:
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(NeedsTwo("a", "b")))
    error = loads_error(dumps_error(NeedsTwo("a", "b")))
    assert isinstance(error, NeedsTwo)
    assert str(error) == "a b"
    assert error.second == "b"


def test_exceptions_of_main_load_elsewhere() -> None:
    error = in_main("class Bad(ValueError): pass")["Bad"]("no")
    shown = load_elsewhere([dumps_error(error)], "type(value).__name__, isinstance(value, ValueError), value.args")
    assert shown == "Bad True ('no',)"


def test_attributes_of_exceptions_that_cannot_be_pickled_stay_behind() -> None:
    error = ValueError("x")
    vars(error).update(lock=threading.Lock(), code=3)
    loaded = loads_error(dumps_error(error))
    assert isinstance(loaded, ValueError)
    assert vars(loaded) == {"code": 3}


def test_an_exception_that_cannot_be_sent_is_empty_and_none() -> None:
    assert dumps_error(ValueError(threading.Lock())) == b""
    assert loads_error(b"") is None
    assert loads_error([]) is None
    assert loads_error(b"not a pickle") is None


def test_calls_with_placeholders_are_joined_without_unpickling() -> None:
    call = dumps_call((1, Placeholder(0)), {"x": Placeholder(1)}, what="f")
    joined = join_call(call, [dumps(np.arange(100_000), what="a"), dumps("b", what="b")])
    args, kwargs = loads(joined)
    assert args[0] == 1
    assert args[1].sum() == np.arange(100_000).sum()
    assert kwargs == {"x": "b"}
