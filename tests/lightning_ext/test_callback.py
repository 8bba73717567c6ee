from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

import train
from lightning_ext import RayTrainReportCallback, TrainReportCallback
from lightning_ext.callback import _EpochEnd

pytestmark = [pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
              pytest.mark.filterwarnings("ignore:.*does not have many workers"),
              pytest.mark.filterwarnings("ignore:.*Checkpoint directory.*exists and is not empty"), pytest.mark.usefixtures("in_tmp")]


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_alias_and_pickling_before_any_trainer() -> None:
    assert RayTrainReportCallback is TrainReportCallback
    assert isinstance(pickle.loads(pickle.dumps(TrainReportCallback())), TrainReportCallback)
    assert isinstance(cloudpickle.loads(cloudpickle.dumps(TrainReportCallback())), TrainReportCallback)


def test_every_epoch_reports_current_metrics_with_its_checkpoint(little: Any, reports: Any, tmp_path: Path) -> None:
    little.make_trainer(callbacks=[TrainReportCallback()]).fit(little.Little())
    assert [files for _, files in reports] == [["checkpoint.ckpt"]] * 2
    for epoch, (metrics, _) in enumerate(reports):
        assert set(metrics) == {"loss", "in_validation", "at_epoch_end", "epoch", "step"}
        assert metrics["at_epoch_end"] == metrics["in_validation"] == epoch, "logged by the module's own hook, so current"
        assert type(metrics["loss"]) is float
        assert (metrics["epoch"], metrics["step"]) == (epoch, 4 * (epoch + 1))
    assert list(tmp_path.iterdir()) == [], "no second copy by a default ModelCheckpoint"


def test_users_own_epoch_and_step_are_kept(little: Any, reports: Any) -> None:
    class Counting(little.Little):  # type: ignore[misc, name-defined]
        def on_train_epoch_end(self) -> None:
            self.log("epoch", 100.0)

    little.make_trainer(max_epochs=1, callbacks=[TrainReportCallback()]).fit(Counting())
    assert reports[0][0]["epoch"] == 100
    assert reports[0][0]["step"] == 4


def test_checkpointing_may_be_disabled_for_lightning(little: Any, reports: Any) -> None:
    little.make_trainer(callbacks=[TrainReportCallback()], enable_checkpointing=False).fit(little.Little())
    assert len(reports) == 2


def test_users_own_model_checkpoint_is_kept(little: Any, reports: Any, tmp_path: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "mine", monitor="at_epoch_end", mode="max")
    trainer = little.make_trainer(callbacks=[TrainReportCallback(), own])
    trainer.fit(little.Little())
    assert trainer.checkpoint_callbacks[0] is own
    assert Path(own.best_model_path).parent == tmp_path / "mine"
    assert len(reports) == 2


def test_one_report_an_epoch_over_two_fits_and_two_callbacks(little: Any, reports: Any) -> None:
    trainer = little.make_trainer(max_epochs=1, callbacks=[TrainReportCallback(), TrainReportCallback()])
    model = little.Little()
    trainer.fit(model)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model)
    assert [metrics["epoch"] for metrics, _ in reports] == [0, 1]
    assert sum(isinstance(callback, _EpochEnd) for callback in trainer.callbacks) == 1


def test_validate_and_test_report_nothing(little: Any, reports: Any) -> None:
    trainer = little.make_trainer(callbacks=[TrainReportCallback()])
    trainer.validate(little.Little(), verbose=False)
    assert reports == []
    assert not any(isinstance(callback, _EpochEnd) for callback in trainer.callbacks)


def test_it_runs_after_early_stopping_and_reports_the_last_epoch(little: Any, reports: Any) -> None:
    stop = EarlyStopping("at_epoch_end", patience=1, mode="min", check_on_train_epoch_end=True)
    little.make_trainer(max_epochs=9, callbacks=[TrainReportCallback(), stop]).fit(little.Little())
    assert [metrics["epoch"] for metrics, _ in reports] == [0, 1]


def test_resume_from_its_checkpoint_goes_on_with_the_next_epoch(little: Any, reports: Any, monkeypatch: pytest.MonkeyPatch,
                                                                tmp_path: Path) -> None:
    def keep(metrics: dict[str, Any], checkpoint: Any) -> None:
        reports.append((metrics, []))
        (tmp_path / f"{metrics['epoch']}.ckpt").write_bytes((Path(checkpoint.path) / "checkpoint.ckpt").read_bytes())

    monkeypatch.setattr(train, "report", keep)
    little.make_trainer(max_epochs=2, callbacks=[TrainReportCallback()]).fit(little.Little())
    reports.clear()
    little.make_trainer(max_epochs=4, callbacks=[TrainReportCallback()]).fit(little.Little(), ckpt_path=tmp_path / "1.ckpt")
    assert [(metrics["epoch"], metrics["step"]) for metrics, _ in reports] == [(2, 12), (3, 16)]
    assert set(torch.load(tmp_path / "3.ckpt")["callbacks"]) == set(), "nothing of ours is needed to load the file elsewhere"


def test_best_of_a_later_test_is_the_latest_checkpoint(little: Any, reports: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = little.make_trainer(callbacks=[TrainReportCallback()])
    model = little.Little()
    trainer.fit(model)
    assert trainer.checkpoint_callback.best_model_path == ""
    trainer.save_checkpoint(tmp_path / "checkpoint.ckpt")
    monkeypatch.setattr(train, "get_checkpoint", lambda: SimpleNamespace(path=str(tmp_path)))
    trainer.validate(ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == str(tmp_path / "checkpoint.ckpt")


def test_asynchronous_checkpoint_io_is_refused(little: Any, reports: Any) -> None:
    from pytorch_lightning.plugins.io import AsyncCheckpointIO

    trainer = little.make_trainer(callbacks=[TrainReportCallback()], plugins=[AsyncCheckpointIO()])
    with pytest.raises(RuntimeError, match="AsyncCheckpointIO"):
        trainer.fit(little.Little())


def test_a_failed_report_ends_training_and_leaves_no_directory(little: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(metrics: Any, checkpoint: Any) -> None:
        raise OSError("storage is full")

    monkeypatch.setattr(train, "report", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match="storage is full"):
        little.make_trainer(callbacks=[TrainReportCallback()]).fit(little.Little())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_only_rank_zero_reports_the_file(run_ranks: Any) -> None:
    found = run_ranks("""
        from lightning_ext import TrainDDPStrategy, TrainLightningEnvironment, TrainReportCallback, prepare_trainer
        def scenario(ranks):
            trainer = prepare_trainer(make_trainer(strategy=TrainDDPStrategy(), plugins=[TrainLightningEnvironment()],
                                                   callbacks=[TrainReportCallback()]))
            trainer.fit(Little())
            return [(metrics["epoch"], metrics["step"], path is not None) for metrics, path in train.reported]
    """)
    assert found == [[[0, 2, True], [1, 4, True]], [[0, 2, False], [1, 4, False]]]
