from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from runtime.errors import ArgumentError
from train.torch import prepare_model


def test_one_rank_is_not_wrapped(as_rank: Any) -> None:
    as_rank(world_size=1)
    model = nn.Linear(2, 2)
    assert prepare_model(model) is model
    assert prepare_model(model, parallel_strategy="fsdp") is model


def test_without_a_strategy_it_is_only_moved(as_rank: Any) -> None:
    as_rank()
    assert next(prepare_model(nn.Linear(2, 2), torch.device("meta"), None).parameters()).is_meta
    assert not next(prepare_model(nn.Linear(2, 2), False, None).parameters()).is_meta


def test_fsdp_needs_gpus(as_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match="use_gpu=True"):
        prepare_model(nn.Linear(2, 2), parallel_strategy="fsdp")


def test_unknown_strategy(as_rank: Any) -> None:
    as_rank()
    with pytest.raises(ArgumentError, match="'zero3'.*'ddp', 'fsdp' or None"):
        prepare_model(nn.Linear(2, 2), parallel_strategy="zero3")


@pytest.mark.process
def test_ddp_over_two_ranks_steps_like_one_rank_on_all_data(run_ranks: Any) -> None:
    found = run_ranks("""
        import torch
        from train.torch import prepare_model
        def scenario(ranks, rendezvous, backend, config):
            backend.setup(ranks, config, rendezvous)
            torch.manual_seed(0)
            model = prepare_model(torch.nn.Linear(3, 1), parallel_strategy_kwargs={"gradient_as_bucket_view": True})
            data = torch.arange(12.0).reshape(4, 3)[ranks.rank::2]  # (2, 3): this rank's rows
            model(data).mean().backward()
            return {"class": type(model).__name__, "view": model.gradient_as_bucket_view, "grad": model.module.weight.grad.tolist()}
    """)
    expected = torch.arange(12.0).reshape(4, 3).mean(0).tolist()
    for result in found:
        assert result["class"] == "DistributedDataParallel"
        assert result["view"]
        assert result["grad"] == [pytest.approx(expected)]
