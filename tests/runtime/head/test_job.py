"""The life cycle of a job."""

from __future__ import annotations

from runtime.head.job import JOB_TABLE, Job, JobState
from runtime.wire.messages import OpenJob


def test_table() -> None:
    assert {f"{old} -> {new}" for old, targets in JOB_TABLE.items() for new in targets} == {"OPEN -> CLOSING", "CLOSING -> CLOSED"}


def test_deadline_is_the_lease_and_then_the_wait_for_the_end() -> None:
    job = Job(OpenJob("0123456789", "h", 42, "/", (), "", True), same_host=True)
    assert job.deadline() is None
    job.lost_at, job.lease_s = 10.0, 3.0
    assert job.deadline() == 13.0
    job.state, job.close_by = JobState.CLOSING, 25.0
    assert job.deadline() == 25.0
    assert str(job) == "job 01234567 (driver pid 42)"


def test_without_a_namespace_a_job_is_its_own() -> None:
    assert Job(OpenJob("j", "h", 1, "/", (), "", True), same_host=True).namespace == "j"
    assert Job(OpenJob("j", "h", 1, "/", (), "team", True), same_host=True).namespace == "team"
