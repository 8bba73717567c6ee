"""The statistics of measurements, what is written of them, and benchmarks that really run, with tiny counts. No time is asserted."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest

from benchmarks.latency import BENCHMARKS, main
from benchmarks.machine import describe_machine
from benchmarks.measure import Bound, Result, Series, Target, interleave, percentile, render_table, write_json
from benchmarks.program import FailedProgramError, Program, proportional_bytes, seconds_to_exit
from benchmarks.restarts import Ranks

STEADY = Series((1.0, 1.1, 1.0, 0.9, 1.0))
TWICE = Series((2.0, 2.2, 2.0, 1.8, 2.0))
NOISY = Series((1.0, 1.0, 1.0, 1.0, 1.4))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.95, 4), (1.0, 4)])
def test_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    assert percentile([4, 2, 1, 3], share) == expected


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_contenders_take_turns_and_the_first_round_is_discarded() -> None:
    turns: list[str] = []

    def contender(name: str) -> float:
        turns.append(name)
        return float(len(turns))

    found = interleave({"a": lambda: contender("a"), "b": lambda: {"value": contender("b"), "p95": 7.0}}, rounds=2, say=lambda text: None)
    assert turns == ["a", "b"] * 3
    assert found["a"].values == (3.0, 5.0)
    assert found["a"].discarded == (1.0,)
    assert found["b"].values == (4.0, 6.0)
    assert found["b"].details == {"p95": (7.0, 7.0)}


def test_spread_is_the_range_over_the_median() -> None:
    assert STEADY.spread == pytest.approx(0.2)
    assert Series((0.0, 0.0)).spread == 0.0
    assert Series((0.0, 0.0, 1.0)).spread == math.inf


def test_few_or_noisy_runs_are_no_result() -> None:
    assert STEADY.refusal == ""
    assert Series((1.0,) * 4).refusal == "no result: 4 of 5 runs"
    assert NOISY.refusal == "no result: 1 with a spread of 40%"


@pytest.mark.parametrize(("target", "met"), [
    (Target((Bound(1.0),)), True),
    (Target((Bound(0.9),)), False),
    (Target((Bound(1.0, at_least=True),)), True),
    (Target((Bound(1.0), Bound(0.4, "peer"))), False),
    (Target((Bound(1.0), Bound(0.5, "peer"))), True),
    (Target((Bound(0.9), Bound(0.5, "peer")), any_of=True), True),
    (Target((Bound(1.0), Bound(0.5, "missing"))), None),
    (Target((Bound(0.9), Bound(0.5, "missing"))), False),
    (Target((Bound(1.0), Bound(0.5, "missing")), any_of=True), True),
    (Target((Bound(0.9), Bound(0.5, "missing")), any_of=True), None),
    (Target((Bound(0.5, "noisy"),)), None),
    (Target(()), None),
])
def test_a_target_is_met_missed_or_undecided(target: Target, met: bool | None) -> None:
    assert target.met(STEADY, {"peer": TWICE, "missing": "missing", "noisy": NOISY}) is met
    assert target.met(NOISY, {}) is None


def test_ratio_compares_runs_of_the_same_round() -> None:
    drifting = Series((1.0, 2.0, 4.0, 8.0, 16.0))
    assert Result("B0", "drift", "s", STEADY, {"peer": TWICE}).ratio == pytest.approx(0.5)
    assert Result("B0", "drift", "s", drifting, {"peer": TWICE}).ratio is None, "no result, no ratio"


def test_json_has_figures_or_the_reason_for_none(tmp_path: Path) -> None:
    results = [Result("B1", "steady", "s", STEADY, {"torchrun": TWICE, "ray": "missing"}, Target((Bound(1.0, "torchrun"),))),
               Result("B2", "noisy", "s", NOISY, {}, Target((Bound(1.0),)))]
    write_json(tmp_path / "new" / "out.json", results, {"cores": 2})
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert written["machine"] == {"cores": 2}
    steady, noisy = written["results"]
    assert (steady["ours"], steady["peers"], steady["ratio"], steady["met"]) == (1.0, {"torchrun": 2.0, "ray": "missing"}, 0.5, True)
    assert [run["who"] for run in steady["runs"]] == ["ours", "torchrun"]
    assert noisy["ours"].startswith("no result")
    assert (noisy["ratio"], noisy["met"]) == (None, None)
    assert noisy["runs"][0]["values"] == list(NOISY.values)


def test_table_prints_the_spread_in_place_of_a_figure() -> None:
    table = render_table([Result("B2", "noisy", "s", NOISY, {"ray": "missing"}, Target((Bound(1.0),)), note="a note")], {"cores": 2})
    assert table.startswith("- cores: 2\n")
    assert "no result: 1 with a spread of 40% | ray missing | —" in table
    assert "| undecided |" in table
    assert "a note" in table


def test_ray_that_cannot_be_imported_is_missing() -> None:
    assert describe_machine(None)["ray"] == "missing"
    assert describe_machine("/no/such/python")["ray"] == "missing"


def test_unknown_benchmark_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--json", str(tmp_path / "out.json"), "--only", "B5,B99"])
    assert "B99 unknown; there are B1, B2" in capsys.readouterr().err


@pytest.mark.process
def test_failed_program_shows_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(FailedProgramError, match="on purpose"), Program([sys.executable, "-c", "raise SystemExit('on purpose')"],
                                                                        tmp_path) as program:
        program.ask("start")
    with pytest.raises(FailedProgramError, match=r"exit code 1.*\s.*on purpose"):
        seconds_to_exit([sys.executable, "-c", "raise SystemExit('on purpose')"], tmp_path)
    with pytest.raises(FailedProgramError, match=r"ran for 0.1 s"):
        seconds_to_exit([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, within_s=0.1)


def test_memory_of_a_process_is_that_of_its_pages() -> None:
    assert 2**20 < proportional_bytes(os.getpid()) < 2**34


def test_ranks_are_inside_when_the_last_one_says_so(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path)
    try:
        for text in ("0 11 5.0\n1 1", "2 7.5\n"):
            with open(ranks.fifo, "w") as news:
                news.write(text)
        assert ranks.wait_all(within_s=10.0) == 7.5
        assert ranks.wait_all(within_s=0.0) is None
    finally:
        ranks.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.process
@pytest.mark.parametrize("name", ["B6", "B13"])
def test_benchmark_writes_its_results(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, table = tmp_path / "out.json", tmp_path / "out.md"
    assert main(["--json", str(out), "--markdown", str(table), "--only", name, "--rounds", "1", "--scale", "0.001"]) == 0
    written = json.loads(out.read_text())
    assert set(written) == {"machine", "results"}
    assert {"python", "torch", "cores", "governor", "load before", "load after", "ray"} <= set(written["machine"])
    assert written["results"]
    for result in written["results"]:
        assert set(result) == {"id", "name", "unit", "ours", "peers", "ratio", "target", "met", "note", "runs"}
        assert result["id"] == name
        assert name in BENCHMARKS
        assert result["ours"] == "no result: 1 of 5 runs"
        assert result["peers"]["ray"] == "missing"
        assert all(len(run["values"]) == len(run["discarded"]) == 1 and run["values"][0] > 0 for run in result["runs"])
    assert table.read_text() in capsys.readouterr().out
