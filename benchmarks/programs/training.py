"""A driver that trains two ranks by the trainer of ``runtime`` or ``ray``: ``training.py API STORAGE`` serves, with ``once`` it trains."""

from __future__ import annotations

import importlib
import sys
import time

import ranks
from serving import serve

API, STORAGE = sys.argv[1:3]
train = importlib.import_module("train" if API == "runtime" else "ray.train")
TorchTrainer = importlib.import_module(f"{train.__name__}.torch").TorchTrainer


def fit(function, max_failures=0):
    """Seconds that ``fit()`` takes."""
    begin = time.perf_counter()
    TorchTrainer(function, scaling_config=train.ScalingConfig(num_workers=2),
                 run_config=train.RunConfig(storage_path=STORAGE, failure_config=train.FailureConfig(max_failures=max_failures))).fit()
    return time.perf_counter() - begin


def fit_once():
    return fit(ranks.all_reduce_once)


def fit_until(stop, fifo, max_failures):
    return fit(lambda: ranks.all_reduce_until(stop, fifo), max_failures)


if __name__ == "__main__":
    if sys.argv[3:] == ["once"]:
        fit_once()
    else:
        serve({"fit": fit_once, "fit_until": fit_until})
