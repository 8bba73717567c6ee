from __future__ import annotations

import pickle

import pytest

from train import Backend, BackendConfig
from train.backend import RankSetup


@pytest.mark.parametrize(("own", "visible", "index"), [((), (), None), ((3,), (3,), 0), ((3,), (1, 3), 1), ((2, 3), (2, 3), 0)])
def test_the_index_of_a_ranks_gpu_among_those_it_sees(own: tuple[int, ...], visible: tuple[int, ...], index: int | None):
    ranks = RankSetup(rank=0, world_size=1, local_rank=0, local_world_size=1, node_rank=0, num_nodes=1, host="h", interface="lo",
                      host_id="h", gpu_ids=own, visible_gpu_ids=visible, num_cpus=1.0, attempt=1, run_name="run", use_gpu=bool(own))
    assert ranks.device_index == index
    assert pickle.loads(pickle.dumps(ranks)) == ranks


def test_the_default_backend_does_nothing():
    assert BackendConfig().backend_cls is Backend
    assert Backend().preload == ()
