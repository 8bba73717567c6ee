from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ArgumentError, ArgumentTypeError
from train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback

BAD = {
    # number of ranks
    "negative ranks": (lambda: ScalingConfig(num_workers=-1), ArgumentError, "must be >= 0 (1 or more ranks; 0 = run locally)"),
    "fractional ranks": (lambda: ScalingConfig(num_workers=1.5), ArgumentTypeError, "must be an int, got float"),
    "ranks as text": (lambda: ScalingConfig(num_workers="2"), ArgumentTypeError, "did you mean 2?"),
    "ranks as bool": (lambda: ScalingConfig(num_workers=True), ArgumentTypeError, "a bool is not a worker count"),
    "a range of ranks": (lambda: ScalingConfig(num_workers=(1, 2)), ArgumentTypeError, "elastic"),
    # resources
    "negative resource": (lambda: ScalingConfig(resources_per_worker={"CPU": -1}), ArgumentError, "{'CPU': -1}"),
    "NaN resource": (lambda: ScalingConfig(resources_per_worker={"CPU": math.nan}), ArgumentError, "{'CPU': nan}"),
    "infinite resource": (lambda: ScalingConfig(resources_per_worker={"CPU": math.inf}), ArgumentError, "{'CPU': inf}"),
    "resource as text": (lambda: ScalingConfig(resources_per_worker={"CPU": "1"}), ArgumentTypeError, "{'CPU': '1'}"),
    "resource as bool": (lambda: ScalingConfig(resources_per_worker={"CPU": True}), ArgumentTypeError, "got bool"),
    "resource without name": (lambda: ScalingConfig(resources_per_worker={1: 1}), ArgumentTypeError, "names of resources are texts"),
    "resources as list": (lambda: ScalingConfig(resources_per_worker=["CPU"]), ArgumentTypeError, "got list"),
    "use_gpu and no GPU": (lambda: ScalingConfig(use_gpu=True, resources_per_worker={"GPU": 0}), ArgumentError, "`use_gpu` is True but"),
    "GPU and no use_gpu": (lambda: ScalingConfig(resources_per_worker={"GPU": 1}), ArgumentError, "`use_gpu` is False but"),
    "use_gpu as int": (lambda: ScalingConfig(use_gpu=1), ArgumentTypeError, "pass True or False"),
    "strategy": (lambda: ScalingConfig(placement_strategy="BOGUS"), ArgumentError, "PACK, SPREAD, STRICT_PACK, STRICT_SPREAD"),
    "strategy as int": (lambda: ScalingConfig(placement_strategy=1), ArgumentTypeError, "got int"),
    "tpu": (lambda: ScalingConfig(use_tpu=True), ArgumentError, "not supported here"),
    # retention
    "keep none": (lambda: CheckpointConfig(num_to_keep=0), ArgumentError, "num_to_keep=0): must be >= 1"),
    "keep -1": (lambda: CheckpointConfig(num_to_keep=-1), ArgumentError, "num_to_keep=-1): must be >= 1"),
    "order": (lambda: CheckpointConfig(checkpoint_score_order="biggest"), ArgumentError, "must be 'max' or 'min'"),
    "attribute as int": (lambda: CheckpointConfig(checkpoint_score_attribute=1), ArgumentTypeError, "name of a reported metric"),
    "empty attribute": (lambda: CheckpointConfig(checkpoint_score_attribute=""), ArgumentError, "name of a reported metric"),
    # failures
    "failures -2": (lambda: FailureConfig(max_failures=-2), ArgumentError, "use -1 for unlimited"),
    "failures 1.5": (lambda: FailureConfig(max_failures=1.5), ArgumentTypeError, "use -1 for unlimited"),
    # name and storage
    "name with path": (lambda: RunConfig(name="../x"), ArgumentError, "allowed are 1 to 128 characters"),
    "name as int": (lambda: RunConfig(name=5), ArgumentTypeError, "got int"),
    "storage as int": (lambda: RunConfig(storage_path=5), ArgumentTypeError, "got int"),
    "empty storage": (lambda: RunConfig(storage_path=""), ArgumentError, "pass a path or a URL"),
    "unknown scheme": (lambda: RunConfig(storage_path="bogus://x"), ArgumentError, "scheme 'bogus' is unknown: use a path"),
    "scheme without its package": (lambda: RunConfig(storage_path="oci://x/y"), ArgumentError, "needs another package"),
    # objects
    "failure config as dict": (lambda: RunConfig(failure_config={"max_failures": 1}), ArgumentTypeError, "use FailureConfig(**cfg)"),
    "another config class": (lambda: RunConfig(checkpoint_config=FailureConfig()), ArgumentTypeError, "train.CheckpointConfig"),
    "a callback's class": (lambda: RunConfig(callbacks=[UserCallback]), ArgumentTypeError, "not the class"),
    "one callback": (lambda: RunConfig(callbacks=UserCallback()), ArgumentTypeError, "pass a list"),
    "runtime env": (lambda: RunConfig(worker_runtime_env={"pip": []}), ArgumentError, "'pip'"),
    "env vars": (lambda: RunConfig(worker_runtime_env={"env_vars": {"A": 1}}), ArgumentTypeError, "must be texts"),
    # unknown
    "unknown argument": (lambda: ScalingConfig(num_worker=2), ArgumentTypeError, "did you mean 'num_workers'?"),
    "unknown argument of RunConfig": (lambda: RunConfig(storage="x"), ArgumentTypeError, "unexpected argument 'storage'"),
}


@pytest.mark.parametrize("row", BAD)
def test_bad_input_is_refused_in_the_constructor(row: str):
    make, error, text = BAD[row]
    with pytest.raises(error) as caught:
        make()
    assert text in str(caught.value)
    assert isinstance(caught.value, TypeError if error is ArgumentTypeError else ValueError)


@pytest.mark.parametrize("make", [
    lambda: ScalingConfig(trainer_resources={"CPU": 1}), lambda: FailureConfig(fail_fast=True),
    lambda: FailureConfig(max_preemption_failures=3), lambda: CheckpointConfig(checkpoint_frequency=1),
    lambda: CheckpointConfig(checkpoint_at_end=True), lambda: RunConfig(verbose=2), lambda: RunConfig(sync_config=object()),
    lambda: RunConfig(stop={"epoch": 3}), lambda: RunConfig(log_to_file=True), lambda: RunConfig(callbacks=[object()])])
def test_what_only_ray_has_is_accepted_with_one_warning(make: Callable[[], Any]):
    with pytest.warns(UserWarning, match=r"no effect|never called") as caught:
        make()
    assert len(caught) == 1


def test_resources_of_a_rank():
    assert ScalingConfig().resources_of_rank == {"CPU": 1.0}
    assert ScalingConfig(use_gpu=True).resources_of_rank == {"GPU": 1.0}
    assert ScalingConfig(use_gpu=True, resources_per_worker={"CPU": 2}).resources_of_rank == {"CPU": 2.0, "GPU": 1.0}
    assert ScalingConfig(resources_per_worker={"CPU": 0, "disk": 3}).resources_of_rank == {"disk": 3.0}
    typed = ScalingConfig(use_gpu=True, accelerator_type="A100", num_workers=2)
    assert typed.total_resources == {"GPU": 2.0, "accelerator_type:A100": 0.002}
    assert (typed.num_cpus_per_worker, typed.num_gpus_per_worker) == (0.0, 1.0)
    assert typed.additional_resources_per_worker == {"accelerator_type:A100": 0.001}


def test_defaults_are_filled_in_and_all_can_be_pickled(tmp_path: Path):
    config = RunConfig(storage_path=tmp_path, worker_runtime_env={"env_vars": {"A": "b"}})
    assert config.failure_config == FailureConfig(max_failures=0)
    assert config.checkpoint_config == CheckpointConfig(num_to_keep=None)
    assert config.env_vars == {"A": "b"}
    assert RunConfig().env_vars == {}
    for made in (config, ScalingConfig(num_workers=3), FailureConfig(-1), CheckpointConfig(2, "loss", "min")):
        assert pickle.loads(pickle.dumps(made)) == made


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(ScalingConfig(num_workers=2)) == "ScalingConfig(num_workers=2)"


@pytest.mark.parametrize("path", ["memory://x", "file:///tmp/x", "~/x", "relative/x", Path("x")])
def test_storage_paths_that_are_fine(path: Any):
    assert RunConfig(storage_path=path).storage_path == path
