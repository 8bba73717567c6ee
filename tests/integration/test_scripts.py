"""Small scripts as users write them: names that collide, bad input, two fits in one driver."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

TRAIN_SCRIPT = """
import argparse
from train import ScalingConfig, RunConfig, report, get_context
from train.torch import TorchTrainer

def train_func(config):
    report({"rank": get_context().get_world_rank(), "x": config["x"]})

if __name__ == "__main__":
    result = TorchTrainer(train_func, train_loop_config={"x": 3}, scaling_config=ScalingConfig(num_workers=2),
                          run_config=RunConfig(storage_path="results")).fit()
    print("x is", result.metrics["x"])
"""


def test_script_called_train_py_that_begins_with_import_runtime(sandbox: Any) -> None:
    program = sandbox.script("import runtime\n" + TRAIN_SCRIPT, name="train.py")
    assert program.wait() == 0, program.report("train.py failed")
    assert program.out == ["x is 3"]


def test_script_called_train_py_under_headway_run(sandbox: Any) -> None:
    (sandbox.path / "cwd" / "train.py").write_text(TRAIN_SCRIPT)
    program = sandbox.start("-m", "runtime.cli", "run", "train.py")
    assert program.wait() == 0, program.report("headway run train.py failed")
    assert program.out == ["x is 3"]


def test_function_from_a_module_beside_the_script(sandbox: Any) -> None:
    (sandbox.path / "cwd" / "mymodel.py").write_text("import train\n\ndef train_func():\n    train.report({'x': 5})\n")
    program = sandbox.script(textwrap.dedent("""
        from mymodel import train_func
        from train import ScalingConfig, RunConfig
        from train.torch import TorchTrainer
        result = TorchTrainer(train_func, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path="results")).fit()
        print("x is", result.metrics["x"])
    """))
    assert program.wait() == 0, program.report("module beside the script")
    assert program.out == ["x is 5"]


def test_second_fit_of_a_driver_is_warm(sandbox: Any) -> None:
    program = sandbox.script(textwrap.dedent("""
        import time
        from train import ScalingConfig, RunConfig, report
        from train.torch import TorchTrainer
        def train_func():
            report({"x": 1})
        def fit():
            start = time.perf_counter()
            TorchTrainer(train_func, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path="results")).fit()
            return time.perf_counter() - start
        times = [fit() for _ in range(6)]
        print("warm", min(times[1:]) / times[0])
        print("seconds", [round(t, 3) for t in times])
    """))
    assert program.wait() == 0, program.report("fit failed")
    # A ratio, not a time: the first fit imports torch in the zygote, which a warm one must not.
    assert float(program.out[0].split()[1]) < 0.5, program.report("the second fit is as slow as the first")


BAD = {
    "two required parameters": ("def f(a, b): pass\nTorchTrainer(f)", "requires 2: a, b"),
    "num_workers -1": ("ScalingConfig(num_workers=-1)", "num_workers"),
    "num_workers 1.5": ("ScalingConfig(num_workers=1.5)", "1.5"),
    "num_workers True": ("ScalingConfig(num_workers=True)", "bool"),
    "negative CPU": ("ScalingConfig(resources_per_worker={'CPU': -1})", "CPU"),
    "unknown strategy": ("ScalingConfig(placement_strategy='BOGUS')", "STRICT_SPREAD"),
    "num_to_keep 0": ("CheckpointConfig(num_to_keep=0)", "num_to_keep"),
    "order": ("CheckpointConfig(checkpoint_score_order='biggest')", "biggest"),
    "max_failures": ("FailureConfig(max_failures=-2)", "-1"),
    "run name": ("RunConfig(name='../x')", "../x"),
    "storage path": ("RunConfig(storage_path=5)", "storage_path"),
    "unknown argument": ("ScalingConfig(num_worker=2)", "num_workers"),
    "dict for ScalingConfig": ("TorchTrainer(lambda: None, scaling_config={'num_workers': 1})", "ScalingConfig(**"),
    "not callable": ("TorchTrainer(5)", "got int"),
    "async def": ("async def f(): pass\nTorchTrainer(f)", "coroutine"),
    "generator": ("def f(): yield\nTorchTrainer(f)", "generator"),
    "async method": ("import runtime\n@runtime.remote\nclass A:\n    async def m(self): pass\n", "async def"),
    "loop config": ("TorchTrainer(lambda: None, train_loop_config=[1])", "dict"),
    "report outside": ("import train; train.report({})", "training function"),
    "unwritable storage": ("TorchTrainer(lambda: None, run_config=RunConfig(storage_path='/proc/nowhere')).fit()", "/proc/nowhere"),
    "lock": ("import threading; lock = threading.Lock()\ndef f():\n    return lock\n"
             "TorchTrainer(f, run_config=RunConfig(storage_path='r')).fit()", "lock"),
    "head refused": ("import runtime; runtime.init('127.0.0.1:1')", "refused"),
    "head refused, and no token": ("import pathlib, runtime; (pathlib.Path.home() / '.headway/token').unlink()\n"
                                   "runtime.init('127.0.0.1:1')", "refused"),
    "head name": ("import runtime; runtime.init('no-such-host.invalid:6480')", "no-such-host.invalid"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_clear_error_and_leaves_nothing(sandbox: Any, case: str) -> None:
    code, expected = BAD[case]
    token = sandbox.path / "home" / ".headway" / "token"
    token.parent.mkdir(mode=0o700)
    token.touch(mode=0o600)
    token.write_text("ab" * 32)
    program = sandbox.script("from train import *\nfrom train import ScalingConfig, RunConfig, CheckpointConfig, FailureConfig\n"
                             "from train.torch import TorchTrainer\n" + code + "\n", env={"HEADWAY_TIME_SCALE": "0.05"})
    assert program.wait() == 1, program.report("no error")
    last = "\n".join(program.err[-12:])
    assert expected in last, program.report(f"{expected!r} is not in the error")


def test_missing_and_wrong_token(sandbox: Any, cluster: Any) -> None:
    token = sandbox.path / "home" / ".headway" / "token"
    text = token.read_text()
    script = f"import runtime\nruntime.init({cluster.address!r})\nprint(len(runtime.nodes()))\n"
    token.rename(token.with_name("elsewhere"))
    program = sandbox.script(script)
    assert program.wait() == 1
    assert "No token" in program.err[-1], program.report("a missing token")
    token.touch(mode=0o600)
    token.write_text("ab" * 32)
    program = sandbox.script(script)
    assert program.wait() == 1
    assert "AuthenticationError" in program.err[-1], program.report("a wrong token")
    program = sandbox.script(script, env={"HEADWAY_TOKEN_FILE": str(token.with_name("elsewhere"))})
    assert program.wait() == 0, program.report("the right token")
    assert token.with_name("elsewhere").read_text() == text
