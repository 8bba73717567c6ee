"""Handwritten digits in plain PyTorch, on several ranks: ``python examples/digits_torch.py``."""

import argparse
import json
import os
import tempfile
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import runtime
from train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback, get_checkpoint, get_context, report
from train.torch import TorchTrainer, get_device, prepare_data_loader, prepare_model


def load_data():
    """Training and validation set: images (1437 or 360, 64) float32 in 0..1, labels (1437 or 360,) int64."""
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    return random_split(data, [1437, 360], torch.Generator().manual_seed(0))


def build_model():
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))


def train_func(config):
    rank, world_size = get_context().get_world_rank(), get_context().get_world_size()
    train_set, val_set = load_data()
    train_loader = prepare_data_loader(DataLoader(train_set, batch_size=32, shuffle=True))
    val_loader = prepare_data_loader(DataLoader(val_set, batch_size=60))
    module, first, checkpoint = build_model(), 0, get_checkpoint()  # a checkpoint is there when a rank died and the run goes on
    model = prepare_model(module)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if checkpoint:
        with checkpoint.as_directory() as directory:
            saved = torch.load(os.path.join(directory, "model.pt"), map_location="cpu")
        module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"] + 1
    print(f"rank {rank} of {world_size} on {get_device()}: {len(train_loader.sampler)} images an epoch, begins with epoch {first}")
    for epoch in range(first, config["max_epochs"]):
        if world_size > 1:
            train_loader.sampler.set_epoch(epoch)
        sums = torch.zeros(4, device=get_device())  # of loss, batches, hits, images
        for images, labels in train_loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums[:2] += torch.stack([loss.detach(), torch.ones_like(loss)])
        with torch.no_grad():
            for images, labels in val_loader:
                sums[2:] += torch.stack([(module(images).argmax(1) == labels).sum(), torch.tensor(len(labels), device=sums.device)])
        torch.distributed.all_reduce(sums)
        metrics = {"epoch": epoch, "train_loss": (sums[0] / sums[1]).item(), "val_accuracy": (sums[2] / sums[3]).item()}
        with tempfile.TemporaryDirectory() as directory:
            if rank == 0:
                torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, f"{directory}/model.pt")
            report(metrics, checkpoint=Checkpoint.from_directory(directory) if rank == 0 else None)


class PrintEpochs(UserCallback):
    last, world_size = time.perf_counter(), 0

    def after_report(self, run_context, metrics, checkpoint):  # in the driver, on the thread that called fit()
        now, shown, self.world_size = time.perf_counter(), metrics[0], len(metrics)
        print(f"epoch {shown['epoch']:2d}  train_loss {shown['train_loss']:.4f}  val_accuracy {shown['val_accuracy']:.4f}  "
              f"{now - self.last:6.2f} s  {os.path.basename(checkpoint.path)}", flush=True)
        self.last = now


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("--num-workers", 2), ("--max-epochs", 10), ("--max-failures", 1)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--address", help="HOST:PORT of a head; default: HEADWAY_ADDRESS, else an embedded cluster for this run")
    parser.add_argument("--storage-path", help="default: ~/headway_results")
    args = parser.parse_args()
    start, printer = time.perf_counter(), PrintEpochs()
    runtime.init(address=args.address)
    best = CheckpointConfig(num_to_keep=3, checkpoint_score_attribute="val_accuracy", checkpoint_score_order="max")
    result = TorchTrainer(train_func, train_loop_config={"max_epochs": args.max_epochs},
                          scaling_config=ScalingConfig(num_workers=args.num_workers),
                          run_config=RunConfig(storage_path=args.storage_path, failure_config=FailureConfig(args.max_failures),
                                               checkpoint_config=best, callbacks=[printer])).fit()
    print(f"{'kept checkpoint':42s}  epoch  val_accuracy")
    for kept, metrics in result.best_checkpoints:
        print(f"{os.path.basename(kept.path):42s}  {metrics['epoch']:5d}  {metrics['val_accuracy']:.4f}")
    model = build_model()
    model.load_state_dict(torch.load(os.path.join(result.best_checkpoints[-1][0].path, "model.pt"), map_location="cpu")["model"])
    images, labels = load_data()[1][:]
    print(f"best checkpoint, loaded again: val_accuracy {(model(images).argmax(1) == labels).float().mean():.4f}")
    print("result: " + json.dumps({"path": result.path, "metrics": result.metrics, "world_size": printer.world_size,
                                   "best_checkpoints": [kept.path for kept, _ in result.best_checkpoints],
                                   "seconds": round(time.perf_counter() - start, 2)}))
