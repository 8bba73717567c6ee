from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lightning_ext.flavour import _choose

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(("imported", "chosen"), [
    (["pytorch_lightning"], "pytorch_lightning"),
    (["lightning.pytorch"], "lightning.pytorch"),
    (["pytorch_lightning", "lightning.pytorch"], "lightning.pytorch"),
])
def test_what_the_program_has_imported_wins(monkeypatch: pytest.MonkeyPatch, imported: list[str], chosen: str) -> None:
    for name in imported:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert _choose() == chosen


@pytest.mark.parametrize(("installed", "chosen"), [
    ({"lightning", "pytorch_lightning"}, "lightning.pytorch"),
    ({"pytorch_lightning"}, "pytorch_lightning"),
])
def test_else_what_is_installed(monkeypatch: pytest.MonkeyPatch, installed: set[str], chosen: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name in installed else None)
    assert _choose() == chosen


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"headway\[lightning\]"):
        _choose()


def test_the_package_itself_imports_neither_lightning_nor_torch() -> None:
    code = "import sys, lightning_ext; print(dir(lightning_ext)[0], 'torch' in sys.modules, 'pytorch_lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "RayDDPStrategy False False\n"


def test_unknown_names_are_attribute_errors() -> None:
    import lightning_ext

    with pytest.raises(AttributeError, match="no attribute 'RayHorovodStrategy'"):
        _ = lightning_ext.RayHorovodStrategy


def test_a_lightning_that_does_not_fit_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import lightning_ext

    def broken(name: str) -> ModuleType:
        raise AttributeError("module 'pytorch_lightning' has no attribute 'strategies'")

    monkeypatch.setattr("importlib.import_module", broken)
    monkeypatch.delitem(vars(lightning_ext), "TrainDDPStrategy", raising=False)
    with pytest.raises(ImportError, match=r"lightning_ext\.strategies does not fit the installed Lightning.*'strategies'"):
        _ = lightning_ext.TrainDDPStrategy
