from __future__ import annotations

import runtime
from train.backend import Backend, BackendConfig, RankSetup
from train.protocol import JobSpec
from train.storage import LocalStorage
from train.train_worker import load_function, rank_environment

RANKS = RankSetup(rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1, num_nodes=2, host="h", interface="lo", host_id="h",
                  gpu_ids=(), visible_gpu_ids=(), num_cpus=1.0, attempt=1, run_name="run", use_gpu=False)


def test_the_environment_says_who_a_rank_is():
    assert rank_environment(RANKS) == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "1", "ACCELERATE_TORCH_DEVICE": "cpu",
        "ACCELERATE_USE_CPU": "true"}


def test_accelerate_is_given_the_ranks_own_gpu():
    from dataclasses import replace

    variables = rank_environment(replace(RANKS, gpu_ids=(6,), visible_gpu_ids=(4, 6), use_gpu=True))
    assert variables["ACCELERATE_TORCH_DEVICE"] == "cuda:1"
    assert "ACCELERATE_USE_CPU" not in variables


def test_the_function_gets_its_config(storage: LocalStorage):
    function = runtime.dumps_function(lambda config: config["x"] + 1, "f")
    job = JobSpec(function, runtime.dumps_function({"x": 1}, "config"), Backend, BackendConfig(), storage, None, 1)
    assert load_function(job)() == 2
    without = JobSpec(runtime.dumps_function(lambda: 5, "f"), None, Backend, BackendConfig(), storage, None, 1)
    assert load_function(without)() == 5
