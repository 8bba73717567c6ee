"""Headway's actor runtime: the public names, nothing else.

Names are loaded when first used (PEP 562): ``import runtime`` imports neither torch nor asyncio. It pins our other two top-level names,
``train`` and ``lightning_ext``, so that a user's script of that name does not hide them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from runtime.pinned import pin

if TYPE_CHECKING:
    from runtime import errors as errors
    from runtime import exceptions as exceptions
    from runtime.client.cluster import available_resources as available_resources
    from runtime.client.cluster import cluster_resources as cluster_resources
    from runtime.client.cluster import nodes as nodes
    from runtime.client.gang import Gang as Gang
    from runtime.client.gang import Member as Member
    from runtime.client.gang import create_gang as create_gang
    from runtime.client.handle import ActorHandle as ActorHandle
    from runtime.client.handle import get_actor as get_actor
    from runtime.client.handle import kill as kill
    from runtime.client.init import init as init
    from runtime.client.init import is_initialized as is_initialized
    from runtime.client.init import shutdown as shutdown
    from runtime.client.inside import channel as channel
    from runtime.client.inside import get_runtime_context as get_runtime_context
    from runtime.client.inside import on_stop_requested as on_stop_requested
    from runtime.client.inside import stop_requested as stop_requested
    from runtime.client.object_ref import ObjectRef as ObjectRef
    from runtime.client.object_ref import get as get
    from runtime.client.object_ref import wait as wait
    from runtime.client.placement_group import PlacementGroup as PlacementGroup
    from runtime.client.placement_group import placement_group as placement_group
    from runtime.client.placement_group import remove_placement_group as remove_placement_group
    from runtime.client.remote import remote as remote
    from runtime.client.run_news import publish_run as publish_run
    from runtime.client.serialization import dumps_function as dumps_function
    from runtime.client.serialization import loads as loads
    from runtime.client.subscription import Subscription as Subscription
    from runtime.limits import LIMITS as LIMITS
    from runtime.wire.messages import ExitEvidence as ExitEvidence

__version__ = "0.1.0"

_HOME = {
    "available_resources": "client.cluster", "cluster_resources": "client.cluster", "nodes": "client.cluster",
    "Gang": "client.gang", "Member": "client.gang", "create_gang": "client.gang",
    "ActorHandle": "client.handle", "get_actor": "client.handle", "kill": "client.handle",
    "channel": "client.inside", "get_runtime_context": "client.inside", "on_stop_requested": "client.inside",
    "stop_requested": "client.inside",
    "ObjectRef": "client.object_ref", "get": "client.object_ref", "wait": "client.object_ref",
    "PlacementGroup": "client.placement_group", "placement_group": "client.placement_group",
    "remove_placement_group": "client.placement_group",
    "remote": "client.remote",
    "publish_run": "client.run_news",
    "dumps_function": "client.serialization", "loads": "client.serialization",
    "init": "client.init", "is_initialized": "client.init", "shutdown": "client.init",
    "Subscription": "client.subscription",
    "ExitEvidence": "wire.messages",
    "LIMITS": "limits",
}  # public name: module of this package
_MODULES = ("errors", "exceptions")

__all__ = sorted([*_HOME, *_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"runtime.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    value = getattr(import_module(f"runtime.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


pin()
