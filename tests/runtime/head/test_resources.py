"""Exact arithmetic, GPUs by id."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ArgumentError
from runtime.head.resources import GPU, UNIT, Ledger, describe, to_floats, to_units

amounts = st.dictionaries(st.sampled_from(["CPU", "memory", "custom"]), st.integers(1, 20 * UNIT), max_size=3)
gpu_units = st.one_of(st.just(0), st.integers(1, UNIT), st.integers(1, 4).map(lambda n: n * UNIT))
requests = st.builds(lambda a, g: {**a, **({GPU: g} if g else {})}, amounts, gpu_units)
inventories = st.builds(lambda a, n: {**a, **({GPU: n * UNIT} if n else {})}, amounts, st.integers(0, 4))


def test_units_are_exact_and_zeros_left_out() -> None:
    assert to_units({"CPU": 0.1, "GPU": 0, "a": 0.0001}, "x") == {"CPU": 1000, "a": 1}
    assert sum(to_units({"CPU": 0.1}, "x")["CPU"] for _ in range(3)) == to_units({"CPU": 0.3}, "x")["CPU"]
    assert to_floats({"CPU": 3000, "GPU": 20_000}) == {"CPU": 0.3, "GPU": 2.0}
    assert describe({"CPU": 10_000, "GPU": 5_000}) == "{CPU: 1, GPU: 0.5}"


@pytest.mark.parametrize(("resources", "text"), [
    ({"CPU": -1.0}, "'CPU' is -1.0; it must be a number from 0"),
    ({"CPU": math.nan}, "'CPU' is nan"),
    ({"CPU": math.inf}, "'CPU' is inf"),
    ({"CPU": 1e12}, "from 0 to 1e"),
    ({"CPU": True}, "a resource has a name and a number"),
    ({"CPU": "1"}, "a resource has a name and a number"),
    ({"": 1.0}, "a resource has a name and a number"),
    ({"x": 0.00001}, "the smallest amount is 0.0001"),
    ({"GPU": 1.5}, "1.5 GPUs; above 1 only whole GPUs"),
])
def test_impossible_amounts_are_refused_with_their_value(resources: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match="bundle 3: ") as caught:
        to_units(resources, "bundle 3")
    assert text in str(caught.value)


def test_gpus_are_assigned_lowest_first() -> None:
    ledger = Ledger({GPU: 4 * UNIT})
    leases = [ledger.reserve({GPU: UNIT}) for _ in range(4)]
    assert [lease and lease.gpu_ids for lease in leases] == [(0,), (1,), (2,), (3,)]
    assert ledger.reserve({GPU: UNIT}) is None
    for index in (2, 1):
        lease = leases[index]
        assert lease is not None
        ledger.release(lease)
    pair = ledger.reserve({GPU: 2 * UNIT})
    assert pair is not None and pair.gpu_ids == (1, 2)


def test_fractions_share_one_gpu_and_leave_the_others_whole() -> None:
    ledger = Ledger({GPU: 2 * UNIT})
    halves = [ledger.reserve({GPU: UNIT // 2}) for _ in range(2)]
    assert [half and half.gpus for half in halves] == [{0: UNIT // 2}, {0: UNIT // 2}]
    whole = ledger.reserve({GPU: UNIT})
    assert whole is not None and whole.gpu_ids == (1,)


def test_a_fraction_fills_a_shared_gpu_before_it_breaks_a_whole_one() -> None:
    ledger = Ledger({GPU: 2 * UNIT})
    first, half = ledger.reserve({GPU: UNIT}), ledger.reserve({GPU: UNIT // 2})
    assert first is not None and half is not None and half.gpu_ids == (1,)
    ledger.release(first)
    second = ledger.reserve({GPU: UNIT // 2})
    assert second is not None and second.gpu_ids == (1,)


def test_a_shared_gpu_is_never_reserved_whole_and_room_is_not_added_up_over_gpus() -> None:
    ledger = Ledger({GPU: 2 * UNIT})
    assert ledger.reserve({GPU: 6000}) is not None
    assert ledger.reserve({GPU: 6000}) is not None
    assert ledger.free[GPU] == 8000
    assert ledger.reserve({GPU: 5000}) is None
    assert not ledger.fits({GPU: UNIT})


def test_a_lease_can_be_divided_further() -> None:
    ledger = Ledger({"CPU": 8 * UNIT, GPU: 4 * UNIT})
    assert ledger.reserve({GPU: UNIT}) is not None
    bundle = ledger.reserve({"CPU": 2 * UNIT, GPU: 2 * UNIT})
    assert bundle is not None
    inner = bundle.open()
    first, second = inner.reserve({"CPU": UNIT, GPU: UNIT}), inner.reserve({GPU: UNIT // 2})
    assert first is not None and second is not None
    assert (first.gpu_ids, second.gpu_ids) == ((1,), (2,))
    assert inner.reserve({GPU: UNIT}) is None
    half = ledger.reserve({GPU: UNIT // 2})
    assert half is not None and half.open().reserve({GPU: UNIT // 2}) is not None


def test_a_second_release_is_a_bug() -> None:
    ledger = Ledger({"CPU": UNIT})
    lease = ledger.reserve({"CPU": UNIT})
    assert lease is not None
    ledger.release(lease)
    with pytest.raises(AssertionError, match="released twice"):
        ledger.release(lease)


@given(inventories, st.lists(st.tuples(requests, st.booleans()), max_size=40))
def test_L1_reserved_never_exceeds_inventory(total: dict[str, int], steps: list[tuple[dict[str, int], bool]]) -> None:
    ledger = Ledger(total)
    held = []
    for asked, give_back in steps:
        before = (dict(ledger.free), dict(ledger.free_gpus))
        fits, count = ledger.fits(asked), ledger.capacity(asked, 1)
        lease = ledger.reserve(asked)
        assert (lease is not None) == fits == (count == 1)
        if lease is None:
            assert (ledger.free, ledger.free_gpus) == before
        else:
            held.append(lease)
            assert sum(lease.gpus.values()) == asked.get(GPU, 0)
        if give_back and held:
            ledger.release(held.pop(0))
        for name, units in total.items():
            assert ledger.free[name] == units - sum(lease.amounts.get(name, 0) for lease in held) >= 0
        for gpu in ledger.total_gpus:
            users = [lease.gpus[gpu] for lease in held if gpu in lease.gpus]
            assert sum(users) <= UNIT
            assert UNIT not in users or users == [UNIT]
        if GPU in total:
            assert ledger.free[GPU] == sum(ledger.free_gpus.values())
    for lease in held:
        ledger.release(lease)
    assert (ledger.free, ledger.free_gpus) == (ledger.total, ledger.total_gpus)


@given(inventories, requests.filter(bool), st.integers(0, 30))
def test_capacity_is_how_often_reserve_succeeds(total: dict[str, int], asked: dict[str, int], at_most: int) -> None:
    ledger = Ledger(total)
    expected = ledger.capacity(asked, at_most)
    count = 0
    while count < at_most and ledger.reserve(asked) is not None:
        count += 1
    assert count == expected
