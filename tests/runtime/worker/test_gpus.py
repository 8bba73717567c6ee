"""The inventory of GPUs, with a fake nvidia-smi, and what actors may see."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import ArgumentError
from runtime.worker.gpus import hardware_gpus, inventory, visible_devices

UUIDS = ["GPU-aaaa", "GPU-abcd", "GPU-bbbb"]


@pytest.fixture
def host_with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo {uuid}\n" for uuid in UUIDS))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tool


@pytest.fixture
def host_without_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("host_with_gpus")
@pytest.mark.parametrize(("visible", "expected"), [
    (None, UUIDS), ("", []), ("2,0", ["GPU-bbbb", "GPU-aaaa"]), ("GPU-b", ["GPU-bbbb"]), ("0,9,1", ["GPU-aaaa"]), ("GPU-a", []),
    ("-1", []), ("MIG-1234", ["MIG-1234"]), ("NoDevFiles", []),
])
def test_cuda_visible_devices_limits_the_inventory(visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware_gpus() == expected


@pytest.mark.usefixtures("host_with_gpus")
def test_fewer_may_be_offered_and_not_more() -> None:
    assert inventory() == (UUIDS, False)
    assert inventory(2) == (UUIDS[:2], False)
    assert inventory(0) == ([], False)
    with pytest.raises(ArgumentError, match="num_gpus=4: this host has 3 GPUs"):
        inventory(4)


def test_a_tool_that_fails_is_a_host_without_gpus(host_with_gpus: Path) -> None:
    host_with_gpus.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert hardware_gpus() == []


@pytest.mark.usefixtures("host_without_gpus")
def test_gpus_are_simulated_where_there_are_none() -> None:
    assert inventory() == ([], False)
    assert inventory(2) == (["simulated-0", "simulated-1"], True)


def test_simulated_ids_never_name_real_devices() -> None:
    simulated = ["simulated-0", "simulated-1"]
    assert visible_devices((0, 2), UUIDS, simulated=False, host_has_gpus=True) == "GPU-aaaa,GPU-bbbb"
    assert visible_devices((), UUIDS, simulated=False, host_has_gpus=True) == ""
    assert visible_devices((0, 1), simulated, simulated=True, host_has_gpus=False) == "0,1"
    assert visible_devices((0, 1), simulated, simulated=True, host_has_gpus=True) == ""
