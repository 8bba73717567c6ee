"""Every exception that Headway raises, in one tree.

::

    HeadwayError
    ├── ArgumentError (ValueError)                an argument has a bad value
    ├── ArgumentTypeError (TypeError)             an argument has the wrong type
    ├── NotInitializedError (RuntimeError)        runtime.init() was not called, or shutdown() was
    ├── AlreadyInitializedError (RuntimeError)    runtime.init() was called before
    ├── ConnectError (ConnectionError)            a peer could not be reached; says refused, time-out or name look-up
    ├── AuthenticationError                       the two sides do not hold the same token; token file problems
    ├── VersionMismatchError                      protocol or Python of the two sides do not fit
    ├── ProtocolError                             bytes that are no valid frame or message
    ├── ConnectionLostError (ConnectionError)     an open connection ended; pending calls fail with it
    ├── HeadLostError                             the cluster's head is gone for good
    │   └── JobStoppedError                       not the head, but this job: somebody stopped it (headway stop)
    ├── PlacementError                            the asked resources can't be had
    │   ├── InfeasibleError                       no node could ever satisfy the request
    │   └── PlacementTimeoutError (TimeoutError)  not within the placement time-out
    ├── ActorError                                about one actor
    │   ├── ActorStartError                       it did not become ready
    │   ├── ActorDiedError                        it ended; .evidence says how
    │   └── ActorNotFoundError (ValueError)       no living actor has this name
    ├── NameTakenError (ValueError)               a living actor or node has this name
    ├── TaskError                                 the called method raised; also an instance of the user's class
    ├── TaskCancelledError                        the call was cancelled
    ├── GetTimeoutError (TimeoutError)            get() or wait() ran out of time
    ├── SerializationError (TypeError)            an argument, result or function can't be pickled; names it
    ├── ChannelClosedError                        the other end of a channel is gone
    └── FencedError                               the sender belongs to an attempt or incarnation that was declared dead

Train's errors (``train.errors``) grow from the same base.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ActorDiedError",
    "ActorError",
    "ActorNotFoundError",
    "ActorStartError",
    "AlreadyInitializedError",
    "ArgumentError",
    "ArgumentTypeError",
    "AuthenticationError",
    "ChannelClosedError",
    "ConnectError",
    "ConnectionLostError",
    "FencedError",
    "GetTimeoutError",
    "HeadLostError",
    "HeadwayError",
    "InfeasibleError",
    "JobStoppedError",
    "NameTakenError",
    "NotInitializedError",
    "PlacementError",
    "PlacementTimeoutError",
    "ProtocolError",
    "SerializationError",
    "TaskCancelledError",
    "TaskError",
    "VersionMismatchError",
    "by_name",
]


class HeadwayError(Exception):
    """Base of all errors that Headway raises on purpose."""


class ArgumentError(HeadwayError, ValueError):
    """An argument has a value that is not allowed; the text names argument, value and what is allowed."""


class ArgumentTypeError(HeadwayError, TypeError):
    """An argument has a type that is not allowed."""


class NotInitializedError(HeadwayError, RuntimeError):
    """There is no session: ``runtime.init()`` was not called, or ``runtime.shutdown()`` was."""


class AlreadyInitializedError(HeadwayError, RuntimeError):
    """``runtime.init()`` was called before; a process has one session at a time."""


class ConnectError(HeadwayError, ConnectionError):
    """A peer could not be reached. The text tells refused, time-out and failed name look-up apart."""


class AuthenticationError(HeadwayError):
    """The two sides do not hold the same token, or the token file can't be used."""


class VersionMismatchError(HeadwayError):
    """Protocol or Python version of the two sides do not fit; the text lists both."""


class ProtocolError(HeadwayError):
    """Received bytes are no valid frame or message; the connection is closed."""


class ConnectionLostError(HeadwayError, ConnectionError):
    """An open connection ended; every call that was pending on it fails with this."""


class HeadLostError(HeadwayError):
    """The head of the cluster is gone; what it placed is being stopped."""


class JobStoppedError(HeadLostError):
    """Somebody else than its driver stopped this job; what it had placed is being stopped. A new ``init()`` opens a new one."""


class PlacementError(HeadwayError):
    """The asked resources can't be had."""


class InfeasibleError(PlacementError):
    """No node of the cluster could ever satisfy the request; the text has the table of nodes."""


class PlacementTimeoutError(PlacementError, TimeoutError):
    """The request was not satisfied within the placement time-out; the text says what it waited for."""


class ActorError(HeadwayError):
    """About one actor. ``evidence`` (an ``ExitEvidence`` or None) says how it ended: exit code or signal, last log lines, memory."""

    def __init__(self, message: str = "the actor failed", evidence: Any = None) -> None:
        super().__init__(message)
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.evidence))


class ActorStartError(ActorError):
    """The actor did not become ready: its process died, its constructor raised, or time ran out."""


class ActorDiedError(ActorError):
    """The actor ended; ``evidence`` says how."""


class ActorNotFoundError(ActorError, ValueError):
    """No living actor has this name."""


class NameTakenError(HeadwayError, ValueError):
    """A living actor or node already has this name."""


class TaskError(HeadwayError):
    """A remote method raised. Also an instance of the class that it raised; ``remote_traceback`` is its traceback as text."""

    remote_traceback: str = ""


class TaskCancelledError(HeadwayError):
    """The call was cancelled before it ended."""


class GetTimeoutError(HeadwayError, TimeoutError):
    """``get()`` ran out of time; the call itself goes on."""


class SerializationError(HeadwayError, TypeError):
    """Something that has to travel can't be pickled; the text names the argument or the captured variable."""


class ChannelClosedError(HeadwayError):
    """The other end of a channel is gone."""


class FencedError(HeadwayError):
    """The sender belongs to an attempt, incarnation or head that was declared dead; it has to stop."""


def by_name(name: str, message: str) -> HeadwayError:
    """An error received as (class name, text) from a peer, as an exception of this tree."""
    kind = globals().get(name)
    if isinstance(kind, type) and issubclass(kind, HeadwayError):
        return kind(message)
    return HeadwayError(f"{name}: {message}")
