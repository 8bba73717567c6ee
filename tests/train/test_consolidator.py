from __future__ import annotations

import re
from typing import Any

import pytest

from train.checkpoint_manager import CheckpointManager
from train.commit import FileEntry
from train.config import CheckpointConfig
from train.consolidator import Consolidator, History
from train.controller_events import Begin, Commit, Consolidate, Remove, SaveIndex, Say, Send
from train.protocol import AskCheckpoint, Committed, Latest, Place, Refused, Report, WriteFailed, Written
from train.storage import FileFacts

WALL = 1_700_000_000.25
MODEL = (FileEntry("model", 3),)


class Desk:
    """A consolidator of two ranks, and the actions that it asked for."""

    def __init__(self, **config: Any) -> None:
        self.manager = CheckpointManager(CheckpointConfig(**config))
        self.made = Consolidator(world_size=2, attempt=4, run_name="run", manager=self.manager, history=History(10, 5.0, 0.0, 0.0))
        self.counts = [0, 0]

    def report(self, rank: int, manifest: tuple[FileEntry, ...] | None = None, name: str | None = None, *, now: float = 1.0,
               **metrics: Any) -> list[Any]:
        self.counts[rank] += 1
        return self.made.report(rank, Report(self.counts[rank], b"", manifest, name), metrics, now, WALL)

    def begin(self, name: str | None = "ckpt", **metrics: Any) -> Begin:
        assert self.report(0, MODEL, name, **metrics) == []
        (begin,) = self.report(1, ())
        assert isinstance(begin, Begin)
        return begin

    def commit(self, name: str = "ckpt", **metrics: Any) -> list[Any]:
        self.begin(name, **metrics)
        self.made.stored("begin", name, 1.0)
        assert self.made.written(0, Written(self.counts[0], {"model": FileFacts(3, "digest")}), 2.0) == []
        (commit,) = self.made.written(1, Written(self.counts[1], {}), 2.0)
        assert isinstance(commit, Commit)
        return self.made.stored("commit", name, 3.0)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def of_type(actions: list[Any], cls: type) -> list[Any]:
    return [action for action in actions if isinstance(action, cls)]


def test_metrics_become_a_record_when_all_ranks_have_reported(desk: Desk):
    assert desk.report(0, loss=1) == []
    (action,) = desk.report(1, now=2.0, loss=2)
    assert action.metrics == [{"loss": 1}, {"loss": 2}]
    assert action.checkpoint is None
    record = action.record
    assert (record["loss"], record["training_iteration"], record["time_total_s"], record["time_this_iter_s"]) == (1, 11, 7.0, 2.0)


def test_a_checkpoint_goes_through_begin_place_write_commit(desk: Desk):
    begin = desk.begin(loss=1)
    assert begin.name == "ckpt"
    assert b'"begun":["ckpt"]' in begin.index
    assert desk.made.stored("begin", "ckpt", 1.0) == [Send(0, Place("ckpt", ("model",))), Send(1, Place("ckpt", ()))]
    assert desk.made.written(0, Written(1, {"model": FileFacts(3, "digest")}), 2.0) == []
    (commit,) = desk.made.written(1, Written(1, {}), 2.0)
    assert (commit.marker.attempt, commit.marker.report_index, commit.marker.run) == (4, 11, "run")
    assert commit.marker.files == {"model": {"size": 3, "sha256": "digest", "rank": 0}}
    assert commit.marker.metrics["loss"] == 1
    index, *sends, consolidate = desk.made.stored("commit", "ckpt", 3.0)
    assert b'"latest":"ckpt"' in index.data
    assert sends == [Send(0, Committed("ckpt")), Send(1, Committed("ckpt"))]
    assert consolidate.record == commit.marker.metrics
    assert consolidate.record["checkpoint_dir_name"] == "ckpt"


def test_the_default_name_is_the_time_of_the_first_report_and_unique(desk: Desk):
    first = desk.begin(None).name
    assert re.fullmatch(r"checkpoint_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.250000", first)
    desk.made.stored("begin", first, 1.0)
    desk.made.written(0, Written(1, {}), 1.0)
    desk.made.written(1, Written(1, {}), 1.0)
    desk.made.stored("commit", first, 1.0)
    assert desk.begin(None).name == first.replace(".250000", ".250001")


def test_a_rank_without_files_of_its_own_may_leave_the_checkpoint_out(desk: Desk):
    desk.report(0, MODEL, "ckpt")
    (begin,) = desk.report(1)
    assert isinstance(begin, Begin)
    assert desk.made.stored("begin", "ckpt", 1.0) == [Send(0, Place("ckpt", ("model",)))]
    (commit,) = desk.made.written(0, Written(1, {}), 2.0)
    assert isinstance(commit, Commit)


def test_retention_follows_the_index_and_precedes_the_ranks(desk: Desk):
    desk = Desk(num_to_keep=1)
    desk.commit("one")
    actions = desk.commit("two")
    assert [type(action) for action in actions] == [SaveIndex, Remove, Send, Send, Consolidate]
    assert actions[1] == Remove("one")
    assert b'"removing":["one"]' in actions[0].data
    desk.made.stored("remove", "one", 3.0)
    assert desk.manager.removing == set()


def test_a_score_that_is_missing_is_told_once():
    desk = Desk(checkpoint_score_attribute="acc")
    assert "not in the reported metrics" in of_type(desk.commit("one"), Say)[0].text
    assert of_type(desk.commit("two"), Say) == []


def test_a_checkpoint_without_any_file_is_told(desk: Desk):
    desk.report(0, (), "ckpt")
    desk.report(1, ())
    desk.made.stored("begin", "ckpt", 1.0)
    desk.made.written(0, Written(1, {}), 1.0)
    desk.made.written(1, Written(1, {}), 1.0)
    assert "has no files" in of_type(desk.made.stored("commit", "ckpt", 1.0), Say)[0].text


def refused(actions: list[Any]) -> tuple[list[int], str, str]:
    sends = of_type(actions, Send)
    assert all(isinstance(send.message, Refused) for send in sends)
    return [send.rank for send in sends], sends[0].message.error, sends[0].message.text


def test_different_names_are_refused_and_the_metrics_kept(desk: Desk):
    desk.report(0, MODEL, "a", loss=1)
    actions = desk.report(1, (), "b")
    assert refused(actions)[:2] == ([0, 1], "ReportError")
    assert "different checkpoint_dir_names: ['a', 'b']" in refused(actions)[2]
    assert of_type(actions, Consolidate)[0].record["loss"] == 1


def test_the_name_of_a_committed_checkpoint_is_refused(desk: Desk):
    desk.commit("ckpt")
    desk.report(0, MODEL, "ckpt")
    assert "'ckpt' is the name of a committed checkpoint" in refused(desk.report(1, ()))[2]


@pytest.mark.parametrize("name", ["logs", "metrics.jsonl"])
def test_names_that_the_run_directory_needs_are_refused(desk: Desk, name: str):
    desk.report(0, MODEL, name)
    assert "is a name that the run directory needs" in refused(desk.report(1, ()))[2]


def test_a_leftover_of_the_same_name_is_replaced(desk: Desk):
    desk.manager.removing.add("ckpt")
    assert desk.begin("ckpt").leftover


def test_files_that_do_not_fit_together_are_refused(desk: Desk):
    desk.report(0, (FileEntry("../x", 1),))
    assert refused(desk.report(1, ()))[1] == "ReportError"


def test_a_rank_that_cannot_write_fails_the_checkpoint_for_all_after_all_have_answered(desk: Desk):
    desk.begin(loss=1)
    desk.made.stored("begin", "ckpt", 1.0)
    assert desk.made.write_failed(1, WriteFailed(1, "No space left"), 2.0) == []
    actions = desk.made.written(0, Written(1, {}), 2.0)
    assert actions[0] == Remove("ckpt")
    assert refused(actions) == ([0, 1], "CheckpointError", "rank 1 could not store its part of the checkpoint ckpt: No space left")
    assert of_type(actions, Consolidate)[0].checkpoint is None
    assert desk.manager.latest is None
    assert isinstance(desk.begin("next"), Begin)  # training may go on


@pytest.mark.parametrize("operation", ["begin", "commit"])
def test_a_storage_that_fails_fails_the_checkpoint_for_all(desk: Desk, operation: Any):
    desk.begin()
    if operation == "commit":
        desk.made.stored("begin", "ckpt", 1.0)
        desk.made.written(0, Written(1, {}), 1.0)
        desk.made.written(1, Written(1, {}), 1.0)
    actions = desk.made.store_failed(operation, "ckpt", OSError("no"), 2.0)
    assert refused(actions)[2] == "the checkpoint ckpt could not be stored: no"
    assert of_type(actions, Remove) == ([Remove("ckpt")] if operation == "commit" else [])
    assert desk.manager.begun == set()


def test_a_failed_removal_is_only_told(desk: Desk):
    assert desk.made.store_failed("remove", "old", OSError("no"), 1.0) == [Say("warning: old was not removed: no")]


def test_a_checkpoint_that_a_returned_rank_lacks_is_an_error(desk: Desk):
    desk.report(1)
    desk.report(0)
    assert desk.report(0, MODEL) == []
    actions = desk.made.returned(1, 2.0)
    ranks, error, text = refused(actions)
    assert (ranks, error) == ([0], "ReportError")
    assert "training functions have returned (rank 1 after 1 reports)" in text


def test_metrics_of_rank_0_alone_are_kept_when_the_others_return(desk: Desk):
    for i in range(3):
        assert desk.report(0, i=i) == []
    assert [action.record["i"] for action in desk.made.returned(1, 2.0)] == [0, 1, 2]


def test_reports_beyond_those_of_rank_0_are_told_once(desk: Desk):
    desk.report(1)
    desk.report(1)
    actions = desk.made.returned(0, 2.0)
    assert actions == [Say("rank 0 made 0 reports, ranks 1 more; these are not recorded.")]


def test_get_checkpoint_is_answered_when_the_callers_report_is_consolidated(desk: Desk):
    assert desk.made.ask(0, AskCheckpoint(0)) == [Send(0, Latest(None))]
    desk.report(0)
    assert desk.made.ask(0, AskCheckpoint(1)) == []
    assert desk.report(1)[-1] == Send(0, Latest(None))
    desk.commit("ckpt")
    assert desk.made.ask(1, AskCheckpoint(2)) == [Send(1, Latest("ckpt"))]


def test_a_late_checkpoint_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("train.consolidation.MAX_LEAD", 1)
    desk.report(0)
    desk.report(0)
    assert "comes too late" in refused(desk.report(1, MODEL))[2]


def test_waiting_ranks_are_named_after_a_while(desk: Desk):
    desk.report(0, MODEL, now=10.0)
    assert desk.made.next_deadline() == 70.0
    assert desk.made.warn(69.0) == []
    (say,) = desk.made.warn(70.0)
    assert say.text == ("report 1 lacks ranks 1 since 60 s; it came from ranks 0, which wait for them in report(checkpoint=...). "
                        "Every rank must call report() equally often.")
    assert desk.made.next_deadline() is None


def test_slow_storing_is_told(desk: Desk):
    desk.begin()
    (say,) = desk.made.warn(100.0)
    assert say.text == "ranks 0, 1 have been storing the checkpoint of report 1 for 99 s."


def test_close_removes_what_is_on_its_way_and_keeps_rank_0s_metrics(desk: Desk):
    desk.begin(loss=1)
    desk.report(0, loss=2)
    actions = desk.made.close(5.0)
    assert actions[0] == Remove("ckpt")
    assert [(action.record["loss"], action.checkpoint) for action in actions[1:]] == [(1, None), (2, None)]
    assert desk.manager.removing == {"ckpt"}
    assert desk.made.close(6.0) == []


def test_no_checkpoint_is_begun_while_the_ranks_are_being_stopped(desk: Desk):
    desk.made.stopping = True
    desk.report(0, MODEL)
    assert refused(desk.report(1, ()))[2] == "the ranks are being stopped"
