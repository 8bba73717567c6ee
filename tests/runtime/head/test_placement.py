"""Where bundles go, and what is said of those that can't."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.head.placement import STRATEGIES, Room, explain_busy, explain_infeasible, feasible, reserve_all, summarize
from runtime.head.resources import GPU, UNIT, Amounts, Ledger


def units(**amounts: float) -> Amounts:
    return {name: round(amount * UNIT) for name, amount in amounts.items()}


def nodes_of(bundles: list[Amounts], strategy: str, ledgers: list[Ledger]) -> list[int] | None:
    placed = reserve_all(bundles, strategy, ledgers)
    return None if placed is None else [place.node for place in placed]


def test_pack_takes_one_node_if_one_is_enough_and_the_fullest_such() -> None:
    ledgers = [Ledger(units(CPU=8)), Ledger(units(CPU=4)), Ledger(units(CPU=2))]
    assert nodes_of([units(CPU=1)] * 3, "PACK", ledgers) == [1, 1, 1]


def test_pack_takes_few_nodes_and_keeps_neighbours_together() -> None:
    ledgers = [Ledger(units(CPU=2)), Ledger(units(CPU=4)), Ledger(units(CPU=3))]
    assert nodes_of([units(CPU=1)] * 6, "PACK", ledgers) == [1, 1, 1, 1, 0, 0]


def test_work_without_gpus_stays_off_nodes_with_idle_ones() -> None:
    for strategy in STRATEGIES:
        ledgers = [Ledger(units(CPU=4, GPU=4)), Ledger(units(CPU=8))]
        assert nodes_of([units(CPU=1)], strategy, ledgers) == [1]
        assert nodes_of([units(CPU=1, GPU=1)], strategy, ledgers) == [0]


def test_spread_is_even() -> None:
    ledgers = [Ledger(units(CPU=8)) for _ in range(3)]
    placed = nodes_of([units(CPU=1)] * 7, "SPREAD", ledgers)
    assert placed is not None
    assert sorted(Counter(placed).values()) == [2, 2, 3]


def test_spread_doubles_up_when_it_must_and_strict_spread_does_not() -> None:
    ledgers = [Ledger(units(CPU=4)), Ledger(units(CPU=1))]
    assert nodes_of([units(CPU=1)] * 3, "STRICT_SPREAD", ledgers) is None
    assert Counter(nodes_of([units(CPU=1)] * 4, "SPREAD", ledgers) or []) == {0: 3, 1: 1}


def test_strict_pack_wants_one_node() -> None:
    ledgers = [Ledger(units(CPU=2)), Ledger(units(CPU=3))]
    assert nodes_of([units(CPU=1)] * 4, "STRICT_PACK", ledgers) is None
    assert nodes_of([units(CPU=1)] * 3, "STRICT_PACK", ledgers) == [1, 1, 1]


def test_mixed_bundles_are_placed_even_when_the_first_way_through_fails() -> None:
    for strategy in ("SPREAD", "STRICT_SPREAD", "PACK"):
        ledgers = [Ledger(units(CPU=8, custom=1)), Ledger(units(CPU=8))]
        assert nodes_of([units(CPU=8), units(CPU=1, custom=1)], strategy, ledgers) == [1, 0]


def test_equal_bundles_get_gpus_in_order() -> None:
    placed = reserve_all([units(GPU=1)] * 4, "PACK", [Ledger(units(GPU=2)), Ledger(units(GPU=2))])
    assert placed is not None
    assert [(place.node, place.lease.gpu_ids) for place in placed] == [(0, (0,)), (0, (1,)), (1, (0,)), (1, (1,))]


def test_no_nodes_place_nothing_and_empty_bundles_go_anywhere() -> None:
    assert reserve_all([{}], "PACK", []) is None
    assert nodes_of([{}] * 3, "PACK", [Ledger({})]) == [0, 0, 0]


sizes = st.builds(lambda cpu, gpu: {k: v for k, v in (("CPU", cpu * UNIT), (GPU, gpu)) if v}, st.integers(0, 4),
                  st.sampled_from([0, 0, UNIT // 4, UNIT // 2, UNIT, 2 * UNIT]))
nodes = st.builds(lambda cpu, gpu: Ledger({"CPU": cpu * UNIT, GPU: gpu * UNIT}), st.integers(0, 6), st.integers(0, 3))
clusters = st.lists(nodes, max_size=4)


@settings(max_examples=300)
@given(st.lists(sizes, min_size=1, max_size=6), st.sampled_from(STRATEGIES), clusters, st.lists(sizes, max_size=3))
def test_L2_all_bundles_or_none(bundles: list[Amounts], strategy: str, ledgers: list[Ledger], busy: list[Amounts]) -> None:
    for asked, ledger in zip(busy, ledgers):
        ledger.reserve(asked)
    before = [(dict(ledger.free), dict(ledger.free_gpus)) for ledger in ledgers]
    placed = reserve_all(bundles, strategy, ledgers)
    if placed is None:
        assert [(ledger.free, ledger.free_gpus) for ledger in ledgers] == before
        return
    assert [place.lease.amounts for place in placed] == bundles
    used = Counter(place.node for place in placed)
    assert strategy != "STRICT_PACK" or len(used) == 1
    assert strategy != "STRICT_SPREAD" or max(used.values()) == 1
    for place in placed:
        ledgers[place.node].release(place.lease)
    assert [(ledger.free, ledger.free_gpus) for ledger in ledgers] == before
    assert feasible(bundles, strategy, ledgers)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 4).map(lambda n: {"CPU": n * UNIT} if n else {}), min_size=1, max_size=5), st.sampled_from(STRATEGIES),
       st.lists(st.integers(0, 6), max_size=3))
def test_what_exists_is_found(bundles: list[Amounts], strategy: str, cpus: list[int]) -> None:
    """Against every possible assignment."""
    def holds(choice: tuple[int, ...]) -> bool:
        if strategy == "STRICT_PACK" and len(set(choice)) > 1 or strategy == "STRICT_SPREAD" and len(set(choice)) < len(choice):
            return False
        ledgers = [Ledger({"CPU": cpu * UNIT}) for cpu in cpus]
        return all(ledgers[node].reserve(bundle) is not None for node, bundle in zip(choice, bundles))

    exists = any(holds(choice) for choice in itertools.product(range(len(cpus)), repeat=len(bundles)))
    assert feasible(bundles, strategy, [Ledger({"CPU": cpu * UNIT}) for cpu in cpus]) == exists


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_thousand_bundles_on_a_hundred_nodes_are_quick_also_when_they_do_not_fit(strategy: str) -> None:
    ledgers = [Ledger(units(CPU=10)) for _ in range(100)]
    started = time.process_time()
    reserve_all([units(CPU=1)] * 999 + [units(CPU=2)], strategy, ledgers)
    assert time.process_time() - started < 20  # generous: it is about 1 s; a search without bound would never end


def test_infeasible_is_explained_in_words_and_numbers() -> None:
    rooms = [Room("a", Ledger(units(CPU=4))), Room("bb", Ledger(units(CPU=2)))]
    text = explain_infeasible([units(CPU=3)] * 2, "PACK", rooms, "Ask for less.")
    assert text.splitlines() == [
        "2 x {CPU: 3} (PACK) cannot be placed, not even when every node is idle.",
        "  node          has       free      asked     missing",
        "  a             {CPU: 4}  {CPU: 4}  {CPU: 3}  {}",
        "  bb            {CPU: 2}  {CPU: 2}  {CPU: 3}  {CPU: 1}",
        "  all together  {CPU: 6}  {CPU: 6}  {CPU: 6}  {}",
        "Ask for less.",
    ]


def test_too_many_for_a_single_node_shows_the_sum() -> None:
    text = explain_infeasible([units(CPU=1)] * 4, "PACK", [Room("a", Ledger(units(CPU=2)))], "")
    assert text.splitlines()[-2:] == [
        "  a             {CPU: 2}  {CPU: 2}  {CPU: 1}  {}",
        "  all together  {CPU: 2}  {CPU: 2}  {CPU: 4}  {CPU: 2}"]


@pytest.mark.parametrize(("bundles", "strategy", "text"), [
    ([units(GPU=1)] * 4, "PACK", "4 x {GPU: 1} (PACK) cannot be placed, not even when every node is idle: no node has a GPU"),
    ([units(tpu=1)], "PACK", "no node has tpu"),
    ([units(CPU=1)] * 5, "STRICT_PACK", "STRICT_PACK wants one node that holds them all"),
    ([units(CPU=1)] * 3, "STRICT_SPREAD", "STRICT_SPREAD wants 3 nodes, there are 2"),
])
def test_infeasible_names_the_reason(bundles: list[Amounts], strategy: str, text: str) -> None:
    rooms = [Room("a", Ledger(units(CPU=4))), Room("b", Ledger(units(CPU=2)))]
    assert text in explain_infeasible(bundles, strategy, rooms, "")


def test_explanations_of_big_clusters_stay_short() -> None:
    rooms = [Room(f"n{i}", Ledger(units(CPU=4))) for i in range(1000)]
    assert "(980 more nodes)" in explain_infeasible([units(CPU=5)], "PACK", rooms, "")
    assert "980 more nodes" in explain_busy([units(CPU=5)], "PACK", rooms)


def test_no_nodes_is_explained() -> None:
    assert explain_infeasible([units(CPU=1)], "PACK", [], "Start one.") == (
        "1 x {CPU: 1} (PACK) cannot be placed: the cluster has no nodes. Start one.")


def test_busy_names_what_is_free_and_who_holds_the_rest() -> None:
    ledger = Ledger(units(CPU=4, GPU=1))
    ledger.reserve(units(CPU=3.5))
    rooms = [Room("a", ledger, "held by rank 0"), Room("b", Ledger(units(custom=1)))]
    assert explain_busy([units(CPU=1)] * 2, "SPREAD", rooms) == (
        "2 x {CPU: 1} (SPREAD) waits for resources in use: a: CPU 0.5 of 4 free (held by rank 0); b: nothing of it.")
    assert summarize([units(CPU=1), units(GPU=1), units(CPU=1)]) == "2 x {CPU: 1} + 1 x {GPU: 1}"
