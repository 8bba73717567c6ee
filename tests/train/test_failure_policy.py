from __future__ import annotations

from train.failure_policy import FailurePolicy


def decide(policy: FailurePolicy, now: float = 0.0, *, entered: bool = True, retriable: bool = True) -> tuple[bool, str]:
    verdict = policy.decide(entered=entered, retriable=retriable, now=now)
    return verdict.retry, verdict.text


def test_no_restart_by_default():
    assert decide(FailurePolicy(0)) == (False, "no restart: FailureConfig(max_failures=0)")


def test_as_many_restarts_as_failures_are_allowed():
    policy = FailurePolicy(2)
    assert [decide(policy) for _ in range(3)] == [
        (True, "restart 1 of 2"), (True, "restart 2 of 2"),
        (False, "all 2 restarts of FailureConfig(max_failures=2) are used up")]


def test_what_cannot_succeed_is_not_tried_again():
    policy = FailurePolicy(-1)
    assert decide(policy, retriable=False) == (False, "another attempt would fail the same way")
    assert policy.failures == 0


def test_a_finite_number_of_restarts_is_never_cut_short():
    policy = FailurePolicy(10)
    assert all(decide(policy, now, entered=False)[0] for now in range(10))


def test_without_limit_three_early_deaths_in_a_minute_are_the_end():
    policy = FailurePolicy(-1)
    assert decide(policy, 0.0, entered=False) == (True, "restart 1, without limit")
    assert decide(policy, 1.0, entered=False)[0]
    assert decide(policy, 2.0, entered=False) == (False, "3 attempts in 60 s failed before the training function began")


def test_without_limit_slow_early_deaths_and_deaths_in_training_go_on_for_ever():
    policy = FailurePolicy(-1)
    assert all(decide(policy, 31.0 * i, entered=False)[0] for i in range(20))
    policy = FailurePolicy(-1)
    assert all(decide(policy, float(i))[0] for i in range(20))
