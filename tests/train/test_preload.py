from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch.nn as nn

from train.preload import modules_of


def uses_numpy() -> Any:
    return np.zeros(1)


class Model(nn.Module):
    def forward(self) -> Any:
        return uses_numpy()


class Plain:
    @property
    def value(self) -> Any:
        import sklearn

        return sklearn


def test_what_a_function_names_directly_or_through_the_users_own_code():
    assert modules_of(uses_numpy) == ("numpy",)
    assert modules_of(lambda: Model()) == ("numpy", "torch")
    assert modules_of(lambda: Plain()) == ("sklearn",)
    assert modules_of(functools.partial(uses_numpy)) == ("numpy",)


def test_what_a_function_imports_itself():
    def function() -> None:
        def inner() -> None:
            import json

            from pytorch_lightning.callbacks import Callback

            print(json, Callback)

        inner()

    assert modules_of(function) == ("pytorch_lightning",)


def test_what_a_closure_captures():
    captured = nn.Linear

    def function() -> Any:
        return captured(1, 1)

    assert modules_of(function) == ("torch",)


def test_the_standard_library_and_our_own_names_do_not_count():
    def function() -> None:
        import os

        import runtime
        import train
        import train.config

        print(os, train, runtime)

    assert modules_of(function) == ()
    assert modules_of(len) == ()
    assert modules_of(None) == ()
