from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest

import runtime
from runtime.errors import ActorDiedError
from train.errors import RankError
from train.failure import Failure, Portable, died, first_cause, group_text, lost, raised, user_traceback


@dataclass
class FakeEvidence:
    kind: str = "signal"
    code: int = 0
    signal: str = "SIGKILL"
    detail: str = ""
    log_tail: tuple[str, ...] = ()
    wanted: bool = False
    first: bool = False


class AwkwardError(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


def failure(rank: int, at: float = 0.0, *, death: bool = False, first: bool = False, detail: str = "boom") -> Failure:
    return Failure(rank, ValueError(), "what", detail, at, death, first)


@pytest.mark.parametrize(("evidence", "text"), [
    (FakeEvidence(), "rank 1 on a (pid 2) was killed by SIGKILL"),
    (FakeEvidence(detail="killed by SIGKILL"), "rank 1 on a (pid 2) was killed by SIGKILL"),
    (FakeEvidence(detail="likely out of memory: peak 41.2 GiB."), "was killed by SIGKILL (likely out of memory: peak 41.2 GiB)"),
    (FakeEvidence("exit code", 3), "rank 1 on a (pid 2) exited with code 3"),
    (FakeEvidence("node dead", detail="node a is silent for 15 s"), "ended (node dead) (node a is silent for 15 s)")])
def test_a_death_is_told_in_one_clause(evidence: FakeEvidence, text: str):
    made = died(1, "rank 1 on a (pid 2)", evidence, "", 0.0)
    assert text in made.what
    assert made.is_death
    assert isinstance(made.error, ActorDiedError)
    assert made.error.evidence is evidence


def test_a_death_has_its_last_output_and_where_the_rest_is():
    made = died(1, "rank 1", FakeEvidence(log_tail=("one", "two")), "/run/logs/rank_1.log", 0.0)
    assert made.detail == ("rank 1 was killed by SIGKILL.\nIts last output:\n  one\n  two\nIts whole output: /run/logs/rank_1.log")


def test_an_exception_that_could_not_travel_is_told_by_its_text():
    made = raised(0, "rank 0", None, "Odd", "first line\nsecond", "Traceback ...", 0.0)
    assert made.what == "rank 0 failed: Odd: first line"
    assert isinstance(made.error, RankError)
    assert "Odd: first line" in str(made.error)


def test_a_lost_connection_is_told():
    assert lost(0, "rank 0", None, 0.0).what == "rank 0 was lost: its connection was closed"
    assert lost(0, "rank 0", OSError("gone"), 0.0).error.args == ("gone",)


def test_a_death_outranks_exceptions_that_came_shortly_before():
    exception, death = failure(0, 1.0), failure(1, 1.15, death=True)
    assert first_cause([exception, death], 0.2) is death
    assert first_cause([exception, failure(1, 1.3, death=True)], 0.2) is exception
    assert first_cause([exception, failure(1, 1.1)], 0.2) is exception


def test_of_two_deaths_the_one_that_the_runtime_calls_first_counts():
    first = failure(2, 1.1, death=True, first=True)
    assert first_cause([failure(0, 1.0, death=True), first], 0.2) is first


def test_ranks_with_the_same_failure_stand_together_and_the_first_cause_on_top():
    first = failure(3, detail="line 1 of rank 3")
    text = group_text([failure(0, detail="other"), first, failure(1, detail="line 7 of rank 1")], first)
    assert text == ("Training failed due to worker errors:\n[Rank 1,3 Error Snippet]:\nline 1 of rank 3\n"
                    "[Rank 0 Error Snippet]:\nother")


def test_long_snippets_are_cut_in_the_middle():
    first = failure(0, detail="a" * 3000 + "b" * 3000)
    text = group_text([first, failure(1, detail="c" * 1500)], first)
    assert "... 2000 characters left out ..." in text
    assert "... 500 characters left out ..." in text
    long_log = failure(0, death=True, detail="x" * 9000)
    assert "left out" not in group_text([long_log], long_log)


def test_the_traceback_has_the_users_frames_only():
    def user_function() -> None:
        runtime.loads(b"not a pickle")

    try:
        user_function()
    except Exception as exc:  # whatever pickle raises
        try:
            raise ValueError("outer") from exc
        except ValueError as outer:
            text = user_traceback(outer)
    assert "user_function" in text
    assert "serialization.py" not in text
    assert "ValueError: outer" in text
    assert "direct cause" in text


def test_exceptions_that_pickle_cannot_rebuild_travel_all_the_same():
    error = AwkwardError(3, "why")
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(Portable(error)))
    assert (type(again), str(again), again.code, again.__notes__) == (AwkwardError, "3: why", 3, ["a note"])
