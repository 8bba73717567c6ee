from __future__ import annotations

import collections
import warnings
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from train.torch import data as data_module
from train.torch.data import prepare_data_loader

NUMBERS: Dataset[int] = Subset(range(10), range(10))  # type: ignore[arg-type]


def collate(items: list[int]) -> list[int]:
    return list(items)


def everything(make: Any, as_rank: Any, world_size: int = 2, epoch: int | None = None) -> list[list[Any]]:
    """The batches of each rank, each rank with a loader of its own."""
    batches = []
    for rank in range(world_size):
        as_rank(rank=rank, world_size=world_size)
        loader = prepare_data_loader(make())
        if epoch is not None:
            loader.sampler.set_epoch(epoch)
        batches.append([batch.tolist() for batch in loader])
    return batches


def test_ranks_share_the_data_in_order_or_shuffled(as_rank: Any) -> None:
    ordered = everything(lambda: DataLoader(NUMBERS, batch_size=2), as_rank)
    assert ordered == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]
    shuffled = everything(lambda: DataLoader(NUMBERS, batch_size=5, shuffle=True), as_rank)
    assert sorted(sum(sum(shuffled, []), [])) == list(range(10))
    assert shuffled != ordered


def test_set_epoch_gives_every_epoch_another_order_alike_on_all_ranks(as_rank: Any) -> None:
    def make() -> DataLoader[int]:
        return DataLoader(NUMBERS, batch_size=5, shuffle=True)

    first, again, second = (everything(make, as_rank, epoch=epoch) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    assert sorted(sum(sum(second, []), [])) == list(range(10))


def test_one_rank_and_add_dist_sampler_false_leave_the_loader_alone(as_rank: Any) -> None:
    loader = DataLoader(NUMBERS, batch_size=3, shuffle=True)
    as_rank(world_size=1)
    assert prepare_data_loader(loader) is loader
    as_rank()
    assert prepare_data_loader(loader, add_dist_sampler=False) is loader


def test_every_argument_of_the_loader_is_kept(as_rank: Any) -> None:
    as_rank()
    generator = torch.Generator()
    loader = DataLoader(NUMBERS, batch_size=3, shuffle=True, num_workers=1, collate_fn=collate, pin_memory=False, drop_last=True, timeout=7,
                        worker_init_fn=print, multiprocessing_context="spawn", generator=generator, prefetch_factor=5,
                        persistent_workers=True)
    prepared = prepare_data_loader(loader)
    assert prepared is not loader
    assert type(loader.sampler) is RandomSampler, "the user's own loader is not changed"
    changed = {name for name, value in vars(loader).items() if vars(prepared)[name] is not value}
    assert changed == {"sampler", "batch_sampler"}
    assert prepared.batch_sampler is not None
    assert (prepared.batch_sampler.batch_size, prepared.batch_sampler.drop_last) == (3, True)
    assert prepared.multiprocessing_context is loader.multiprocessing_context
    assert len(prepared) == 1


def test_a_subclass_with_another_constructor_is_kept(as_rank: Any) -> None:
    class Doubling(DataLoader[int]):
        def __init__(self, factor: int) -> None:
            super().__init__(NUMBERS, batch_size=5)
            self.factor = factor

        def __iter__(self) -> Any:
            return (batch * self.factor for batch in super().__iter__())

    as_rank(rank=1)
    assert [batch.tolist() for batch in prepare_data_loader(Doubling(2))] == [[2, 6, 10, 14, 18]]


def test_plain_batch_sampler_is_divided_and_stays_batched(as_rank: Any) -> None:
    def make() -> DataLoader[int]:
        return DataLoader(NUMBERS, batch_sampler=BatchSampler(SequentialSampler(NUMBERS), 4, drop_last=True))  # type: ignore[arg-type]

    assert everything(make, as_rank) == [[[0, 2, 4, 6]], [[1, 3, 5, 7]]]
    assert everything(make, as_rank, epoch=3), "loader.sampler has set_epoch here too"


def test_loader_without_batches_is_divided(as_rank: Any) -> None:
    as_rank(rank=1)
    assert list(prepare_data_loader(DataLoader(NUMBERS, batch_size=None))) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("wrap", [False, True])
def test_existing_distributed_sampler_is_kept_without_a_word(as_rank: Any, wrap: bool) -> None:
    as_rank()
    sampler: Any = DistributedSampler(NUMBERS, num_replicas=2, rank=0)
    loader = DataLoader(NUMBERS, batch_sampler=BatchSampler(sampler, 2, False)) if wrap else DataLoader(NUMBERS, 2, sampler=sampler)
    assert prepare_data_loader(loader) is loader


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(4))


class Backwards(Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(9, -1, -1))

    def __len__(self) -> int:
        return 10


class Pairs(Sampler[list[int]]):
    def __iter__(self) -> Any:
        return iter([[0, 1], [2, 3]])

    def __len__(self) -> int:
        return 2


KEPT = {
    "an IterableDataset": lambda: DataLoader(Stream(), batch_size=2),
    "the sampler is a Backwards": lambda: DataLoader(NUMBERS, batch_size=2, sampler=Backwards()),
    "the sampler is a WeightedRandomSampler": lambda: DataLoader(NUMBERS, sampler=WeightedRandomSampler([1.0] * 10, 10)),
    "RandomSampler with replacement": lambda: DataLoader(NUMBERS, sampler=RandomSampler(NUMBERS, replacement=True)),  # type: ignore[arg-type]
    "or num_samples": lambda: DataLoader(NUMBERS, sampler=RandomSampler(NUMBERS, num_samples=4)),  # type: ignore[arg-type]
    "the batch sampler is a Pairs": lambda: DataLoader(NUMBERS, batch_sampler=Pairs()),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_cannot_be_divided_is_kept_with_one_warning_that_says_what_happens(as_rank: Any, what: str) -> None:
    as_rank()
    loader = KEPT[what]()
    with pytest.warns(UserWarning, match=f"prepare_data_loader: .*{what}.*each rank") as caught:
        assert prepare_data_loader(loader) is loader
    assert len(caught) == 1
    assert caught[0].filename == __file__, "the warning points at the user's line"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_data_loader(loader, add_dist_sampler=False)


def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that every machine has and that is not the CPU."""
    monkeypatch.setattr(data_module, "get_device", lambda: torch.device("meta"))


def test_batches_move_to_the_device(as_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank()
    on_meta(monkeypatch)
    loader = DataLoader(NUMBERS, batch_size=2)
    prepared = prepare_data_loader(loader)
    assert isinstance(prepared, DataLoader)
    assert len(prepared) == 3
    assert [batch.device.type for batch in prepared] == ["meta"] * 3
    assert [batch.device.type for batch in prepared] == ["meta"] * 3, "a second epoch"
    prepared.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert prepare_data_loader(loader, add_dist_sampler=False, move_to_device=False) is loader


Point = collections.namedtuple("Point", "x label")


def test_containers_keep_their_class_and_what_is_no_tensor_stays(as_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Box:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def to(self, device: torch.device) -> Box:
            return Box(self.tensor.to(device))

    as_rank()
    on_meta(monkeypatch)
    one = torch.ones(1)
    batches = [{"x": one, "name": "a"}, [one, (one, 5)], Point(one, "b"), collections.OrderedDict(x=one), None, Box(one),
               collections.defaultdict(list, x=[one])]
    moved = list(prepare_data_loader(DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch),  # type: ignore[arg-type]
                                     add_dist_sampler=False))
    assert [type(batch) for batch in moved] == [type(batch) for batch in batches]
    assert moved[0]["x"].is_meta
    assert moved[0]["name"] == "a"
    assert moved[1][1][0].is_meta
    assert moved[1][1][1] == 5
    assert moved[2].x.is_meta
    assert moved[3]["x"].is_meta
    assert moved[5].tensor.is_meta
    assert moved[6]["x"][0].is_meta
    assert batches[0]["x"] is one, "the dataset's own object is not changed"


def test_a_subclass_keeps_its_methods_behind_the_device(as_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(DataLoader[int]):
        def title(self) -> str:
            return f"{len(self)} batches"

    as_rank()
    on_meta(monkeypatch)
    assert prepare_data_loader(Named(NUMBERS, batch_size=5)).title() == "1 batches"  # type: ignore[attr-defined]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_come_through_a_stream_of_their_own(as_rank: Any) -> None:
    as_rank(world_size=1, use_gpu=True, gpu_ids=(0,), visible_gpu_ids=(0,))
    rows = torch.arange(64 * 1000, dtype=torch.float32).reshape(64, 1000)
    loader = prepare_data_loader(DataLoader(rows, batch_size=8, pin_memory=True))  # type: ignore[arg-type]
    sums = [(batch * 1.0).sum().item() for batch in loader]
    assert sums == [part.sum().item() for part in rows.split(8)]
