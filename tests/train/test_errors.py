from __future__ import annotations

import pickle

import pytest

from runtime.errors import HeadwayError
from train import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_a_headway_error_and_can_be_pickled(name: str):
    error = getattr(errors, name)("what happened")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, HeadwayError)
    assert type(again) is type(error)
    assert str(again) == "what happened"


def test_failures_of_ranks_and_controller_survive_pickling():
    again = pickle.loads(pickle.dumps(errors.WorkerGroupError("x", {1: ValueError("y")})))
    assert isinstance(again.worker_failures[1], ValueError)
    again = pickle.loads(pickle.dumps(errors.ControllerError("x", KeyError("k"))))
    assert isinstance(again.controller_failure, KeyError)


def test_a_failed_training_is_caught_as_rays_first_engine_had_it():
    for cls in (errors.TrainingFailedError, errors.WorkerGroupError, errors.ControllerError, errors.WorkerGroupStartError):
        assert issubclass(cls, RuntimeError)
        assert issubclass(cls, errors.TrainingFailedError)
    assert issubclass(errors.StorageError, OSError)
    assert issubclass(errors.OutsideTrainingError, RuntimeError)
