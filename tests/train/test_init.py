from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

import train


def test_every_public_name_can_be_imported():
    for name in train.__all__:
        assert getattr(train, name) is not None
        assert name in dir(train)


def test_the_functions_are_not_hidden_by_modules_of_their_name():
    for name in train.__all__:
        getattr(train, name)
    importlib.import_module("train.reporting")
    assert callable(train.report)
    assert callable(train.get_checkpoint)


def test_import_loads_nothing_heavy():
    code = ("import sys, train; from train import RunConfig, ScalingConfig, report, Checkpoint; RunConfig(); "
            "print([m for m in ('torch', 'fsspec', 'numpy', 'asyncio', 'pandas') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bare_import_loads_no_module_of_the_package():
    code = "import sys, train; print([m for m in sys.modules if m.startswith('train.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("statement", ["from train import my_model", "import train.my_model", "from train.my_model import Net"])
def test_a_missing_name_hints_that_the_users_own_train_is_hidden(statement: str):
    with pytest.raises(ImportError, match="give yours another name"):
        exec(statement)


def test_a_missing_attribute_is_an_attribute_error():
    assert not hasattr(train, "my_model")
    with pytest.raises(AttributeError, match="Headway's hides it"):
        _ = train.my_model


def test_other_packages_are_not_disturbed_by_the_hint():
    assert importlib.util.find_spec("json.no_such_module") is None
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'trainer'$"):
        importlib.import_module("trainer")
