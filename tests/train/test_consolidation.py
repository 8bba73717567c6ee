from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from train import consolidation
from train.commit import FileEntry
from train.consolidation import ReportBook, Round

FILES = (FileEntry("a", 1),)


def add(book: ReportBook, rank: int, **metrics: object) -> int:
    return book.add(rank, metrics, None, None, 0.0, 0.0)


def drain(book: ReportBook) -> list[Round]:
    taken = []
    while book.ready() is not None:
        taken.append(book.pop())
    return taken


@given(st.lists(st.integers(0, 2), max_size=40))
def test_the_ith_reports_meet_in_any_interleaving(order: list[int]):
    book = ReportBook(3)
    taken: list[Round] = []
    counts = [0, 0, 0]
    for rank in order:
        counts[rank] += 1
        assert add(book, rank, i=counts[rank]) == counts[rank]
        taken += drain(book)
        assert len(taken) == min(counts)
    assert [entry.index for entry in taken] == list(range(1, min(counts) + 1))
    assert all(entry.metrics == {rank: {"i": entry.index} for rank in range(3)} for entry in taken)


def test_a_round_waits_for_every_rank_and_not_for_those_that_returned():
    book = ReportBook(2)
    add(book, 0)
    assert book.ready() is None
    assert book.missing(book.rounds[0]) == [1]
    book.returned.add(1)
    assert [entry.metrics for entry in drain(book)] == [{0: {}}]


def test_a_rank_that_only_reports_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(consolidation, "MAX_LEAD", 3)
    book = ReportBook(2)
    taken = 0
    for _ in range(10):
        add(book, 0)
        taken += len(drain(book))
        assert len(book.rounds) <= 3
    assert taken == 7
    assert add(book, 1) == 1  # too late for its round, which was taken without it
    assert drain(book) == []


def test_a_round_with_a_checkpoint_is_never_taken_without_the_others(monkeypatch):
    monkeypatch.setattr(consolidation, "MAX_LEAD", 1)
    book = ReportBook(2)
    book.add(0, {}, FILES, "name", 0.0, 0.0)
    add(book, 0)
    assert book.ready() is None
    assert book.rounds[0].dir_names == {0: "name"}


def test_one_warning_for_metrics_and_one_for_each_checkpoint():
    book = ReportBook(2)
    assert book.next_warning(60) is None
    book.add(0, {}, None, None, 10.0, 0.0)
    assert book.next_warning(60) == 70
    assert book.warn() is book.rounds[0]
    assert book.next_warning(60) is None
    add(book, 1)
    drain(book)
    add(book, 0)
    assert book.next_warning(60) is None  # an attempt is warned once about metrics
    add(book, 1)
    drain(book)
    book.add(0, {}, FILES, None, 20.0, 0.0)
    assert book.next_warning(60) == 80
