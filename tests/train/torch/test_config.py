from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ArgumentError, ArgumentTypeError, HeadwayError
from train.backend import RankSetup
from train.torch.config import TorchConfig, _TorchBackend, num_threads

ROOT = Path(__file__).parents[3]


def test_defaults_and_pickling() -> None:
    config = TorchConfig()
    assert (config.backend, config.init_method, config.timeout_s) == (None, "env", 1800)
    assert config.backend_cls is _TorchBackend
    assert pickle.loads(pickle.dumps(TorchConfig("gloo", timeout_s=5))) == TorchConfig(backend="gloo", timeout_s=5)


@pytest.mark.parametrize("backend", ["gloo", "nccl", "NCCL", "cpu:gloo,cuda:nccl", "mpi"])
def test_known_backends_are_accepted(backend: str) -> None:
    assert TorchConfig(backend=backend).backend == backend


@pytest.mark.parametrize("backend", ["bogus", "", "cpu:", ":gloo", "gloo,", "cuda:bogus", "undefined"])
def test_unknown_backend_lists_the_choices(backend: str) -> None:
    with pytest.raises(ArgumentError, match="gloo.*nccl"):
        TorchConfig(backend=backend)


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf])
def test_timeout_must_be_positive_and_finite(timeout_s: float) -> None:
    with pytest.raises(ArgumentError, match="> 0 seconds"):
        TorchConfig(timeout_s=timeout_s)


@pytest.mark.parametrize("kwargs", [{"backend": 5}, {"timeout_s": "5"}, {"timeout_s": True}, {"timeout_s": None}])
def test_wrong_types_are_named(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ArgumentTypeError, match=f"{next(iter(kwargs))}=.*not {type(next(iter(kwargs.values()))).__name__}"):
        TorchConfig(**kwargs)


def test_unknown_init_method() -> None:
    with pytest.raises(ArgumentError, match="env, tcp"):
        TorchConfig(init_method="file")


def test_a_driver_that_builds_a_config_imports_no_torch() -> None:
    code = "import sys; from train.torch import TorchConfig; TorchConfig(backend='gloo'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(("num_cpus", "local_world_size", "wanted", "threads"), [
    (1, 2, None, 1),
    (4, 2, None, 4),
    (2.5, 1, None, 2),
    (0, 2, None, 4),  # no CPUs were given: the node's 8 cores, divided
    (0.5, 16, None, 1),
    (4, 2, "4", 4),
    (4, 2, "1", 1),  # the user's
    (0, 2, "3", 3),
    (2, 2, "0", 2),
    (2, 2, "many", 2),
])
def test_threads_of_a_rank(monkeypatch: pytest.MonkeyPatch, make_ranks: Any, num_cpus: float, local_world_size: int, wanted: str | None,
                           threads: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert num_threads(make_ranks(num_cpus=num_cpus, local_world_size=local_world_size)) == threads


def test_gpus_without_cuda_are_an_error_for_nccl(monkeypatch: pytest.MonkeyPatch, make_ranks: Any, rendezvous: Any) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ranks: RankSetup = make_ranks(use_gpu=True, gpu_ids=(1,), visible_gpu_ids=(0, 1))
    with pytest.raises(HeadwayError, match=r"rank 0 .* given GPU 1, but torch .* sees no CUDA.*backend='gloo'"):
        _TorchBackend().setup(ranks, TorchConfig(), rendezvous)


@pytest.mark.process
def test_R1_all_ranks_meet_in_one_group_with_devices_threads_and_environment(run_ranks: Any) -> None:
    found = run_ranks("""
        import torch, torch.distributed as dist
        def scenario(ranks, rendezvous, backend, config):
            backend.setup(ranks, config, rendezvous)
            total = torch.ones(2) * (ranks.rank + 1)
            dist.all_reduce(total)
            seen = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR",
                    "GLOO_SOCKET_IFNAME", "ACCELERATE_TORCH_DEVICE", "ACCELERATE_USE_CPU")}
            result = {"total": total.tolist(), "backend": dist.get_backend(), "threads": torch.get_num_threads(), "env": seen,
                      "port": os.environ["MASTER_PORT"], "keys": [name for name in os.environ if "TORCHELASTIC" in name or "NCCL" in name]}
            backend.teardown(ranks, config)
            return result | {"initialized": dist.is_initialized()}
    """, world_size=3, env={"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    for rank, result in enumerate(found):
        assert result["total"] == [6.0, 6.0]
        assert result["backend"] == "gloo"
        assert result["threads"] == 1
        assert not result["initialized"]
        assert result["keys"] == []
        assert result["env"] == {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "3", "NODE_RANK": "0",
                                 "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_TORCH_DEVICE": "cpu",
                                 "ACCELERATE_USE_CPU": "true"}
    assert len({result["port"] for result in found}) == 1


@pytest.mark.process
def test_nothing_listens_outside_loopback_and_the_users_choices_stay(run_ranks: Any) -> None:
    found = run_ranks("""
        import socket
        def listeners():
            inodes = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
            rows = [row.split() for name in ("tcp", "tcp6") for row in open(f"/proc/self/net/{name}").readlines()[1:]]
            return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
        def scenario(ranks, rendezvous, backend, config):
            backend.setup(ranks, config, rendezvous)
            import torch.distributed as dist
            dist.barrier()
            return {"listeners": listeners(), "iface": os.environ["GLOO_SOCKET_IFNAME"], "nccl": os.environ.get("NCCL_SOCKET_IFNAME")}
    """, env={"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "^docker"})
    loopback = "0100007F"
    assert found[0]["listeners"] == [loopback, loopback], "the store's and gloo's"
    assert found[1]["listeners"] == [loopback]
    assert {(result["iface"], result["nccl"]) for result in found} == {("lo", "^docker")}


@pytest.mark.process
def test_users_own_env_group_works_and_a_second_init_is_torchs_own_error(run_ranks: Any) -> None:
    found = run_ranks("""
        import torch, torch.distributed as dist
        def scenario(ranks, rendezvous, backend, config):
            backend.setup(ranks, config, rendezvous)
            try:
                dist.init_process_group("gloo")
            except ValueError as exc:
                second = str(exc)
            dist.barrier()
            dist.destroy_process_group()
            dist.init_process_group("gloo")  # env://, on our store
            total = torch.ones(1)
            dist.all_reduce(total)
            dist.barrier()
            backend.teardown(ranks, config)
            backend.teardown(ranks, config)
            return {"second": second, "total": total.item()}
    """)
    for result in found:
        assert "twice" in result["second"]
        assert result["total"] == 2


@pytest.mark.process
def test_F1_attempts_share_no_key_even_in_one_store(run_ranks: Any) -> None:
    found = run_ranks("""
        import torch.distributed as dist
        def scenario(ranks, rendezvous, backend, config):
            backend.setup(ranks, config, rendezvous)
            dist.barrier()
            raw = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False)
            keys = [str(key) for key in raw.list_keys()] if hasattr(raw, "list_keys") else []
            dist.barrier()
            return {"keys": keys}
    """)
    keys = [key for key in found[0]["keys"] if not key.startswith("init/")]
    assert keys
    assert all(key.startswith("run/1/") for key in keys), keys


@pytest.mark.process
def test_first_step_in_a_forked_rank_imports_nothing_big(run_ranks: Any) -> None:
    found = run_ranks("""
        import torch, torch.distributed as dist
        from torch.utils.data import DataLoader, TensorDataset
        def scenario(ranks, rendezvous, backend, config):
            import sys
            before = set(sys.modules)
            backend.setup(ranks, config, rendezvous)
            model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
            optimizer = torch.optim.Adam(model.parameters())
            for (x,) in DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4):
                model(x).sum().backward()
                optimizer.step()
            dist.barrier()
            return {"imported": sorted(set(sys.modules) - before)}
    """)
    for result in found:
        assert len(result["imported"]) < 20, result["imported"]
