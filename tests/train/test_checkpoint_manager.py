from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.checkpoint_manager import CheckpointManager, CheckpointRecord, lookup
from train.config import CheckpointConfig

scores = st.one_of(st.floats(), st.integers(-3, 3), st.none(), st.just("text"), st.just(10**400))


def rank_of(score: object, order: str, index: int) -> tuple[bool, float, int]:
    """The model: worst first; what is no number is worst; of equal ones the later is better."""
    if not isinstance(score, int | float) or (isinstance(score, float) and math.isnan(score)):
        return (False, 0.0, index)
    value = math.inf if score == 10**400 else float(score)
    return (True, value if order == "max" else -value, index)


@given(reported=st.lists(scores, max_size=12), num_to_keep=st.integers(1, 4), order=st.sampled_from(["max", "min"]))
def test_retention_keeps_the_best_and_the_latest_of_all_that_were_ever_reported(
        reported: list[object], num_to_keep: int, order: str):
    manager = CheckpointManager(CheckpointConfig(num_to_keep, "score", order))
    on_disk: set[int] = set()
    for index, score in enumerate(reported):
        doomed = manager.commit(CheckpointRecord(str(index), index, 1, {} if score is None else {"score": score}))
        on_disk = (on_disk | {index}) - {int(name) for name in doomed}
        ranked = sorted(range(index + 1), key=lambda i: rank_of(reported[i], order, i))
        best = ranked[-num_to_keep:]
        assert on_disk == {*best, index}
        assert [int(record.name) for record in manager.best] == best
        assert [int(record.name) for record in manager.records] == sorted(on_disk)
        assert manager.latest is not None
        assert manager.latest.name == str(index)
        assert set(doomed) <= manager.removing


@given(st.lists(st.none(), max_size=8), st.one_of(st.none(), st.integers(1, 3)))
def test_without_a_score_the_newest_are_kept(reported: list[None], num_to_keep: int | None):
    manager = CheckpointManager(CheckpointConfig(num_to_keep))
    for index in range(len(reported)):
        manager.commit(CheckpointRecord(str(index), index, 1))
    kept = list(range(len(reported)))[-num_to_keep:] if num_to_keep else list(range(len(reported)))
    assert [int(record.name) for record in manager.best] == [int(record.name) for record in manager.records] == kept


def test_a_missing_score_never_counts_as_the_best_when_low_is_good():
    manager = CheckpointManager(CheckpointConfig(1, "loss", "min"))
    manager.commit(CheckpointRecord("without", 1, 1, {}))
    assert manager.commit(CheckpointRecord("bad", 2, 1, {"loss": 1e9})) == ["without"]
    assert manager.best[-1].name == "bad"


def test_a_missing_score_is_warned_about_once():
    manager = CheckpointManager(CheckpointConfig(checkpoint_score_attribute="val_loss"))
    assert manager.score_warning({"val_loss": 1}) is None
    text = manager.score_warning({"loss": 1, "epoch": 2})
    assert text is not None
    assert text.startswith("checkpoint_score_attribute='val_loss' is not in the reported metrics ['epoch', 'loss']; this checkpoint ranks")
    assert manager.score_warning({}) is None
    nan = CheckpointManager(CheckpointConfig(checkpoint_score_attribute="x")).score_warning({"x": math.nan})
    assert nan == "checkpoint_score_attribute='x' is nan; this checkpoint ranks worst."
    assert CheckpointManager(CheckpointConfig()).score_warning({}) is None


def test_nested_scores():
    assert lookup({"a/b": 1, "a": {"b": 2}}, "a/b") == 1
    assert lookup({"a": {"b": 2}}, "a/b") == 2
    assert lookup({"a": 1}, "a/b") is None
    assert lookup({"a": {"c": 1}}, "a/b") is None


def test_the_index_round_trips():
    manager = CheckpointManager(CheckpointConfig(1))
    for index in range(3):
        manager.begin(str(index))
        manager.commit(CheckpointRecord(str(index), index, 7, {"loss": math.nan, "day": "x"}))
    manager.attempt = 7
    manager.begin("pending")
    manager.begin("failed")
    manager.abandon("failed")
    manager.removed("0")
    again = CheckpointManager(CheckpointConfig(1))
    again.load(manager.encode())
    assert again.encode() == manager.encode()
    assert (again.attempt, again.begun, again.removing) == (7, {"pending"}, {"1", "failed"})
    assert again.latest is not None
    assert (again.latest.name, again.latest.report_index) == ("2", 2)
    assert again.knows("2")
    assert not again.knows("1")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"format": 1}', b'{"format": 1, "checkpoints": [{"x": 1}]}'])
def test_a_damaged_index_is_a_value_error(data: bytes):
    with pytest.raises(ValueError):
        CheckpointManager(CheckpointConfig()).load(data)


def test_an_index_of_another_version_is_refused():
    with pytest.raises(ValueError, match="written by another version"):
        CheckpointManager(CheckpointConfig()).load(b'{"format": 2}')
