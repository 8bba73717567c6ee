"""Actors under a real daemon: how they are made, stopped, and what is known of their ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.client import serialization
from runtime.errors import ActorNotFoundError
from runtime.ids import new_actor_id
from runtime.wire.messages import ActorExited, ActorsReady, ActorStarted, LogEnd, LogLines, StopActors
from runtime.wire.peer import Identity, connect

pytestmark = pytest.mark.process

AnyCluster = Callable[..., Any]


def _victim() -> type:
    class Victim:
        """Ends in the way that it is told, in its constructor or in a method."""

        def __init__(self, in_constructor: str = "") -> None:
            if in_constructor:
                self.end(in_constructor)

        def end(self, how: str) -> None:
            import ctypes
            import os
            import signal
            import sys

            print(f"about to end by {how}", flush=True)
            match how:
                case "_exit":
                    os._exit(3)
                case "sys.exit":
                    sys.exit(4)
                case "exit text":
                    sys.exit("enough")
                case "raise":
                    raise ValueError("no such thing")
                case "SIGKILL":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "SIGSEGV":
                    ctypes.string_at(0)
                case "SIGABRT":
                    os.abort()

        def eat(self, mebibytes: int) -> int:
            return len(bytearray(b"x" * (mebibytes << 20)))

        def facts(self) -> dict[str, Any]:
            import os
            import sys

            return {"env": dict(os.environ), "cwd": os.getcwd(), "path": list(sys.path), "pid": os.getpid(), "sid": os.getsid(0),
                    "ppid": os.getppid(), "argv": sys.argv, "main": vars(sys.modules["__main__"]).get("__file__"),
                    "fds": {int(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                            if os.path.exists(f"/proc/self/fd/{fd}")}}

        def leave_behind(self) -> list[int]:
            """A child, a grandchild in a session of its own whose parent is gone, and one that executed another program."""
            import os
            import subprocess
            import time

            child = os.fork()
            if child == 0:
                time.sleep(1000)
            read_fd, write_fd = os.pipe()
            between = os.fork()
            if between == 0:
                os.setsid()
                grandchild = os.fork()
                if grandchild == 0:
                    time.sleep(1000)
                os.write(write_fd, str(grandchild).encode())
                os._exit(0)
            os.waitpid(between, 0)
            program = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            return [child, int(os.read(read_fd, 20)), program.pid]

        def work(self, path: str) -> None:
            import time

            open(path, "w").close()
            time.sleep(1000)

        def watch_stop(self, path: str) -> None:
            import runtime.actor.context as context

            def note(reason: str, grace_s: float) -> None:
                with open(path, "w") as file:
                    file.write(f"{reason} {grace_s:g}")

            context.on_stop_requested(note)

        def wait_for_stop(self, path: str) -> bool:
            import time

            import runtime.actor.context as context

            open(path + ".waiting", "w").close()
            while not context.stop_requested():
                time.sleep(0.005)
            return True

        def handle_sigterm(self, path: str) -> None:
            import signal
            import sys

            def handler(number: int, frame: Any) -> None:
                with open(path, "w") as file:
                    file.write("terminated")
                sys.exit(9)

            signal.signal(signal.SIGTERM, handler)

        def say(self, *lines: str) -> None:
            for line in lines:
                print(line)

        def close_all(self) -> None:
            import os
            import time

            os.closerange(3, 100)
            time.sleep(1000)

    return Victim


async def _begin_to_work(cluster: Any, caller: Any) -> asyncio.Future[Any]:
    """A call that has begun and takes for ever."""
    path = cluster.tmp / "works"
    call = asyncio.ensure_future(caller.call("work", str(path)))
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.005)
    return call


async def _exited(cluster: Any, actor: Any) -> Any:
    message = await cluster.head.expect(ActorExited, lambda message: message.actor_id == actor.actor_id)
    assert message.incarnation == 1
    return message.evidence


# ---- evidence ----


@pytest.mark.parametrize(("how", "kind", "code", "signal_name", "detail"), [
    ("_exit", "exit code", 3, "", "exited with code 3"),
    ("sys.exit", "exit code", 4, "", "exited with code 4"),
    ("exit text", "exit code", 1, "", "exited with code 1"),
    ("SIGKILL", "signal", 0, "SIGKILL", "killed by SIGKILL"),
    ("SIGSEGV", "signal", 0, "SIGSEGV", "killed by SIGSEGV"),
    ("SIGABRT", "signal", 0, "SIGABRT", "killed by SIGABRT"),
])
@pytest.mark.parametrize("in_constructor", [False, True])
@pytest.mark.asyncio
async def test_A4_the_evidence_says_how_an_actor_ended(worker_cluster: AnyCluster, how: str, kind: str, code: int, signal_name: str,
                                                       detail: str, in_constructor: bool) -> None:
    async with worker_cluster() as cluster:
        if in_constructor:
            order = cluster.order(_victim(), how)
            actor = order.actors[0]
            evidence = await _exited(cluster, actor)
        else:
            (actor,) = await cluster.start(_victim())
            caller = await cluster.connect(actor)
            with pytest.raises(Exception, match="connection|closed"):
                await caller.call("end", how)
            evidence = await _exited(cluster, actor)
            assert evidence.pid == actor.pid
        assert (evidence.kind, evidence.code, evidence.signal, evidence.wanted) == (kind, code, signal_name, False)
        assert evidence.detail == detail + (" before its constructor returned" if in_constructor else "")
        assert evidence.log_tail[0] == f"about to end by {how}"
        if how in ("SIGSEGV", "SIGABRT"):
            assert any("in end" in line for line in evidence.log_tail), evidence.log_tail  # faulthandler's stack
        if how == "exit text":
            assert evidence.log_tail[-1] == "enough"
        assert evidence.peak_rss_bytes > 5 << 20
        assert (evidence.label, evidence.node_name, evidence.host) == ("Victim 0", cluster.head.facts.name, "127.0.0.1")
        assert Path(evidence.log_path).read_text().startswith("about to end")


@pytest.mark.asyncio
async def test_A4_a_constructors_exception_is_passed_on(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        order = cluster.order(_victim(), "raise")
        evidence = await _exited(cluster, order.actors[0])
        assert (evidence.kind, evidence.detail, evidence.wanted) == ("start error", "ValueError: no such thing", False)
        error = serialization.loads_error(evidence.error)
        assert isinstance(error, ValueError)
        assert error.args == ("no such thing",)
        log = "\n".join(evidence.log_tail)
        assert 'raise ValueError("no such thing")' in log
        assert "runtime/actor/host.py" not in log
        assert not any(isinstance(message, ActorsReady) for message in cluster.head.received)


@pytest.mark.asyncio
async def test_a_class_that_can_not_be_loaded_is_a_start_error(worker_cluster: AnyCluster) -> None:
    class Unloadable:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    async with worker_cluster() as cluster:
        order = cluster.order(_victim(), Unloadable())
        evidence = await _exited(cluster, order.actors[0])
        assert evidence.kind == "start error"
        assert "invalid literal" in evidence.detail


@pytest.mark.asyncio
async def test_the_peak_of_memory_is_the_actors_own(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        small, big = await cluster.start(_victim(), count=2)
        await (await cluster.connect(big)).call("eat", 200)
        cluster.stop(small, big)
        assert (await _exited(cluster, big)).peak_rss_bytes > 200 << 20
        assert (await _exited(cluster, small)).peak_rss_bytes < 150 << 20


@pytest.mark.asyncio
async def test_an_actor_that_does_not_get_to_its_constructor_times_out(worker_cluster: AnyCluster) -> None:
    class Slow:
        def __reduce__(self) -> Any:
            import time

            return time.sleep, (1000,)

    async with worker_cluster(limits={"start_s": 1.5}) as cluster:
        order = cluster.order(_victim(), Slow())
        evidence = await _exited(cluster, order.actors[0])
        assert (evidence.kind, evidence.signal, evidence.wanted) == ("start time-out", "SIGKILL", False)
        assert "within 1.5 s" in evidence.detail


@pytest.mark.asyncio
async def test_a_constructor_may_take_longer_than_the_start_time_out(worker_cluster: AnyCluster) -> None:
    class Patient:
        def __init__(self) -> None:
            import time

            time.sleep(2.5)

    async with worker_cluster(limits={"start_s": 1.5}) as cluster:
        await cluster.start(Patient)


@pytest.mark.asyncio
async def test_an_actor_that_closed_its_lifeline_is_ended(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        caller = await cluster.connect(actor)
        call = asyncio.ensure_future(caller.call("close_all"))
        evidence = await _exited(cluster, actor)
        assert evidence.wanted is False
        with pytest.raises(Exception, match="connection|closed"):
            await call


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not os.access("/sys/fs/cgroup/memory/cgroup.procs", os.W_OK), reason="needs a cgroup v1 of memory")
@pytest.mark.asyncio
async def test_an_actor_killed_for_memory_says_so(worker_cluster: AnyCluster) -> None:
    group = Path(f"/sys/fs/cgroup/memory/headway-test-{os.getpid()}")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
        async with worker_cluster(prefix=("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh")) as cluster:
            (actor,) = await cluster.start(_victim())
            caller = await cluster.connect(actor)
            with pytest.raises(Exception, match="connection|closed"):
                await caller.call("eat", 1000)
            evidence = await _exited(cluster, actor)
            assert (evidence.kind, evidence.signal, evidence.wanted) == ("out of memory", "SIGKILL", False)
            assert "of 0.3 GiB" in evidence.detail
            await cluster.start(_victim())  # the daemon was not the one to be killed
    finally:
        while True:
            try:
                group.rmdir()
                break
            except OSError:
                await asyncio.sleep(0.05)


# ---- stopping ----


@pytest.mark.asyncio
async def test_an_idle_actor_ends_by_itself_when_asked_to(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        told = cluster.tmp / "told"
        await (await cluster.connect(actor)).call("watch_stop", str(told))
        cluster.stop(actor, grace_s=15.0, reason="scaling down", kind="owner gone")
        evidence = await _exited(cluster, actor)
        assert (evidence.kind, evidence.detail, evidence.wanted) == ("owner gone", "scaling down", True)
        assert (evidence.code, evidence.signal) == (0, "")
        assert told.read_text() == "scaling down 15"


@pytest.mark.asyncio
async def test_a_busy_actor_may_finish_its_call_within_the_grace(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        caller = await cluster.connect(actor)
        path = cluster.tmp / "x"
        call = asyncio.ensure_future(caller.call("wait_for_stop", str(path)))
        while not path.with_name("x.waiting").exists():
            await asyncio.sleep(0.01)
        cluster.stop(actor, grace_s=15.0)
        assert await call is True  # its result arrives
        evidence = await _exited(cluster, actor)
        assert (evidence.code, evidence.signal, evidence.wanted) == (0, "", True)


@pytest.mark.asyncio
async def test_a_busy_actor_is_killed_when_the_grace_is_over(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        caller = await cluster.connect(actor)
        call = await _begin_to_work(cluster, caller)
        cluster.stop(actor, grace_s=0.3)
        evidence = await _exited(cluster, actor)
        assert (evidence.kind, evidence.signal, evidence.wanted) == ("killed", "SIGKILL", True)
        with pytest.raises(Exception, match="connection|closed"):
            await call


@pytest.mark.asyncio
async def test_a_stop_can_be_hurried(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        caller = await cluster.connect(actor)
        call = await _begin_to_work(cluster, caller)
        cluster.stop(actor, grace_s=1000.0, reason="first")
        cluster.stop(actor, grace_s=0.0, reason="second")
        evidence = await _exited(cluster, actor)
        assert (evidence.detail, evidence.signal) == ("first", "SIGKILL")
        with pytest.raises(Exception, match="connection|closed"):
            await call


@pytest.mark.asyncio
async def test_sigterm_reaches_the_handler_of_a_plain_actor(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        caller = await cluster.connect(actor)
        await caller.call("handle_sigterm", str(cluster.tmp / "said"))
        call = await _begin_to_work(cluster, caller)
        cluster.stop(actor, grace_s=15.0, sigterm=True)
        evidence = await _exited(cluster, actor)
        assert (evidence.code, evidence.wanted) == (9, True)
        assert (cluster.tmp / "said").read_text() == "terminated"
        with pytest.raises(Exception, match="connection|closed"):
            await call


@pytest.mark.asyncio
async def test_an_actor_that_died_before_the_stop_came_keeps_its_cause(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        cluster.process.send_signal(signal.SIGSTOP)  # so that both are waiting for it when it looks
        os.kill(actor.pid, signal.SIGKILL)
        cluster.stop(actor)
        await cluster.head.peer.flush()
        stat, threads = Path(f"/proc/{actor.pid}/stat"), Path(f"/proc/{actor.pid}/task")
        while len(list(threads.iterdir())) > 1 or stat.read_text().rpartition(")")[2].split()[0] != "Z":
            await asyncio.sleep(0.005)
        cluster.process.send_signal(signal.SIGCONT)
        evidence = await _exited(cluster, actor)
        assert (evidence.kind, evidence.wanted) == ("signal", False)


@pytest.mark.asyncio
async def test_an_actor_is_stopped_while_it_is_being_made(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        order = cluster.order(_victim(), count=2)
        cluster.head.send(StopActors(tuple(spec.actor_id for spec in order.actors), 0.0, "changed my mind"))
        for spec in order.actors:
            evidence = await _exited(cluster, spec)
            assert (evidence.kind, evidence.detail, evidence.wanted) == ("killed", "changed my mind", True)


# ---- leftovers ----


@pytest.mark.asyncio
async def test_what_an_actor_leaves_behind_is_swept_when_it_ends_and_nothing_else(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        ending, living = await cluster.start(_victim(), count=2)
        leftovers = await (await cluster.connect(ending)).call("leave_behind")
        others = await (await cluster.connect(living)).call("leave_behind")
        assert set(cluster.descendants()) == {ending.pid, living.pid, *leftovers, *others}
        os.kill(ending.pid, signal.SIGKILL)
        await _exited(cluster, ending)
        assert set(cluster.descendants()) == {living.pid, *others}


@pytest.mark.asyncio
async def test_N2_what_actors_of_a_killed_daemon_left_is_swept_by_the_zygote(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        await (await cluster.connect(actor)).call("leave_behind")
        cluster.process.kill()
        await cluster.wait_ended()  # the fixture waits until all processes and the session's directory are gone


@pytest.mark.asyncio
async def test_no_zombie_and_no_descriptor_stays_in_the_daemon(worker_cluster: AnyCluster) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{cluster.process.pid}/fd"))

    def children() -> list[str]:
        return Path(f"/proc/{cluster.process.pid}/task/{cluster.process.pid}/children").read_text().split()

    async with worker_cluster() as cluster:
        for round_number in range(4):
            actors = await cluster.start(_victim(), count=3)
            for actor in actors:
                await (await cluster.connect(actor)).call("leave_behind")
            cluster.stop(*actors)
            for actor in actors:
                await _exited(cluster, actor)
                await cluster.head.expect(LogEnd, lambda message, actor=actor: message.actor_id == actor.actor_id)
            if round_number == 0:
                before = descriptors()
        async with asyncio.timeout(10):
            while len(children()) > 1 or descriptors() > before:  # the zygote
                await asyncio.sleep(0.02)


# ---- surroundings ----


@pytest.mark.asyncio
async def test_an_actor_has_its_surroundings(worker_cluster: AnyCluster, short_tmp: Path) -> None:
    async with worker_cluster("--num-gpus", "4", env={"MKL_NUM_THREADS": "7"}) as cluster:
        (actor,) = await cluster.start(_victim(), env={"MINE": "yes", "HOME": "/nowhere"}, resources={"CPU": 3.0}, cwd=str(short_tmp),
                                       sys_path=("/somewhere", *sys.path), visible_gpu_ids=(1, 3), gpu_ids=(3,))
        facts = await (await cluster.connect(actor)).call("facts")
        env = facts["env"]
        assert (env["MINE"], env["HOME"]) == ("yes", "/nowhere")
        assert (env["OMP_NUM_THREADS"], env["OPENBLAS_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("3", "3", "7")
        assert "JE_ARROW_MALLOC_CONF" not in env
        assert env["CUDA_VISIBLE_DEVICES"] == "1,3"
        assert facts["cwd"] == str(short_tmp)
        assert facts["path"][0] == "/somewhere"
        assert facts["pid"] == facts["sid"] == actor.pid
        assert facts["ppid"] == cluster.process.pid
        assert facts["main"] is None
        assert facts["fds"][0] == "/dev/null"
        assert facts["fds"][1] == facts["fds"][2] == actor.log_path
        assert Path(f"/proc/{actor.pid}/oom_score_adj").read_text() == "1000\n"


@pytest.mark.asyncio
async def test_without_gpus_none_is_visible_and_another_host_has_its_own_paths(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim(), on_other_host=True, cwd="/proc", sys_path=("/nowhere",))
        facts = await (await cluster.connect(actor)).call("facts")
        assert facts["env"]["CUDA_VISIBLE_DEVICES"] == ""
        assert facts["env"]["OMP_NUM_THREADS"] == "1"
        assert facts["cwd"] == str(Path(__file__).parents[3])
        assert "/nowhere" not in facts["path"]


@pytest.mark.asyncio
async def test_a_directory_that_can_not_be_entered_is_no_failure(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim(), cwd="/does/not/exist")
        assert "can't be entered" in Path(actor.log_path).read_text()


# ---- logs ----


@pytest.mark.asyncio
async def test_lines_are_streamed_and_ended(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim(), stream_logs=True, label="rank")
        caller = await cluster.connect(actor)
        await caller.call("say", "one", "\x1b[31mred\x1b[0m \x1b]0;title\x07", "half\rwhole")
        lines: list[str] = []
        while len(lines) < 3:
            message = await cluster.head.expect(LogLines)
            assert (message.job_id, message.actor_id, message.label) == (cluster.job_id, actor.actor_id, "rank 0")
            lines += message.lines
        assert lines == ["one", "\x1b[31mred\x1b[0m \\x1b]0;title\\x07", "whole"]
        await caller.call("say", "last words")
        cluster.stop(actor)
        await cluster.head.expect(LogEnd)
        said = [line for message in cluster.head.received if isinstance(message, LogLines) for line in message.lines]
        assert said == ["last words"]


@pytest.mark.asyncio
async def test_nothing_is_streamed_unless_somebody_listens(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        (actor,) = await cluster.start(_victim())
        await (await cluster.connect(actor)).call("say", "quiet")
        cluster.stop(actor)
        assert (await _exited(cluster, actor)).log_tail == ("quiet",)
        await cluster.head.expect(LogEnd)
        assert not any(isinstance(message, LogLines) for message in cluster.head.received)


# ---- connections ----


@pytest.mark.asyncio
async def test_a_connection_is_handed_over_through_the_daemons_port(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        first, second = await cluster.start(_victim(), count=2)
        callers = [await cluster.connect(actor, by_tcp=True) for actor in (first, second, first)]
        pids = [(await caller.call("facts"))["pid"] for caller in callers]
        assert pids == [first.pid, second.pid, first.pid]


@pytest.mark.asyncio
async def test_a_connection_for_an_unknown_actor_is_refused(worker_cluster: AnyCluster) -> None:
    async with worker_cluster() as cluster:
        stranger = ActorStarted(new_actor_id(), 1, 0, "", "")
        with pytest.raises(ActorNotFoundError, match="runs no actor"):
            await cluster.connect(stranger, by_tcp=True)
        facts = cluster.head.facts
        peer = await connect(f"{facts.host}:{facts.port}", token=cluster.head.token, identity=Identity("driver", "lost"),
                             on_message=lambda peer, received: None, on_close=lambda peer, error: None)
        await peer.wait_closed()  # the daemon itself takes no peers
