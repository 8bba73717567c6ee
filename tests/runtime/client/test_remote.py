"""The decorator and its options."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

import pytest

from runtime.client.object_ref import get
from runtime.client.placement_group import PlacementGroup
from runtime.client.remote import Options, RemoteClass, remote
from runtime.client.serialization import loads
from runtime.errors import ActorStartError, ArgumentError, ArgumentTypeError, HeadwayError, NameTakenError, SerializationError
from runtime.ids import GroupId
from runtime.wire.messages import CreateActors


@remote
class Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.n = start

    def add(self, k: int = 1) -> int:
        self.n += k
        return self.n


GROUP = PlacementGroup(GroupId("g"), [{"CPU": 1.0}] * 2, "")


def options(**changes: Any) -> Options:
    return Options({}).changed(changes)


def test_decorates_with_and_without_options() -> None:
    assert isinstance(Counter, RemoteClass)
    assert Counter.__name__ == "Counter"
    assert Counter.__doc__ == "Counts."
    sized = remote(num_cpus=2, num_gpus=0.5, resources={"disk": 1})(type("Sized", (), {}))
    assert isinstance(sized, RemoteClass)
    assert sized._options.resources == {"CPU": 2.0, "GPU": 0.5, "disk": 1.0}


def test_options_change_what_they_name_and_keep_the_rest() -> None:
    first = options(num_cpus=2, resources={"disk": 1})
    assert first.changed({"num_cpus": 0}).resources == {"disk": 1.0}
    assert first.changed({"resources": {"tape": 1}}).resources == {"CPU": 2.0, "tape": 1.0}
    assert first.changed({"name": "x", "namespace": "n"}).name == "x"
    assert options(placement_group=GROUP, placement_group_bundle_index=1).bundle == 1
    assert options(placement_group=GROUP).bundle == -1


@pytest.mark.parametrize(("changes", "error", "text"), [
    ({"num_cpus": -1}, ArgumentError, "at least 0"),
    ({"num_cpus": "1"}, ArgumentTypeError, "not str"),
    ({"num_gpus": 1.5}, ArgumentError, "whole number"),
    ({"resources": {"CPU": 1}}, ArgumentError, "num_cpus="),
    ({"name": ""}, ArgumentError, "must not be empty"),
    ({"name": 3}, ArgumentTypeError, "must be a str"),
    ({"max_concurrency": 4}, ArgumentError, "max_concurrency=….*not supported"),
    ({"max_restarts": -1}, ArgumentError, "max_restarts"),
    ({"lifetime": "detached"}, ArgumentError, "lifetime"),
    ({"runtime_env": {"env_vars": {}}}, ArgumentError, "runtime_env"),
    ({"num_cpu": 1}, ArgumentTypeError, "did you mean 'num_cpus'"),
    ({"placement_group": 3}, ArgumentTypeError, "placement_group"),
    ({"placement_group_bundle_index": 0}, ArgumentError, "needs placement_group"),
    ({"placement_group": GROUP, "placement_group_bundle_index": 2}, ArgumentError, "bundles 0 to 1"),
    ({"placement_group": GROUP, "placement_group_bundle_index": "0"}, ArgumentTypeError, "must be an int"),
])
def test_bad_options(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        options(**changes)


def test_options_that_ask_for_nothing_are_accepted() -> None:
    assert options(max_restarts=0, max_concurrency=1, lifetime=None, runtime_env=None) == options()


def test_misuse_is_told() -> None:
    with pytest.raises(HeadwayError, match=r"@remote on the function 'max': remote functions are not supported"):
        remote(max)  # type: ignore[call-overload]
    with pytest.raises(ArgumentTypeError, match="twice"):
        remote(Counter)  # type: ignore[call-overload]
    with pytest.raises(ArgumentTypeError, match="takes a class, not int"):
        remote(3)  # type: ignore[call-overload]
    with pytest.raises(ArgumentTypeError, match="without parentheses"):
        remote()
    with pytest.raises(ArgumentTypeError, match="keyword arguments only"):
        remote(int, num_cpus=1)  # type: ignore[call-overload]
    with pytest.raises(ArgumentTypeError, match=r"write Counter.remote\(…\)"):
        Counter()
    with pytest.raises(ArgumentTypeError, match="inherit from an undecorated class"):
        types.resolve_bases((Counter,))


def test_a_creation_is_one_message(cluster: Any, session: Any) -> None:
    Counter.options(num_cpus=1, name="bob", namespace="n").remote(3)
    message = cluster.wait_request(CreateActors)
    assert message.job_id == session.job_id
    assert message.bundles == ({"CPU": 1.0},)
    assert not message.gang
    assert message.namespace == "n"
    spec = message.actors[0]
    assert (spec.name, spec.label, spec.class_name, spec.bundle, spec.resources) == ("bob", "bob", "Counter", 0, {"CPU": 1.0})


def test_calls_of_a_new_actor(cluster: Any, session: Any) -> None:
    counter = Counter.remote(5)
    ref = counter.add.remote(2)
    cluster.actor().ready()
    assert get(ref, timeout=10) == ("add", (2,))
    with pytest.raises(AttributeError, match="no method 'nope'"):
        counter.nope  # noqa: B018


def test_a_name_that_is_taken_is_known_at_once(cluster: Any, session: Any) -> None:
    cluster.answers[CreateActors] = lambda message: NameTakenError("bob lives")
    with pytest.raises(NameTakenError, match="bob lives"):
        Counter.options(name="bob").remote()


def test_a_refused_creation_fails_its_calls(cluster: Any, session: Any) -> None:
    cluster.answers[CreateActors] = lambda message: ActorStartError("no room in bundle 0")
    with pytest.raises(ActorStartError, match="no room"):
        get(Counter.remote().add.remote(), timeout=10)


def test_an_actor_in_a_placement_group(cluster: Any, session: Any) -> None:
    Counter.options(placement_group=GROUP, placement_group_bundle_index=1).remote()
    message = cluster.wait_request(CreateActors)
    assert message.group_id == "g"
    assert message.bundles == ()
    assert message.actors[0].bundle == 1


def test_arguments_that_cannot_be_sent_are_named_and_nothing_is_asked_for(cluster: Any, session: Any) -> None:
    with pytest.raises(SerializationError, match="argument 'start' of Counter is a generator"):
        Counter.remote(start=(i for i in ()))  # type: ignore[call-arg]
    assert not cluster.of(CreateActors)


@pytest.fixture
def helper_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("helper_module")
    monkeypatch.setitem(sys.modules, "helper_module", module)
    exec("import threading\nfrom runtime import remote\nlock = threading.Lock()\n"
         "@remote\nclass Locked:\n    def run(self): return lock.locked()\n", vars(module))
    return module


def test_an_importable_class_goes_by_reference_through_its_decorator(helper_module: Any, monkeypatch: pytest.MonkeyPatch, cluster: Any,
                                                                     session: Any) -> None:
    sent: list[Any] = []
    monkeypatch.setattr("runtime.client.created_actors.CreatedActors.start", lambda self: sent.append(self._buffers))
    helper_module.Locked.remote()
    session.close()
    cls, args, kwargs = loads(sent[0])
    assert cls is helper_module.Locked._cls
    assert (args, kwargs) == ((), {})
    assert pickle.loads(pickle.dumps(helper_module.Locked)) is helper_module.Locked


def test_a_local_remote_class_can_be_captured() -> None:
    import cloudpickle

    @remote(num_cpus=1)
    class Inner:
        def f(self) -> int:
            return 3

    copy = pickle.loads(cloudpickle.dumps(Inner))
    assert copy._options == Inner._options
    assert copy._cls().f() == 3
