"""Random runs of a whole cluster against its invariants: whatever happens in whatever order, at every step they hold.

``World.check`` does the checking after each event: L1 (inventories), L2 (groups whole or not at all), A4 (no death without a cause).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.errors import HeadwayError
from runtime.head import events
from runtime.wire import messages as wire

SHAPES = [{}, {"CPU": 1.0}, {"CPU": 0.5}, {"GPU": 1.0}, {"GPU": 0.5}, {"CPU": 2.0, "GPU": 1.0}, {"CPU": 9.0}]


class Chaos:
    """Everything that can happen to a cluster, each as one method; obeys the head only sometimes."""

    def __init__(self, world: Any, choose: Callable[[list[Any]], Any]) -> None:
        self.world = world
        self.choose = choose
        self.daemons: list[Any] = []
        self.drivers: list[Any] = []
        self.calls: list[int] = []
        self.serial = 0

    def name(self, kind: str) -> str:
        self.serial += 1
        return f"{kind}{self.serial}"

    def add_node(self) -> None:
        if len(self.daemons) < 4:
            self.daemons.append(self.world.node(self.name("n"), cpu=self.choose([1, 2, 4]), gpu=self.choose([0, 1, 2])))

    def add_driver(self) -> None:
        if len(self.drivers) < 3:
            self.drivers.append(self.world.driver(self.name("job"), pid=self.serial, host_id=self.choose(["host-of-head", "elsewhere"])))

    def create(self) -> None:
        ids = [self.name("x") for _ in range(self.choose([1, 2, 3]))]
        self.ask("create", *ids, group=self.name("g"), bundles=(self.choose(SHAPES),) * len(ids), gang=self.choose([True, False]),
                 strategy=self.choose(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]), timeout_s=self.choose([-1.0, 5.0]))

    def create_lasting(self) -> None:
        group = self.name("pg")
        self.ask("create_group", *[self.choose(SHAPES)] * 2, group=group)
        self.ask("create", self.name("x"), self.name("x"), group=group, bundles=(), resources=self.choose(SHAPES),
                 gang=self.choose([True, False]), indices=(self.choose([-1, 0, 1]), 1))

    def create_more(self) -> None:
        lasting = sorted(group_id for group_id in self.world.state.groups if group_id.startswith("pg"))
        if lasting:
            self.ask("create", self.name("x"), self.name("x"), group=self.choose(lasting), bundles=(), resources=self.choose(SHAPES),
                     gang=self.choose([True, False]), indices=(1, self.choose([-1, 0, 1])))

    def ask(self, request: str, *args: Any, **options: Any) -> None:
        """A request of the oldest driver, which may be refused."""
        if self.drivers:
            with contextlib.suppress(HeadwayError):
                getattr(self.drivers[0], request)(*args, **options)

    def daemon(self) -> Any:
        return self.choose(self.daemons) if self.daemons else None

    def ready(self) -> None:
        if (daemon := self.daemon()) is not None:
            daemon.ready(*[spec.actor_id for spec in daemon.started()])

    def die(self) -> None:
        daemon = self.daemon()
        node = self.world.state.nodes.get(daemon.facts.node_id) if daemon else None
        if node is not None and node.actors and node.conn == daemon.conn:
            daemon.exited(self.choose(sorted(node.actors)), self.choose(["signal", "exit code", "start error"]))

    def obey(self) -> None:
        for daemon in self.daemons:
            daemon.obey_stops()
            daemon.sweep()

    def find(self) -> None:
        actors = sorted(self.world.state.actors)
        if actors and self.drivers:
            self.world.request(self.drivers[-1].conn, wire.FindActor(actor_id=self.choose(actors)))

    def become_actor_and_create(self) -> None:
        """Somebody who owns something and may die, lose its connection, or be stopped."""
        ready = [actor for actor in self.world.state.actors.values() if actor.state == "READY"]
        if ready:
            actor = self.choose(ready)
            driver = next((driver for driver in self.drivers if driver.job_id == actor.group.job.job_id), None)
            if driver is not None:
                conn = driver.become_actor(actor.id)
                message = driver.actors_message(self.name("x"), group=self.name("g"), bundles=({},))
                self.world.request(conn, message)
                if self.choose([True, False]):
                    self.world.lose(conn)

    def stop(self) -> None:
        actors = sorted(self.world.state.actors)
        if actors and self.drivers:
            chosen = tuple({self.choose(actors) for _ in range(2)})
            self.world.request(self.drivers[0].conn, wire.StopActorsOf(chosen, self.choose([0.0, 5.0]), "?"))

    def remove(self) -> None:
        groups = sorted(self.world.state.groups)
        if groups and self.drivers:
            self.calls.append(self.world.begin(self.drivers[0].conn, wire.RemoveGroup(self.choose(groups), self.choose([0.0, 5.0]))))

    def close_job(self) -> None:
        if self.drivers:
            self.calls.append(self.drivers.pop(0).close())

    def lose_driver(self) -> None:
        if self.drivers:
            self.world.lose(self.drivers.pop(0).conn)

    def drop_and_resume_driver(self) -> None:
        for driver in self.drivers[-1:]:
            self.world.lose(driver.conn)
            with contextlib.suppress(HeadwayError):
                driver.reconnect()

    def lose_node(self) -> None:
        if (daemon := self.daemon()) is not None:
            self.daemons.remove(daemon)
            self.world.lose(daemon.conn)

    def drop_and_resume_node(self) -> None:
        if (daemon := self.daemon()) is not None:
            self.world.lose(daemon.conn)
            daemon.reconnect()
            node = self.world.state.nodes.get(daemon.facts.node_id)
            running = tuple(sorted(node.actors)[:self.choose([0, 1, 9])]) if node else ()
            try:
                daemon.register(daemon.incarnation, running)
            except HeadwayError:
                daemon.register(0)

    def pass_time(self) -> None:
        seconds = self.choose([0.3, 1.0, 4.0, 20.0])
        if self.choose([True, True, False]):
            while seconds > 0:
                self.world.advance(min(1.0, seconds))
                seconds -= 1.0
                for daemon in self.daemons:
                    daemon.beat()
        else:
            self.world.now += seconds  # the head sleeps, or nobody is heard
            self.world.do(events.Tick())

    def finish(self) -> None:
        """L3: close all, obey all: nothing is left and all that was asked is answered."""
        self.world.do(events.ShutDown("end of test"))
        for _ in range(200):
            for daemon in self.daemons:
                daemon.beat()
            self.obey()
            self.world.advance(1.0)
        state = self.world.state
        assert not (state.jobs or state.groups or state.actors or state.names or state.pending or state.hungry)
        for node in state.nodes.values():
            assert node.ledger.free == node.ledger.total
            assert node.ledger.free_gpus == node.ledger.total_gpus
            assert not node.actors
        assert all(call in self.world.replies for call in self.calls)


STEPS = [name for name in vars(Chaos) if not name.startswith("_") and name not in ("name", "ask", "daemon", "finish")]


@pytest.mark.parametrize("seed", range(40))
def test_L1_L2_L3_A4_hold_in_random_runs(make_world: Any, seed: int) -> None:
    rng = random.Random(seed)
    chaos = Chaos(make_world(embedded=seed % 5 == 0), rng.choice)
    chaos.add_node()
    chaos.add_driver()
    for _ in range(150):
        getattr(chaos, rng.choice(STEPS))()
    chaos.finish()


def test_L1_L2_L3_A4_hold_in_runs_that_hypothesis_chooses(make_world: Any) -> None:
    """Hypothesis shrinks a failure to a short trace."""

    class Machine(RuleBasedStateMachine):
        chaos: Chaos

        @initialize(embedded=st.booleans())
        def begin(self, embedded: bool) -> None:
            self.chaos = Chaos(make_world(embedded=embedded), lambda options: options[0])
            self.chaos.add_node()
            self.chaos.add_driver()

        @rule(data=st.data(), step=st.sampled_from(STEPS))
        def step(self, data: Any, step: str) -> None:
            self.chaos.choose = lambda options: data.draw(st.sampled_from(options))
            getattr(self.chaos, step)()

        @precondition(lambda self: hasattr(self, "chaos"))
        @invariant()
        def holds(self) -> None:
            self.chaos.world.check()

        def teardown(self) -> None:
            if hasattr(self, "chaos"):
                self.chaos.finish()

    test = Machine.TestCase()
    test.settings = settings(max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    test.runTest()
