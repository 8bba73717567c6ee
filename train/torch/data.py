"""``prepare_data_loader``: a DataLoader that gives each rank its share, on the rank's device.

The given loader is copied attribute by attribute and only its sampler is replaced, so every argument that it was built with
(workers, prefetching, generator, collate function, those of a subclass) is kept, whichever torch version it comes from.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler, Sampler, SequentialSampler

from train.context import current_ranks
from train.torch.device import get_device

__all__ = ["prepare_data_loader"]

_END = object()


def prepare_data_loader(data_loader: DataLoader[Any], add_dist_sampler: bool = True, move_to_device: bool = True,
                        auto_transfer: bool = True) -> DataLoader[Any]:
    """The loader, giving this rank its share of the data, as batches on this rank's device.

    With several ranks a ``DistributedSampler`` takes the place of a plain sequential or random sampler (also inside a plain
    ``BatchSampler``): it shuffles if the loader did, and pads so that all ranks get equally many samples. Call
    ``loader.sampler.set_epoch(epoch)`` before each epoch, else every epoch has the same order. What can't be divided so is kept as it
    is, with one warning: an ``IterableDataset``, a sampler or batch sampler of another class. A ``DistributedSampler`` that is there
    already is kept silently.

    Args:
        add_dist_sampler: False: never touch the sampler.
        move_to_device: move each batch (tensors, and tensors within dicts, lists and tuples) to ``get_device()``.
        auto_transfer: on a GPU, copy the next batch on a stream of its own while the current one is used (``pin_memory=True`` helps).
    """
    if add_dist_sampler and current_ranks().world_size > 1:
        data_loader = _distribute(data_loader)
    device = get_device()
    if move_to_device and device.type != "cpu":
        data_loader = _DeviceLoader(data_loader, device, auto_transfer)
    return data_loader


def _distribute(loader: DataLoader[Any]) -> DataLoader[Any]:
    if isinstance(loader.dataset, IterableDataset):
        _warn("the dataset is an IterableDataset, which can't be divided from outside: each rank iterates over all of it, unless the "
              "dataset itself gives each rank its share (get_context().get_world_rank() and get_world_size()).")
        return loader
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        if not isinstance(getattr(batches, "sampler", None), DistributedSampler):
            _warn(f"the batch sampler is a {type(batches).__name__}, which is kept: each rank gets the batches that it yields there, "
                  "all of them if it does not look at the rank.")
        return loader
    current = loader.sampler if batches is None else batches.sampler
    if isinstance(current, DistributedSampler):
        return loader
    if not _is_plain(current):
        _warn(f"the sampler is a {_name(current)}, which is kept: each rank draws from the whole dataset, so an epoch of N ranks sees N "
              "times as many samples, and the same ones if the ranks are seeded alike. Pass a sampler that divides the data instead.")
        return loader
    ranks = current_ranks()
    sampler: DistributedSampler[Any] = DistributedSampler(loader.dataset, num_replicas=ranks.world_size, rank=ranks.rank,
                                                          shuffle=not isinstance(current, SequentialSampler))
    divided = copy.copy(loader)
    # Past DataLoader's __setattr__, which refuses these names. Persistent workers belong to the loader that started them.
    divided.__dict__.update(sampler=sampler, _iterator=None)
    if batches is not None:
        divided.__dict__["batch_sampler"] = BatchSampler(sampler, batches.batch_size, batches.drop_last)
    return divided


def _is_plain(sampler: Sampler[Any] | Any) -> bool:
    """Whether it visits each sample of the dataset once, in order or shuffled, which a DistributedSampler does over all ranks."""
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    return type(sampler) is SequentialSampler


def _name(sampler: object) -> str:
    if type(sampler) is RandomSampler:
        return "RandomSampler with replacement or num_samples"
    return type(sampler).__name__


def _warn(text: str) -> None:
    warnings.warn(f"prepare_data_loader: {text} add_dist_sampler=False silences this.", UserWarning, stacklevel=4)


class _DeviceLoader(DataLoader[Any]):
    """A loader whose batches are on ``device``; all else is the wrapped loader's."""

    def __init__(self, loader: DataLoader[Any], device: torch.device, auto_transfer: bool) -> None:
        self.__dict__.update(loader.__dict__)  # attributes are read directly; nothing is constructed a second time
        self.__dict__.update(_loader=loader, _device=device,
                             _stream=torch.cuda.Stream(device) if auto_transfer and device.type == "cuda" else None)

    def __getattr__(self, name: str) -> Any:  # methods and properties of a subclass of DataLoader
        return getattr(self.__dict__["_loader"], name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # an iterator is all that a loop needs
        batches = iter(self._loader)
        if self._stream is None:
            for batch in batches:
                yield _move(batch, self._device, non_blocking=False)
            return
        following = self._copy_next(batches)
        while following is not _END:  # a batch may be None, so None does not mark the end
            batch = following
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            following = self._copy_next(batches)
            yield batch

    def _copy_next(self, batches: Iterator[Any]) -> Any:
        """Starts the copy of the next batch, to overlap the work on the one about to be yielded."""
        batch = next(batches, _END)
        if batch is _END:
            return _END
        # The copy may reuse memory of the batch before: the work on that one, all queued by now, has to be done first.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            return _move(batch, self._device, non_blocking=True)


def _move(value: Any, device: torch.device, non_blocking: bool) -> Any:
    """``value`` with every tensor in it on ``device``; containers keep their class."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=non_blocking)
    if callable(getattr(value, "to", None)):  # packed sequences, BatchEncoding, TensorDict, PyG's Data
        return value.to(device)
    if isinstance(value, MutableMapping):
        moved = copy.copy(value)
        for key, item in value.items():
            moved[key] = _move(item, device, non_blocking)
        return moved
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_move(item, device, non_blocking) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_move(item, device, non_blocking) for item in value)
    return value
