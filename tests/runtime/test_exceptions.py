"""Ray's names for our exceptions."""

from __future__ import annotations

from runtime import errors, exceptions


def test_rays_names_are_our_classes() -> None:
    assert exceptions.RayError is errors.HeadwayError
    assert exceptions.RayTaskError is errors.TaskError
    assert exceptions.RayActorError is errors.ActorError
    assert exceptions.ActorDiedError is errors.ActorDiedError
    assert exceptions.GetTimeoutError is errors.GetTimeoutError
    assert exceptions.TaskCancelledError is errors.TaskCancelledError
    for name in exceptions.__all__:
        assert issubclass(getattr(exceptions, name), errors.HeadwayError)
