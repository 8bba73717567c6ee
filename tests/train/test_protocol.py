from __future__ import annotations

import pickle
from typing import get_args

import pytest

from train import protocol
from train.commit import FileEntry
from train.storage import FileFacts

SAMPLES = [
    protocol.Entered(), protocol.Report(1, b"m", (FileEntry("a", 1),), "name"), protocol.Written(1, {"a": FileFacts(1, "digest")}),
    protocol.WriteFailed(1, "why"), protocol.AskCheckpoint(1), protocol.Publish("h", 1), protocol.AskMaster(), protocol.Returned(b"v"),
    protocol.Failed(b"e", "ValueError", "text", "trace"), protocol.Place("name", ("a",)), protocol.Committed("name"),
    protocol.Refused("CheckpointError", "why"), protocol.Latest(None), protocol.Master("h", 1), protocol.Ack(), protocol.Release()]


def test_there_is_a_sample_of_every_message():
    assert {type(sample) for sample in SAMPLES} == {*get_args(protocol.ToController), *get_args(protocol.ToRank)}


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_messages_are_values_that_travel(message: object):
    assert pickle.loads(pickle.dumps(message)) == message
    assert not hasattr(message, "__dict__")
