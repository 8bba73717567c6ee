"""A status as text and as JSON."""

from __future__ import annotations

import json

from runtime.picture import as_json, as_text, table
from runtime.wire import messages as wire

FACTS = wire.NodeFacts("n" * 32, "node-a", "host", 10, "10.0.0.1", 7000, "eth0", {"CPU": 4.0, "GPU": 2.0}, {"zone": "x"})
STATUS = wire.ClusterStatus(
    False,
    (wire.NodeStatus(FACTS, "ALIVE", {"CPU": 1.5, "GPU": 0.0}, ("torch: ready",)),),
    (wire.JobStatus("j" * 32, "OPEN", 4711, "/home/me", is_driver_lost=True),),
    (wire.RunStatus("digits", "running", 2, 8, "loss=0.25", "checkpoint_000003", "/results/digits", job_id="j" * 32),),
    (wire.GroupStatus("g" * 32, "j" * 32, "rank 0, rank 1", "PENDING", "2 x {GPU: 2}", "needs {GPU: 4}\nfree {GPU: 0}", 12.3),),
    (wire.ActorEntry("a" * 32, "j" * 32, "g" * 32, "", "rank 0", "TrainWorker", "READY", True, "node-a", 42, (0, 1), "/log"),),
    3, 1)


def test_text_is_compact_aligned_tables_and_the_reasons_of_what_waits() -> None:
    assert as_text("10.0.0.1:6480", 0, STATUS).splitlines() == [
        "cluster at 10.0.0.1:6480",
        "",
        "nodes",
        "  name    state  address        free/all           labels  zygotes",
        "  node-a  ALIVE  10.0.0.1:7000  CPU 1.5/4 GPU 0/2  zone=x  torch: ready",
        "",
        "runs",
        "  name    state    attempt  ranks  metrics    checkpoint         directory",
        "  digits  running  2        8      loss=0.25  checkpoint_000003  /results/digits",
        "",
        "actors",
        "  label   class        state  node    pid  gpus  id",
        "  rank 0  TrainWorker  READY  node-a  42   0,1   aaaaaaaa",
        "",
        "groups",
        "  id        state    asked         of",
        "  gggggggg  PENDING  2 x {GPU: 2}  job jjjjjjjj",
        "",
        "jobs",
        "  id        state  driver pid   cwd",
        "  jjjjjjjj  OPEN   4711 (lost)  /home/me",
        "",
        "2 more groups are not shown",
        "",
        "waiting",
        "  rank 0, rank 1 (group gggggggg, job jjjjjjjj) for 12 s:",
        "    needs {GPU: 4}",
        "    free {GPU: 0}",
    ]


def test_an_empty_embedded_cluster_is_one_line() -> None:
    assert as_text("unix:/tmp/x/head", 99, wire.ClusterStatus(True, (), (), (), (), (), 0, 0)) == (
        "embedded cluster of driver pid 99 at unix:/tmp/x/head")


def test_json_has_stable_keys() -> None:
    found = json.loads(json.dumps(as_json("10.0.0.1:6480", 0, STATUS)))
    assert list(found) == ["address", "embedded", "driver_pid", "nodes", "jobs", "runs", "groups", "actors", "num_groups", "num_actors"]
    assert found["driver_pid"] is None
    assert list(found["nodes"][0]) == ["id", "name", "state", "address", "port", "interface", "pid", "resources", "available", "labels",
                                       "gpus", "zygotes", "python", "version"]
    assert list(found["runs"][0]) == ["name", "job", "state", "over", "attempt", "world_size", "metrics", "checkpoint", "directory"]
    assert list(found["groups"][0]) == ["id", "job", "name", "state", "asked", "reason", "waits_s", "nodes"]
    assert list(found["actors"][0]) == ["id", "job", "group", "name", "label", "class", "state", "node", "pid", "gpu_ids", "log_path"]
    assert found["groups"][0]["waits_s"] == 12.3


def test_a_column_that_is_empty_is_left_out() -> None:
    assert table([("a", "b", "c"), ("1", "", "3"), ("10", "", "")]) == "  a   c\n  1   3\n  10"
