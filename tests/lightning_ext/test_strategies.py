from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from lightning_ext import RayDDPStrategy, TrainDDPStrategy, TrainLightningEnvironment

SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2", "SLURM_NODEID": "0",
         "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "GROUP_RANK": "0"}


@pytest.fixture(autouse=True)
def rank_of_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Trainer() sets it; other tests are rank 0 again


def make_trainer(**kwargs: Any) -> pl.Trainer:
    return pl.Trainer(**({"accelerator": "auto", "devices": "auto", "logger": False, "enable_progress_bar": False} | kwargs))


def test_built_on_the_driver_it_pickles() -> None:
    assert RayDDPStrategy is TrainDDPStrategy
    for module in (pickle, cloudpickle):
        copy = module.loads(module.dumps(TrainDDPStrategy(find_unused_parameters=True)))
        assert copy._ddp_kwargs == {"find_unused_parameters": True}
        assert copy.cluster_environment is None


def test_a_trainer_on_the_driver_is_a_clear_error() -> None:
    with pytest.raises(RuntimeError, match="training function"):
        make_trainer(strategy=TrainDDPStrategy(), plugins=[TrainLightningEnvironment()])


@pytest.mark.parametrize("strategy", [TrainDDPStrategy, lambda: "train_ddp"])
@pytest.mark.parametrize("plugins", [[TrainLightningEnvironment], []])
@pytest.mark.parametrize("environment", [{}, SLURM, ELASTIC])
def test_ranks_and_sizes_are_the_runs_whatever_the_environment_says(as_rank: Any, monkeypatch: pytest.MonkeyPatch, strategy: Any,
                                                                    plugins: Any, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    as_rank(rank=5, world_size=6, num_nodes=2)
    trainer = make_trainer(strategy=strategy(), plugins=[plugin() for plugin in plugins])
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (6, 5, 2, 1)
    assert rank_zero_only.rank == 5
    assert not trainer.is_global_zero
    assert type(trainer.strategy.cluster_environment) is TrainLightningEnvironment
    assert trainer._accelerator_connector.cluster_environment is trainer.strategy.cluster_environment
    assert trainer.strategy.launcher is None
    assert trainer.strategy.root_device == torch.device("cpu")
    assert trainer.distributed_sampler_kwargs == {"num_replicas": 6, "rank": 5}
    assert trainer.strategy.num_processes == 3  # type: ignore[attr-defined]


def test_an_interactive_parent_is_no_obstacle(as_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytorch_lightning.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    as_rank(world_size=2)
    assert make_trainer(strategy=TrainDDPStrategy(), plugins=[TrainLightningEnvironment()]).world_size == 2


@pytest.mark.parametrize("guess", [LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment])
def test_only_inside_a_training_function_a_guessed_environment_is_replaced(as_rank: Any, guess: Any) -> None:
    outside = TrainDDPStrategy(cluster_environment=guess())
    assert type(outside.cluster_environment) is guess
    as_rank()
    outside.cluster_environment = guess()
    assert type(outside.cluster_environment) is TrainLightningEnvironment


def test_an_environment_of_the_users_own_stays(as_rank: Any) -> None:
    class Own(TrainLightningEnvironment):
        pass

    as_rank()
    trainer = make_trainer(strategy=TrainDDPStrategy(), plugins=[Own()])
    assert type(trainer.strategy.cluster_environment) is Own


@pytest.mark.parametrize("kwargs", [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"sync_batchnorm": True}])
def test_other_arguments_of_the_trainer_combine_with_it(as_rank: Any, kwargs: dict[str, Any]) -> None:
    as_rank(world_size=2)
    assert isinstance(make_trainer(strategy=TrainDDPStrategy(), **kwargs).strategy, TrainDDPStrategy)


@pytest.mark.process
def test_two_ranks_train_on_their_shares_and_stay_equal(run_ranks: Any) -> None:
    found = run_ranks("""
        from lightning_ext import TrainDDPStrategy
        class Seeing(Little):
            def training_step(self, batch, batch_idx):
                seen.extend(batch[0][:, 0].tolist())
                return super().training_step(batch, batch_idx)
        def scenario(ranks):
            global seen
            seen = []
            torch.manual_seed(ranks.rank)  # DDP makes them equal
            model = Seeing()
            threads = torch.get_num_threads()
            trainer = make_trainer(strategy="train_ddp", max_epochs=1, enable_checkpointing=False, num_sanity_val_steps=0)
            trainer.fit(model)
            every = trainer.strategy.reduce(torch.tensor(float(ranks.rank)), reduce_op="sum").item()
            return {"seen": sorted(seen), "weight": model.net.weight.tolist(), "sum": every, "nodes": trainer.num_nodes,
                    "threads": torch.get_num_threads() - threads, "word": trainer.strategy.broadcast(f"from {ranks.rank}"),
                    "all": trainer.strategy.reduce_boolean_decision(ranks.rank == 0, all=False)}
    """, env=SLURM)
    assert sorted(found[0]["seen"] + found[1]["seen"]) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert found[0]["weight"] == found[1]["weight"]
    for result in found:
        assert {name: result[name] for name in ("sum", "nodes", "threads", "word", "all")} == {"sum": 1, "nodes": 1, "threads": 0,
                                                                                              "word": "from 0", "all": True}


@pytest.mark.process
def test_a_group_of_another_size_is_refused(run_ranks: Any) -> None:
    found = run_ranks("""
        import torch.distributed as dist
        from lightning_ext import TrainDDPStrategy
        def scenario(ranks):
            dist.barrier()
            dist.destroy_process_group()
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            try:
                make_trainer(strategy=TrainDDPStrategy()).fit(Little())
            except RuntimeError as exc:
                return str(exc)
    """)
    assert all("the process group has 1 ranks, the run 2" in text for text in found), found
