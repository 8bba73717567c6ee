"""Three hosts, a head on a fourth and a driver on a fifth: the right interface without any setting, and a pulled cable."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.limits import LIMITS

pytestmark = [pytest.mark.soak, pytest.mark.process, pytest.mark.root, pytest.mark.timeout(300)]

CALLS_BETWEEN_HOSTS = """
import os
import sys

import runtime


class Place:
    def where(self):
        return runtime.get_runtime_context().node_name

    def ask(self, other, data):
        return self.where(), *runtime.get(other.answer.remote(data))

    def answer(self, data):
        return self.where(), len(data)


runtime.init(address=sys.argv[1])
group = runtime.placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
assert group.wait(60)
Remote = runtime.remote(Place)
places = [Remote.options(num_cpus=1, placement_group=group, placement_group_bundle_index=index).remote() for index in range(3)]
names = runtime.get([place.where.remote() for place in places])
assert len(set(names)) == 3, names
for first in range(3):
    for second in range(3):
        if first != second:
            answer = runtime.get(places[first].ask.remote(places[second], os.urandom(3_000_000)))
            assert answer == (names[first], names[second], 3_000_000), answer
print("called", flush=True)
runtime.shutdown()
"""


def is_epoch(line: str) -> bool:
    return line.lstrip().startswith("epoch") and "checkpoint" in line and any(c.isdigit() for c in line)


def wait_epochs(program: Any, count: int = 2) -> None:
    """Return when this many epochs more were trained."""
    for _ in range(count):
        program.wait_line(is_epoch, start=len(program.out))


def interrupt(program: Any) -> str:
    """End a training that goes on. Returns: what it said on stderr."""
    program.process.send_signal(signal.SIGINT)
    assert program.wait() == -signal.SIGINT, program.report("it had ended before")
    return "\n".join(program.err)


def wait_gone(pid: int) -> None:
    """Return when the process, which is not our child, has ended."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.01)


def check_sockets(net: Any) -> None:
    """Every TCP socket on every host has the address that reaches the head: none the decoy's, none all addresses."""
    for host in net.all_hosts:
        for state, local, remote in host.tcp():
            inside = local.startswith("127.0.0.1:") and remote.startswith("127.0.0.1:")
            assert local.startswith(f"{host.address}:") or inside, f"{host.name}: {state} {local} {remote}"


def check_epochs(net: Any) -> None:
    """The records of the latest run tell of each epoch once and in order, whatever happened in between."""
    run = max((net.sandbox.path / "results").iterdir(), key=lambda path: path.stat().st_ctime)
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(len(epochs)))


@pytest.mark.parametrize(("example", "driver", "arguments"), [
    ("digits_torch.py", "", ("--max-epochs", "10")),
    ("digits_lightning.py", "host-c", ("--max-epochs", "10")),
])
def test_example_runs_over_the_right_interface(three_hosts: Any, example: str, driver: str, arguments: tuple[str, ...]) -> None:
    net = three_hosts
    program = net.example(net.hosts.get(driver, net.driver_host), example, "--num-workers", "3", *arguments)
    program.wait_line(is_epoch)
    assert {name: len(pids) for name, pids in net.actors_by_host().items()} == {"host-a": 1, "host-b": 1, "host-c": 1}
    check_sockets(net)
    others = {net.hosts["host-b"].address, net.hosts["host-c"].address}
    connected = {remote.split(":")[0] for state, _, remote in net.hosts["host-a"].tcp() if state == "ESTAB"}
    assert others <= connected, "gloo connects each rank with each"
    result = program.result()
    assert result["metrics"]["val_accuracy"] >= 0.95
    assert result["world_size"] == 3
    assert all((Path(path) / "COMMITTED").is_file() for path in result["best_checkpoints"])


def test_calls_between_hosts_reach_actors_through_the_daemons_ports(three_hosts: Any) -> None:
    net = three_hosts
    program = net.script(net.driver_host, CALLS_BETWEEN_HOSTS, net.address)
    assert program.wait() == 0, program.report("calls between hosts failed")
    assert "called" in program.out
    for host in net.hosts.values():
        listening = [local for state, local, _ in host.tcp() if state == "LISTEN"]
        assert len(listening) == 1, f"one inbound port a host: {listening}"
        assert listening[0].startswith(f"{host.address}:")


def test_daemon_at_a_loopback_address_is_refused_when_other_hosts_are_to_join(three_hosts: Any) -> None:
    net = three_hosts
    address_file = net.sandbox.path / "open-address"
    head = net.start(net.head_host, "-m", "runtime.head", "--host", "0.0.0.0", "--port", "0", "--address-file", str(address_file))
    head.wait_line(lambda line: "headway head at" in line, stderr=True)
    port = address_file.read_text().strip().rpartition(":")[2]
    daemon = net.start(net.head_host, "-m", "runtime.worker", "--head", f"127.0.0.1:{port}", "--preload", "")
    assert daemon.wait() == 1
    assert any("has the address 127.0.0.1, where other hosts of this cluster cannot reach it" in line for line in daemon.err), daemon.err
    other = net.start(net.head_host, "-m", "runtime.worker", "--head", f"{net.head_host.address}:{port}", "--preload", "")
    assert f"at {net.head_host.address} (zz0) joined" in other.wait_line(lambda line: "joined" in line, stderr=True)
    for program in (other, head):
        program.process.terminate()
        assert program.wait() == 0


def test_N1_a_cable_pulled_for_5_s_is_noticed_by_nobody(three_hosts: Any) -> None:
    net = three_hosts
    heard = len(net.head.err)
    program = net.example(net.driver_host, "digits_torch.py", "--max-epochs", "10000", "--max-failures", "0")
    program.wait_line(is_epoch)
    ranks = net.actors_by_host()
    assert len(ranks) == 2
    for host in (net.hosts[min(ranks)], net.driver_host, net.head_host):
        host.pull()
        time.sleep(LIMITS.suspect_s)
        host.plug()
        wait_epochs(program)
    assert net.actors_by_host() == ranks
    said = interrupt(program)
    check_epochs(net)
    assert "Trying again" not in said
    assert not [line for line in net.head.err[heard:] if "DEAD" in line or "lost its driver" in line], net.head.report("the head noticed")


def test_F1_node_behind_a_pulled_cable_is_dead_replaced_and_fenced_when_it_returns(three_hosts: Any) -> None:
    net = three_hosts
    program = net.example(net.driver_host, "digits_torch.py", "--max-epochs", "10000", "--max-failures", "1")
    program.wait_line(is_epoch)
    ranks = net.actors_by_host()
    lost, spare = net.hosts[min(ranks)], (net.hosts.keys() - ranks).pop()
    (old,) = ranks[lost.name]
    head_heard, daemon, daemon_heard = len(net.head.err), net.daemons[lost.name], len(net.daemons[lost.name].err)

    lost.pull()
    net.head.wait_line(lambda line: f"node {lost.name}" in line and "is DEAD: silent for" in line, stderr=True, start=head_heard)
    wait_epochs(program)
    during = net.actors_by_host()
    assert len(during[spare]) == 1
    assert during[lost.name] == [old], "nobody can have told it yet"

    joined = len(net.head.err)
    lost.plug()
    daemon.wait_line(lambda line: "fenced" in line, stderr=True, start=daemon_heard)
    wait_gone(old)
    net.head.wait_line(lambda line: f"node {lost.name}" in line and "joined" in line, stderr=True, start=joined)
    wait_epochs(program)
    assert net.actors_by_host() == {name: pids for name, pids in during.items() if name != lost.name}
    said = interrupt(program)
    check_epochs(net)
    assert f"on {lost.name} (pid {old}) ended (node dead)" in said
    assert "resuming from checkpoint" in said


def test_F1_a_node_that_returns_gets_the_attempt_that_waits_for_it(three_hosts: Any) -> None:
    net = three_hosts
    program = net.example(net.driver_host, "digits_torch.py", "--num-workers", "3", "--max-epochs", "10000", "--max-failures", "1")
    program.wait_line(is_epoch)
    ranks = net.actors_by_host()
    lost = net.hosts["host-b"]
    (old,) = ranks[lost.name]
    lost.pull()
    program.wait_line(lambda line: "waiting for resources" in line, stderr=True)
    os.kill(old, 0)
    lost.plug()
    wait_epochs(program)
    now = net.actors_by_host()
    assert [len(pids) for pids in now.values()] == [1, 1, 1]
    assert old not in now[lost.name], "it was killed before the node was taken in again"
    interrupt(program)
    check_epochs(net)
