"""An actor as its daemon plans it: legal states, environment, paths."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from runtime.wire.messages import NodeFacts, StartActors, StartSpec
from runtime.worker.actor_process import TRANSITIONS, ActorProcess, Order, State
from runtime.worker.birth import FORCED_ENV, THREAD_VARIABLES
from runtime.worker.sweep import Lineage

NODE = NodeFacts("n", "alpha", "h", 1, "10.0.0.5", 7, "eth0", {}, {}, gpus=("GPU-a", "GPU-b"))
LINEAGE = Lineage(1, 2, 3)


def _actor(tmp_path: Path, *, label: str = "rank 1", resources: dict[str, float] | None = None, env: dict[str, str] | None = None,
           visible: tuple[int, ...] = ()) -> ActorProcess:
    spec = StartSpec("a" * 32, 1, "", label, "C", 1, resources or {}, visible, visible)
    message = StartActors("j", "g", 0, (spec,), (), env or {}, "h", "/driver", ("/p",), False)
    actor = ActorProcess(spec, Order(message, ()), tmp_path, 12)
    actor.order.actors.append(actor)
    return actor


@pytest.fixture
def no_thread_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FORCED_ENV:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("after", list(State))
def test_only_the_tables_transitions_are_made(tmp_path: Path, state: State, after: State) -> None:
    actor = _actor(tmp_path)
    actor.state = state
    if after in TRANSITIONS[state]:
        actor.move(after)
        assert actor.state is after
    else:
        with pytest.raises(AssertionError):
            actor.move(after)


@pytest.mark.usefixtures("no_thread_variables")
def test_what_the_zygote_was_forced_to_is_undone_for_the_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "6")
    birth = _actor(tmp_path, resources={"CPU": 3.5}).birth(LINEAGE, NODE, simulated_gpus=False, is_drivers_host=True)
    assert [birth.env[name] for name in THREAD_VARIABLES] == ["3", "6", "3"]
    assert birth.env["JE_ARROW_MALLOC_CONF"] is None
    assert birth.env["CUDA_VISIBLE_DEVICES"] == ""
    assert (birth.num_threads, birth.cwd, birth.sys_path) == (3, "/driver", ("/p",))
    assert birth.marker == "1.2.3." + "a" * 32


@pytest.mark.usefixtures("no_thread_variables")
@pytest.mark.parametrize(("omp", "expected"), [("8", 8), ("4,2", 4), ("nonsense", 1)])
def test_the_users_number_of_threads_counts(tmp_path: Path, omp: str, expected: int) -> None:
    birth = _actor(tmp_path, env={"OMP_NUM_THREADS": omp}).birth(LINEAGE, NODE, simulated_gpus=False, is_drivers_host=False)
    assert (birth.num_threads, birth.env["OMP_NUM_THREADS"], birth.cwd) == (expected, omp, "")


def test_gpus_are_visible_by_uuid(tmp_path: Path) -> None:
    birth = _actor(tmp_path, visible=(0, 1)).birth(LINEAGE, NODE, simulated_gpus=False, is_drivers_host=True)
    assert birth.env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_file_names_are_harmless(tmp_path: Path) -> None:
    actor = _actor(tmp_path, label="../../etc/pass wd\n" + "x" * 100)
    assert Path(actor.log_path).parent == tmp_path / "logs"
    assert Path(actor.log_path).name == ".._.._etc_pass_wd_" + "x" * 22 + "-12.log"
    assert actor.unix_path == str(tmp_path / "a12.sock")


@pytest.mark.asyncio
async def test_a_connection_is_not_handed_to_who_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    actor = _actor(tmp_path)
    ours, theirs = socket.socketpair()
    assert not actor.hand_over(ours)
    fds = actor.open_sockets()
    actor.state = State.UP
    assert actor.hand_over(ours)
    assert ours.fileno() == -1
    handed = socket.socket(fileno=fds[1])
    _, received, _, _ = socket.recv_fds(handed, 1, 1)
    with socket.socket(fileno=received[0]) as passed, theirs:
        theirs.sendall(b"x")
        assert passed.recv(1) == b"x"
    handed.close()
    for fd in (fds[0], fds[2]):
        os.close(fd)
    with socket.socket() as another:
        assert not actor.hand_over(another)  # it has ended
    actor.leave()
    assert actor.gone.is_set()
