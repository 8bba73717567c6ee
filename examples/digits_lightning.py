"""Handwritten digits with PyTorch Lightning, on several ranks: ``python examples/digits_lightning.py``."""

import argparse
import json
import os
import time

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import runtime
from lightning_ext import RayDDPStrategy, RayLightningEnvironment, RayTrainReportCallback, prepare_trainer
from train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback, get_checkpoint
from train.torch import TorchTrainer


class Digits(pl.LightningModule):
    def __init__(self, lr=2e-3, width=32):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                                 nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * width, 10))

    def forward(self, x):  # (batch, 64) float32 in 0..1 -> logits (batch, 10)
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class DigitsData(pl.LightningDataModule):
    def setup(self, stage=None):
        digits = load_digits()  # 1797 images of 8 x 8 pixels
        data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
        self.train_set, self.val_set = random_split(data, [1437, 360], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=60)


def train_func(config):
    checkpoint = get_checkpoint()  # set when a rank died and the run goes on
    trainer = pl.Trainer(max_epochs=config["max_epochs"], accelerator="auto", devices="auto", strategy=RayDDPStrategy(),
                         plugins=[RayLightningEnvironment()], callbacks=[RayTrainReportCallback()],
                         logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = prepare_trainer(trainer)
    trainer.fit(Digits(), datamodule=DigitsData(), ckpt_path=os.path.join(checkpoint.path, "checkpoint.ckpt") if checkpoint else None)


class PrintEpochs(UserCallback):
    last, world_size = time.perf_counter(), 0

    def after_report(self, run_context, metrics, checkpoint):  # in the driver, on the thread that called fit()
        now, shown, self.world_size = time.perf_counter(), metrics[0], len(metrics)
        print(f"epoch {shown['epoch']:2.0f}  train_loss {shown['train_loss']:.4f}  val_accuracy {shown['val_accuracy']:.4f}  "
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
        print(f"{os.path.basename(kept.path):42s}  {metrics['epoch']:5.0f}  {metrics['val_accuracy']:.4f}")
    model = Digits.load_from_checkpoint(os.path.join(result.best_checkpoints[-1][0].path, "checkpoint.ckpt")).eval()
    data = DigitsData()
    data.setup()
    images, labels = data.val_set[:]
    print(f"best checkpoint, loaded again: val_accuracy {(model(images).argmax(1) == labels).float().mean():.4f}")
    print("result: " + json.dumps({"path": result.path, "metrics": result.metrics, "world_size": printer.world_size,
                                   "best_checkpoints": [kept.path for kept, _ in result.best_checkpoints],
                                   "seconds": round(time.perf_counter() - start, 2)}))
