"""Three hosts, a head on a fourth and a driver on a fifth, each a network namespace on one switch; everything is gone with the namespaces.

Each host has two interfaces. The wrong one comes first by name and by index, has the default route, the same address on every host (like
``docker0``) and the host's name; it leads nowhere. Whoever guesses an interface guesses that one. Temporary directory, home and names are
each host's own, so that nothing but the network and the results' directory is shared.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

RIGHT, DECOY = "zz0", "aa0"
DECOY_ADDRESS = "10.254.1.1"
# $0 name, $1 what is the host's own, $2 where tmp and home are to be seen
ENTER = ('hostname "$0"; for file in hosts resolv.conf; do mount --bind "$1/$file" "/etc/$file"; done; '
         'for folder in tmp home; do mount --bind "$1/$folder" "$2/$folder"; done; shift 2; exec "$@"')


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"


@dataclass(frozen=True)
class Host:
    """A namespace with a cable to the switch."""

    name: str
    namespace: str
    switch: str
    address: str
    own: Path
    shared: Path

    @property
    def on(self) -> tuple[str, ...]:
        """The command that runs another one there."""
        return ("ip", "netns", "exec", self.namespace, "unshare", "--mount", "--uts", "sh", "-ec", ENTER, self.name, str(self.own),
                str(self.shared))

    def pull(self) -> None:
        """The cable, at the switch: the host sees its interface without a carrier and keeps its address."""
        ip("-n", self.switch, "link", "set", self.name, "down")

    def plug(self) -> None:
        ip("-n", self.switch, "link", "set", self.name, "up")

    def owns(self, pid: int) -> bool:
        """Whether the process runs there."""
        with contextlib.suppress(OSError):
            return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(f"/run/netns/{self.namespace}").st_ino
        return False

    def tcp(self) -> list[tuple[str, str, str]]:
        """State, local and remote end ("10.0.0.1:80") of every TCP socket there; IPv4 addresses of IPv6 sockets as such."""
        rows = subprocess.run(["ip", "netns", "exec", self.namespace, "ss", "-tanH"], capture_output=True, text=True, check=True).stdout
        plain = rows.replace("[::ffff:", "").replace("]", "")
        return [(row.split()[0], row.split()[3], row.split()[4]) for row in plain.splitlines()]


@dataclass
class Network:
    """The head's host, one for drivers, the three others, and a cluster on them: one CPU on each of the three."""

    head_host: Host
    driver_host: Host
    hosts: dict[str, Host]
    sandbox: Any
    token_file: Path
    address: str = ""
    head: Any = None
    daemons: dict[str, Any] = field(default_factory=dict)

    @property
    def all_hosts(self) -> list[Host]:
        return [self.head_host, self.driver_host, *self.hosts.values()]

    @property
    def env(self) -> dict[str, str]:
        """All that a program has to be told."""
        return {"HEADWAY_TOKEN_FILE": str(self.token_file)}

    def start(self, host: Host, *command: str) -> Any:
        return self.sandbox.start(*command, env=self.env, on=host.on)

    def start_daemon(self, host: Host, *arguments: str) -> Any:
        return self.start(host, "-m", "runtime.worker", "--head", self.address, *arguments)

    def example(self, host: Host, name: str, *arguments: str) -> Any:
        return self.sandbox.example(name, "--address", self.address, *arguments, env=self.env, on=host.on)

    def script(self, host: Host, text: str, *arguments: str) -> Any:
        return self.sandbox.script(text, *arguments, env=self.env, on=host.on)

    def actors_by_host(self) -> dict[str, list[int]]:
        """Pids of the actors of each host that has some, oldest first."""
        pids = self.sandbox_actors()
        found = {name: [pid for pid in pids if host.owns(pid)] for name, host in self.hosts.items()}
        return {name: own for name, own in found.items() if own}

    def sandbox_actors(self) -> list[int]:
        return self.head.actors()


def _missing() -> str:
    """Why network namespaces can't be had here, "" if they can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    lacking = [name for name in ("ip", "ss", "unshare", "mount", "hostname") if shutil.which(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (Debian: iproute2, util-linux, hostname)"
    probe = f"hw{secrets.token_hex(4)}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if done.returncode != 0:
        return f"needs network namespaces: {done.stderr.strip()}"
    ip("netns", "del", probe)
    return ""


@pytest.fixture(scope="module")
def network(module_sandbox: Any) -> Iterator[Network]:
    """Hosts and switch, wired, without any program of ours."""
    why = _missing()
    if why:
        pytest.skip(why)
    _sweep()
    run = f"hw{os.getpid()}"
    subnet = f"10.{secrets.choice(range(64, 128))}.{secrets.choice(range(256))}"
    switch, made = f"{run}-switch", []
    try:
        made += _add_namespace(switch)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        hosts, path = [], module_sandbox.path
        for number, letter in enumerate(("head", "driver", "a", "b", "c"), start=1):
            host = Host(f"host-{letter}", f"{run}-{letter}", switch, f"{subnet}.{number}", own=path / letter, shared=path)
            made += _add_namespace(host.namespace)
            _wire(host)
            hosts.append(host)
            module_sandbox.temporary.append(host.own / "tmp")
        head_host, driver_host, *others = hosts
        yield Network(head_host, driver_host, {host.name: host for host in others}, module_sandbox, path / "token")
    finally:
        for program in module_sandbox.programs:  # in the namespaces, which live as long as a process in them
            if program.process.poll() is None:
                program.process.terminate()
        for program in module_sandbox.programs:
            program.process.wait(30)
        for name in made:
            ip("netns", "del", name)


def _sweep() -> None:
    """Namespaces of a run that was killed, before it could remove them."""
    for name in os.listdir("/run/netns") if os.path.isdir("/run/netns") else ():
        owner = re.fullmatch(r"hw(\d+)-\w+", name)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            ip("netns", "del", name)


def _add_namespace(name: str) -> list[str]:
    ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    return [name]


def _wire(host: Host) -> None:
    for directory in ("tmp", "home"):
        (host.own / directory).mkdir(parents=True)
    (host.own / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{DECOY_ADDRESS} {host.name}\n")
    # No name server, instead of one behind the decoy: c10d looks up who connects to its store, and would wait for the resolver's time-outs.
    (host.own / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    ip("-n", host.switch, "link", "add", f"{host.name}-x", "type", "veth", "peer", "name", DECOY, "netns", host.namespace)
    ip("-n", host.switch, "link", "set", f"{host.name}-x", "up")
    ip("-n", host.switch, "link", "add", host.name, "type", "veth", "peer", "name", RIGHT, "netns", host.namespace)
    ip("-n", host.switch, "link", "set", host.name, "master", "bridge", "up")
    for interface, address in ((DECOY, DECOY_ADDRESS), (RIGHT, host.address)):
        ip("-n", host.namespace, "addr", "add", f"{address}/24", "dev", interface)
        ip("-n", host.namespace, "link", "set", interface, "up")
    ip("-n", host.namespace, "route", "add", "default", "via", f"{DECOY_ADDRESS[:-1]}254", "dev", DECOY)


@pytest.fixture(scope="module")
def cluster_on_hosts(network: Network) -> Network:
    """A head and a daemon on each of the other hosts, as a user starts them. Torch is imported three times: once for the module."""
    address_file = network.sandbox.path / "address"
    network.head = network.start(network.head_host, "-m", "runtime.head", "--host", network.head_host.address, "--port", "0",
                                 "--address-file", str(address_file))
    network.head.wait_line(lambda line: network.head_host.address in line, stderr=True)
    network.address = address_file.read_text().strip()
    for name, host in network.hosts.items():
        network.daemons[name] = network.start_daemon(host, "--num-cpus", "1")
    for daemon in network.daemons.values():
        daemon.wait_line(lambda line: "joined" in line, stderr=True)
    return network


@pytest.fixture
def three_hosts(cluster_on_hosts: Network) -> Iterator[Network]:
    """The cluster, with all cables in; checks at the end that nothing of the test's jobs is left on any host."""
    network, before = cluster_on_hosts, len(cluster_on_hosts.sandbox.programs)
    yield network
    for host in network.all_hosts:
        host.plug()
    started = network.sandbox.programs[before:]
    del network.sandbox.programs[before:]
    for program in started:
        program.close()
    deadline = time.monotonic() + 30
    while (left := network.sandbox_actors()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, network.head.report(f"actors {left} are left after the test")
    for name, daemon in network.daemons.items():
        assert daemon.process.poll() is None, daemon.report(f"the daemon of {name} has ended")
