from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from train import context, get_checkpoint, get_context, report
from train.backend import Backend, BackendConfig, RankSetup
from train.errors import OutsideTrainingError
from train.protocol import JobSpec, RankStart
from train.session import Session
from train.storage import LocalStorage


@pytest.fixture
def session(storage: LocalStorage) -> Iterator[Session]:
    job = JobSpec(b"", None, Backend, BackendConfig(), storage, {"seed": 1}, 1 << 20)
    ranks = RankSetup(rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1, num_nodes=2, host="10.0.0.2", interface="eth0",
                      host_id="h", gpu_ids=(5,), visible_gpu_ids=(4, 5), num_cpus=2.0, attempt=1, run_name="run", use_gpu=True)
    made = Session(job, RankStart(ranks, None), link=None)  # type: ignore[arg-type]  # nothing is sent
    context.activate(made)
    yield made
    context.activate(None)


def test_who_a_rank_is(session: Session):
    asked = get_context()
    assert (asked.get_world_rank(), asked.get_world_size()) == (3, 4)
    assert (asked.get_local_rank(), asked.get_local_world_size(), asked.get_node_rank()) == (1, 2, 1)
    assert asked.get_experiment_name() == "run"
    assert context.in_training_function()
    assert context.current_session() is session
    assert context.current_ranks().device_index == 1


def test_where_the_run_is_stored(session: Session, storage: LocalStorage):
    stored = get_context().get_storage()
    assert stored.experiment_fs_path == storage.path
    assert stored.storage_fs_path == storage.root
    assert stored.experiment_dir_name == "run"
    assert stored.build_checkpoint_path_from_name("c") == f"{storage.path}/c"
    assert stored.local_working_directory == os.getcwd()
    assert stored.storage_filesystem.exists(storage.path)


@pytest.mark.parametrize(("name", "value"), [
    ("get_metadata", {"seed": 1}), ("get_trial_name", "run"), ("get_trial_id", "run"), ("get_trial_resources", {"CPU": 2.0, "GPU": 1.0})])
def test_rays_deprecated_questions_are_answered_with_a_warning(session: Session, name: str, value: Any):
    with pytest.warns(UserWarning, match=f"{name}\\(\\) is deprecated in Ray"):
        assert getattr(get_context(), name)() == value


@pytest.mark.parametrize("call", [get_context, get_checkpoint, lambda: report({}), context.current_ranks])
def test_outside_a_training_function_the_call_is_named(call: Callable[[], Any]):
    assert not context.in_training_function()
    with pytest.raises(OutsideTrainingError, match=r"\(\) cannot be used outside of a training function") as caught:
        call()
    assert isinstance(caught.value, RuntimeError)
