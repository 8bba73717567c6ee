"""Ray's names for our exceptions: ``ray.exceptions.X`` becomes ``runtime.exceptions.X``; the classes are those of ``runtime.errors``."""

from __future__ import annotations

from runtime.errors import (
    ActorDiedError,
    ActorError,
    ActorStartError,
    ConnectError,
    GetTimeoutError,
    HeadLostError,
    HeadwayError,
    PlacementError,
    SerializationError,
    TaskCancelledError,
    TaskError,
)

__all__ = [
    "ActorDiedError", "ActorPlacementGroupRemoved", "ActorUnavailableError", "ActorUnschedulableError", "GetTimeoutError", "NodeDiedError",
    "RayActorError", "RayError", "RaySystemError", "RayTaskError", "RuntimeEnvSetupError", "TaskCancelledError", "TaskUnschedulableError",
    "UserCodeException", "UnserializableException", "WorkerCrashedError",
]

RayError = HeadwayError
RayTaskError = UserCodeException = TaskError
RayActorError = ActorError
ActorPlacementGroupRemoved = WorkerCrashedError = NodeDiedError = ActorDiedError
ActorUnavailableError = ConnectError
ActorUnschedulableError = TaskUnschedulableError = PlacementError
RuntimeEnvSetupError = ActorStartError
RaySystemError = HeadLostError
UnserializableException = SerializationError
