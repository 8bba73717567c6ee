"""Arguments of init, checked before anything starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.client.arguments import checked_init
from runtime.errors import ArgumentError, ArgumentTypeError, AuthenticationError, ConnectError


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HEADWAY_ADDRESS", raising=False)
    monkeypatch.delenv("HEADWAY_TOKEN_FILE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def check(address: Any = None, num_cpus: Any = None, num_gpus: Any = None, resources: Any = None, namespace: Any = None, preload: Any = (),
          **unknown: Any) -> Any:
    return checked_init(address, num_cpus, num_gpus, resources, namespace, preload, unknown)


def test_nothing_given_is_an_embedded_cluster() -> None:
    arguments = check()
    assert arguments.address is None
    assert arguments.namespace == ""
    assert arguments.preload == ()


def test_what_is_given_is_kept() -> None:
    arguments = check(num_cpus=2, num_gpus=1, resources={"disk": 3}, namespace="n", preload=["torch"])
    assert (arguments.num_cpus, arguments.num_gpus, arguments.resources) == (2.0, 1.0, {"disk": 3.0})
    assert (arguments.namespace, arguments.preload) == ("n", ("torch",))


@pytest.mark.parametrize(("changes", "error", "text"), [
    ({"num_cpus": -1}, ArgumentError, r"num_cpus=-1.*at least 0"),
    ({"num_cpus": float("nan")}, ArgumentError, "finite"),
    ({"num_cpus": True}, ArgumentTypeError, "not bool"),
    ({"num_cpus": "2"}, ArgumentTypeError, "num_cpus='2'.*number, not str"),
    ({"num_gpus": 0.5}, ArgumentError, "num_gpus=0.5.*whole"),
    ({"resources": [1]}, ArgumentTypeError, "must be a dict"),
    ({"resources": {"GPU": 1}}, ArgumentError, "num_gpus="),
    ({"resources": {"x": -1}}, ArgumentError, r"resources\['x'\]"),
    ({"resources": {1: 1}}, ArgumentTypeError, "the name 1"),
    ({"namespace": 3}, ArgumentTypeError, "namespace=3"),
    ({"preload": "torch"}, ArgumentTypeError, "sequence of module names"),
    ({"preload": [1]}, ArgumentTypeError, "sequence of module names"),
    ({"address": 6480}, ArgumentTypeError, "address=6480"),
    ({"address": "nonsense"}, ArgumentError, "nonsense"),
    ({"address": "ray://h:10001"}, ArgumentError, "Ray cluster"),
    ({"address": "h:1", "num_cpus": 2}, ArgumentError, "num_cpus.*address='local'"),
    ({"num_cpu": 2}, ArgumentTypeError, "no argument 'num_cpu': did you mean 'num_cpus'"),
    ({"frobnicate": 2}, ArgumentTypeError, "it takes address"),
    ({"runtime_env": {"env_vars": {"A": "b"}}}, ArgumentError, "runtime_env=….*not supported"),
])
def test_bad_arguments(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check(**changes)


def test_rays_arguments_without_effect_are_accepted_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    check(include_dashboard=False, dashboard_host="0.0.0.0", dashboard_port=8265, object_store_memory=1, logging_level=30, local_mode=True)
    text = capsys.readouterr().err
    assert text == ("headway: init(): accepted for Ray's sake and without effect here: dashboard_host, dashboard_port, include_dashboard, "
                    "local_mode, logging_level, object_store_memory.\n")


def test_the_address_comes_from_the_argument_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("10.0.0.5:6480").address == "10.0.0.5:6480"
    assert check("[::1]:6480").address == "[::1]:6480"
    monkeypatch.setenv("HEADWAY_ADDRESS", "h:1")
    assert check().address == "h:1"
    assert check("i:2").address == "i:2"
    assert check("local").address is None
    monkeypatch.setenv("HEADWAY_ADDRESS", "ray://h:1")
    with pytest.raises(ArgumentError, match="HEADWAY_ADDRESS"):
        check()
    monkeypatch.setenv("HEADWAY_ADDRESS", "")
    assert check().address is None


def test_auto_finds_this_users_head(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match=r"head.json does not exist"):
        check("auto")
    record = tmp_path / ".headway" / "head.json"
    record.parent.mkdir()
    record.write_text("{")
    with pytest.raises(AuthenticationError, match=r"head.json can't be read"):
        check("auto")
    record.write_text(json.dumps({"address": "127.0.0.1:6480", "token_file": str(tmp_path / "t"), "pid": os.getpid()}))
    arguments = check("auto")
    assert arguments.address == "127.0.0.1:6480"
    with pytest.raises(AuthenticationError, match=str(tmp_path / "t")):
        arguments.load_token()
    record.write_text(json.dumps({"address": "127.0.0.1:6480", "token_file": "t", "pid": 2**22 + 1}))
    with pytest.raises(ConnectError, match="is gone"):
        check("auto")


def test_the_token_of_a_joined_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AuthenticationError, match=r"\.headway/token does not exist"):
        check("h:1").load_token()
    file = tmp_path / "elsewhere"
    file.write_text("ab" * 32)
    file.chmod(0o600)
    monkeypatch.setenv("HEADWAY_TOKEN_FILE", str(file))
    assert check("h:1").load_token() == bytes.fromhex("ab" * 32)
