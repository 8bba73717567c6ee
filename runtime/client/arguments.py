"""The arguments of ``init`` and of actors' options, checked before anything starts."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.client.notice import say
from runtime.errors import ArgumentError, ArgumentTypeError, AuthenticationError, ConnectError
from runtime.wire.address import parse_address
from runtime.wire.peer import load_token

__all__ = ["ClusterArguments", "checked_init", "checked_name", "checked_resources", "refuse_unknown"]

# Ray's arguments that make no difference here: there is no dashboard, no object store, and logging is the user's.
WITHOUT_EFFECT = frozenset({
    "_memory", "_metrics_export_port", "_node_ip_address", "_node_name", "_plasma_directory", "_redis_password", "_redis_username",
    "_system_config", "_temp_dir", "_tracing_startup_hook", "allow_multiple", "configure_logging", "dashboard_host", "dashboard_port",
    "include_dashboard", "job_config", "labels", "local_mode", "logging_config", "logging_format", "logging_level", "object_store_memory",
    "storage", "system_config",
})
# Ray's arguments that would make a difference: accepting them would change what the script does.
NOT_SUPPORTED = frozenset({"runtime_env"})
OURS = ("address", "num_cpus", "num_gpus", "resources", "namespace", "ignore_reinit_error", "log_to_driver", "preload")
# How a running head makes itself known to its user's other processes.
HEAD_RECORD = Path("~/.headway/head.json")


@dataclass(frozen=True, slots=True)
class ClusterArguments:
    """``address`` None: an embedded cluster. ``token_file`` None: the default path."""

    address: str | None
    token_file: str | None
    num_cpus: float | None
    num_gpus: float | None
    resources: dict[str, float] | None
    namespace: str
    preload: tuple[str, ...]

    def load_token(self) -> bytes:
        """The token of the cluster to join. Raises: AuthenticationError."""
        return load_token(self.token_file)


def checked_init(address: object, num_cpus: object, num_gpus: object, resources: object, namespace: object, preload: object,
                 unknown: Mapping[str, object]) -> ClusterArguments:
    """What ``init`` was given, resolved.

    Raises: ArgumentError, ArgumentTypeError: what is wrong with it. ConnectError: ``address="auto"``, and no head of this user runs.
    """
    unknown = {name: value for name, value in unknown.items() if value or name not in NOT_SUPPORTED}
    refuse_unknown("init", [name for name in unknown if name not in WITHOUT_EFFECT], OURS, NOT_SUPPORTED)
    cpus, gpus = _amount("init", "num_cpus", num_cpus), _amount("init", "num_gpus", num_gpus)
    if gpus is not None and not gpus.is_integer():
        raise ArgumentError(f"init(num_gpus={gpus:g}) must be a whole number: it says how many GPUs the embedded cluster has.")
    custom = None if resources is None else checked_resources("init", resources)
    where, token_file = _resolve(address)
    given = [name for name, value in (("num_cpus", cpus), ("num_gpus", gpus), ("resources", custom)) if value is not None]
    if where is not None and given:
        raise ArgumentError(f"init({given[0]}=…) says what an embedded cluster shall have, but there is a cluster to join at {where}: its "
                            "nodes have what they were started with. Leave it out, or pass address='local'.")
    if isinstance(preload, str) or not isinstance(preload, Sequence) or not all(isinstance(name, str) for name in preload):
        raise ArgumentTypeError(f"init(preload={preload!r}) must be a sequence of module names, like ('torch',).")
    if namespace is not None and not isinstance(namespace, str):
        raise ArgumentTypeError(f"init(namespace={namespace!r}) must be a str, not {type(namespace).__name__}.")
    if unknown:
        say(f"init(): accepted for Ray's sake and without effect here: {', '.join(sorted(unknown))}.")
    return ClusterArguments(where, token_file, cpus, gpus, custom, namespace or "", tuple(preload))


def checked_resources(function: str, resources: object) -> dict[str, float]:
    """Custom resources by name. Raises: ArgumentError, ArgumentTypeError."""
    if not isinstance(resources, Mapping):
        raise ArgumentTypeError(f"{function}(resources={resources!r}) must be a dict like {{'tpu': 1}}, not {type(resources).__name__}.")
    checked = {}
    for name, amount in resources.items():
        if not isinstance(name, str) or not name:
            raise ArgumentTypeError(f"{function}(resources=…): the name {name!r} must be a str that is not empty.")
        if name in ("CPU", "GPU"):
            raise ArgumentError(f"{function}(resources=…): use num_{name.lower()}s= instead of the resource {name!r}.")
        checked[name] = _amount(function, f"resources[{name!r}]", amount) or 0.0
    return checked


def checked_name(function: str, argument: str, name: object) -> str:
    """A name that is given, or "" for None. Raises: ArgumentError, ArgumentTypeError."""
    if name is None:
        return ""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{function}({argument}={name!r}) must be a str, not {type(name).__name__}.")
    if not name:
        raise ArgumentError(f"{function}({argument}='') must not be empty; leave it out for none.")
    return name


def checked_amounts(function: str, argument: str, amounts: object) -> dict[str, float]:
    """Resources by name, CPU and GPU among them. Raises: ArgumentError, ArgumentTypeError."""
    if not isinstance(amounts, Mapping):
        raise ArgumentTypeError(f"{function}(): {argument} must be a dict like {{'CPU': 1}}, not {type(amounts).__name__}.")
    for name in amounts:
        if not isinstance(name, str) or not name:
            raise ArgumentTypeError(f"{function}(): {argument} has the resource name {name!r}, which must be a str that is not empty.")
    return {name: _amount(function, f"{argument}[{name!r}]", amount) or 0.0 for name, amount in amounts.items()}


def refuse_unknown(function: str, names: Collection[str], known: Collection[str], unsupported: Collection[str]) -> None:
    """Raise: ArgumentError: Ray has the argument, we don't support it. ArgumentTypeError: nobody knows it; names the closest."""
    for name in names:
        if name in unsupported:
            raise ArgumentError(f"{function}({name}=…) is Ray's and is not supported here. Supported: {', '.join(known)}.")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known)}."
        raise ArgumentTypeError(f"{function}() has no argument {name!r}: {hint}")


def _amount(function: str, argument: str, amount: Any) -> float | None:
    if amount is None:
        return None
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise ArgumentTypeError(f"{function}({argument}={amount!r}) must be a number, not {type(amount).__name__}.")
    if not (math.isfinite(amount) and amount >= 0):
        raise ArgumentError(f"{function}({argument}={amount!r}) must be a finite number of at least 0.")
    return float(amount)


def _resolve(address: object) -> tuple[str | None, str | None]:
    """Address to join (None: none) and token file (None: the default one)."""
    source = "init(address=…)"
    if address is None and (address := os.environ.get("HEADWAY_ADDRESS") or None) is not None:
        source = "HEADWAY_ADDRESS"
    if address is None or address == "local":
        return None, None
    if not isinstance(address, str):
        raise ArgumentTypeError(f"init(address={address!r}) must be a str, not {type(address).__name__}.")
    if address == "auto":
        return _running_head()
    if address.startswith("ray://"):
        raise ArgumentError(f"{source} is {address!r}: that is a Ray cluster's. Give HOST:PORT of `python -m runtime.head`.")
    return str(parse_address(address)), None


def _running_head() -> tuple[str, str | None]:
    path = HEAD_RECORD.expanduser()
    advice = "Start one (python -m runtime.head), give its HOST:PORT, or leave the address out for an embedded cluster."
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        address, token_file, pid = str(record["address"]), record.get("token_file"), int(record["pid"])
    except FileNotFoundError as exc:
        raise ConnectError(f"address='auto': no head of this user runs on this host ({path} does not exist). {advice}") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise AuthenticationError(f"address='auto': {path} can't be read ({type(exc).__name__}: {exc}). {advice}") from exc
    try:
        os.kill(pid, 0)
    except ProcessLookupError as exc:
        raise ConnectError(f"address='auto': the head that wrote {path} (pid {pid}, {address}) is gone. {advice}") from exc
    except PermissionError:
        pass  # it lives
    return str(parse_address(address)), token_file
