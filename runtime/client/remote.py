"""``@remote``: classes whose instances live in processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, overload

from runtime.client.actor_link import ActorLink
from runtime.client.arguments import checked_amounts, checked_name, checked_resources, refuse_unknown
from runtime.client.created_actors import CreatedActors
from runtime.client.handle import ActorHandle, methods_of
from runtime.client.init import session_or_init
from runtime.client.placement_group import PlacementGroup
from runtime.client.serialization import dumps_actor
from runtime.client.session import Session
from runtime.errors import ArgumentError, ArgumentTypeError, HeadwayError
from runtime.ids import ActorId, new_actor_id, new_group_id
from runtime.wire.messages import ActorSpec, CreateActors

__all__ = ["Options", "RemoteClass", "checked_class", "prepare_actors", "remote"]

SUPPORTED = ("num_cpus", "num_gpus", "resources", "name", "namespace", "placement_group", "placement_group_bundle_index")
# Ray's options that are not supported, with the value that asks for nothing.
NEUTRAL: Mapping[str, Any] = {
    "accelerator_type": None, "concurrency_groups": None, "enable_task_events": None, "get_if_exists": False, "label_selector": None,
    "lifetime": None, "max_concurrency": 1, "max_pending_calls": -1, "max_restarts": 0, "max_task_retries": 0, "memory": None,
    "object_store_memory": None, "placement_group_capture_child_tasks": None, "runtime_env": None, "scheduling_strategy": None,
}


@dataclass(frozen=True, slots=True)
class Options:
    """Checked options of an actor. ``resources`` has CPU and GPU too."""

    resources: dict[str, float]
    name: str = ""
    namespace: str = ""
    placement_group: PlacementGroup | None = None
    bundle: int = -1  # of the placement group; -1: any with room

    def changed(self, options: Mapping[str, Any]) -> Options:
        """These options, where ``options`` does not say otherwise.

        Raises: ArgumentError, ArgumentTypeError: one of them is unknown, not supported, or has a bad value.
        """
        for name, value in options.items():
            if name not in SUPPORTED and not (name in NEUTRAL and value == NEUTRAL[name]):
                refuse_unknown("options", [name], SUPPORTED, tuple(NEUTRAL))
        amounts = dict(self.resources)
        for kind in ("CPU", "GPU"):
            given = options.get(f"num_{kind.lower()}s")
            if given is not None:
                amounts |= checked_amounts("options", f"num_{kind.lower()}s", {kind: given})
        if amounts.get("GPU", 0) > 1 and not float(amounts["GPU"]).is_integer():
            raise ArgumentError(f"options(num_gpus={amounts['GPU']:g}) must be a whole number, or a fraction of one GPU (0.5).")
        if options.get("resources") is not None:
            processors = {name: amount for name, amount in amounts.items() if name in ("CPU", "GPU")}
            amounts = processors | checked_resources("options", options["resources"])
        group = options.get("placement_group", self.placement_group)
        if group is not None and not isinstance(group, PlacementGroup):
            raise ArgumentTypeError(f"options(placement_group=…) must be what placement_group() returned, not {type(group).__name__}.")
        return replace(
            self, resources={name: amount for name, amount in amounts.items() if amount}, placement_group=group,
            name=checked_name("options", "name", options.get("name")) or self.name,
            namespace=checked_name("options", "namespace", options.get("namespace")) or self.namespace,
            bundle=_checked_bundle(options.get("placement_group_bundle_index", self.bundle), group))


class RemoteClass:
    """A class decorated by ``@remote``: ``Counter.remote(…)`` makes an actor, ``Counter.options(num_cpus=1).remote(…)`` with options."""

    def __init__(self, cls: type, options: Options) -> None:
        self._cls = cls
        self._options = options
        self.__doc__ = cls.__doc__
        self.__name__, self.__qualname__, self.__module__ = cls.__name__, cls.__qualname__, cls.__module__

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Create an actor; returns at once. Calls wait until its constructor returned.

        Raises: SerializationError: an argument can't be sent. NameTakenError: with a name, which a living actor has.
        """
        return _create(self._cls, self._options, args, kwargs)

    def options(self, **options: Any) -> RemoteClass:
        """The same class with other options: num_cpus, num_gpus, resources, name, namespace, placement_group, …bundle_index."""
        return RemoteClass(self._cls, self._options.changed(options))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it would make no actor."""
        raise ArgumentTypeError(f"Actors can't be made by calling their class: write {self.__name__}.remote(…).")

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        raise ArgumentTypeError(f"{self.__name__} is decorated by @remote, and no class can inherit from it: inherit from an undecorated "
                                "class, and decorate the last one.")

    def __reduce__(self) -> Any:
        if _global_of(self._cls) is self:
            return self.__qualname__  # pickled as the global of that name
        return RemoteClass, (self._cls, self._options)

    def __repr__(self) -> str:
        return f"<RemoteClass {self.__module__}.{self.__qualname__}>"


@overload
def remote(cls: type, /) -> RemoteClass: ...
@overload
def remote(**options: Any) -> Callable[[type], RemoteClass]: ...
def remote(*args: Any, **options: Any) -> RemoteClass | Callable[[type], RemoteClass]:
    """Make a class an actor class: ``@remote`` or ``@remote(num_cpus=1, num_gpus=0.5, resources={"x": 1})``.

    Raises: ArgumentError, ArgumentTypeError: an option is wrong. HeadwayError: it is a function.
    """
    if args and options or len(args) > 1:
        raise ArgumentTypeError("Use @remote, or @remote(num_cpus=…) with keyword arguments only.")
    if args:
        return RemoteClass(_checked_plain_class(args[0]), Options({}))
    if not options:
        raise ArgumentTypeError("Use @remote without parentheses, or @remote(num_cpus=…) with at least one option.")
    checked = Options({}).changed(options)
    return lambda cls: RemoteClass(_checked_plain_class(cls), checked)

ASYNC_FLAGS = 0x80 | 0x200  # inspect.CO_COROUTINE and CO_ASYNC_GENERATOR; importing inspect costs 10 ms


def checked_class(cls: object, function: str) -> type:
    """The plain class of a decorated or plain one. Raises: ArgumentTypeError: it is none."""
    if isinstance(cls, RemoteClass):
        return cls._cls
    if not isinstance(cls, type):
        raise ArgumentTypeError(f"{function}() takes a class, not {type(cls).__name__}.")
    return _without_async(cls)


def _without_async(cls: type) -> type:
    for name, member in vars(cls).items():
        if getattr(getattr(member, "__code__", None), "co_flags", 0) & ASYNC_FLAGS:
            raise ArgumentTypeError(f"{cls.__name__}.{name}() is an `async def`, which actors do not run yet: make it a plain method; "
                                    "it may call asyncio.run() inside.")
    return cls


def _by_reference(cls: type) -> Any:
    """What to pickle for ``cls``: itself, or, where its name now stands for the RemoteClass, a reference that finds it under that."""
    found = _global_of(cls)
    return _Undecorated(cls.__module__, cls.__qualname__) if isinstance(found, RemoteClass) and found._cls is cls else cls


def _create(cls: type, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ActorHandle:
    session = session_or_init()
    group = options.placement_group
    spec = ActorSpec(actor_id=new_actor_id(), name=options.name, label=options.name or cls.__name__, class_name=cls.__name__, index=0,
                     resources=options.resources, bundle=options.bundle if group is not None else 0)
    message = CreateActors(
        job_id=session.job_id, group_id=group.id if group is not None else new_group_id(), attempt=0, actors=(spec,),
        bundles=() if group is not None else (options.resources,), strategy="PACK", gang=False, preload=session.preload, env={},
        namespace=options.namespace or session.namespace)
    created, handles = prepare_actors(session, message, cls, args, kwargs, spec.label)
    session.post(created.start)
    if options.name and not session.io.is_current():
        created.accepted.result()  # whether the name is taken is known at once, as in Ray
    return handles[0]


def prepare_actors(session: Session, message: CreateActors, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any],
                   label: str) -> tuple[CreatedActors, list[ActorHandle]]:
    """The request for the actors of ``message``, all made by ``cls(*args, **kwargs)``, and their handles; to be started on the I/O thread.

    Raises: SerializationError: class or arguments can't be sent.
    """
    buffers = dumps_actor(_by_reference(cls), args, kwargs, name=cls.__qualname__)
    methods = methods_of(cls)
    links = [ActorLink(session, ActorId(spec.actor_id), spec.label) for spec in message.actors]
    created = CreatedActors(session, message, buffers, links, label)
    return created, [ActorHandle(link.actor_id, cls.__name__, methods, link) for link in links]


class _Undecorated:
    def __init__(self, module: str, qualname: str) -> None:
        self._where = (module, qualname)

    def __reduce__(self) -> Any:
        return _undecorated, self._where


def _undecorated(module: str, qualname: str) -> Any:
    found: Any = import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found._cls if isinstance(found, RemoteClass) else found


def _global_of(cls: type) -> Any:
    """What stands under the name of ``cls`` in its module, if other processes can import that."""
    found: Any = sys.modules.get(cls.__module__) if cls.__module__ != "__main__" else None
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found


def _checked_plain_class(cls: Any) -> type:
    if isinstance(cls, type):
        return _without_async(cls)
    if isinstance(cls, RemoteClass):
        raise ArgumentTypeError(f"{cls!r} is decorated by @remote twice.")
    if callable(cls):
        raise HeadwayError(f"@remote on the function {getattr(cls, '__name__', cls)!r}: remote functions are not supported, classes are. "
                           "Make it a method of a class.")
    raise ArgumentTypeError(f"@remote takes a class, not {type(cls).__name__}.")


def _checked_bundle(bundle: Any, group: PlacementGroup | None) -> int:
    if isinstance(bundle, bool) or not isinstance(bundle, int):
        raise ArgumentTypeError(f"options(placement_group_bundle_index={bundle!r}) must be an int, not {type(bundle).__name__}.")
    if group is None and bundle != -1:
        raise ArgumentError(f"options(placement_group_bundle_index={bundle}) needs placement_group= as well.")
    if group is not None and not -1 <= bundle < len(group.bundle_specs):
        raise ArgumentError(f"options(placement_group_bundle_index={bundle}): the group has bundles 0 to {len(group.bundle_specs) - 1}; "
                            "-1 means any with room.")
    return bundle
