from __future__ import annotations

import collections
import datetime
import math
from pathlib import Path

import numpy
import pytest
import torch

from runtime.errors import ArgumentError, ArgumentTypeError
from train.errors import StorageError
from train.metrics import METRICS_FILE, MetricsLog, autofill, encode_json, parse_lines, plain_metrics, refuse_oversized
from train.storage import LocalStorage, open_run


def test_numbers_of_libraries_become_python_numbers():
    metrics = {"np": numpy.float32(0.5), "int": numpy.int64(3), "bool": numpy.bool_(True), "zero_d": numpy.array(2.0),
               "tensor": torch.tensor(1.5), "grad": torch.tensor(2.0, requires_grad=True), "list": [torch.tensor(1)],
               "nested": {"x": numpy.float64(1.0)}}
    plain = plain_metrics(metrics)
    assert plain == {"np": 0.5, "int": 3, "bool": True, "zero_d": 2.0, "tensor": 1.5, "grad": 2.0, "list": [1], "nested": {"x": 1.0}}
    assert [type(value) for value in plain.values()] == [float, int, bool, float, float, float, list, dict]


def test_nan_and_infinity_survive():
    plain = plain_metrics({"a": numpy.float32("nan"), "b": math.inf})
    assert math.isnan(plain["a"])
    assert plain["b"] == math.inf


def test_containers_are_copied_at_the_time_of_the_report():
    inner = [1]
    plain = plain_metrics({"a": inner, "b": {"c": inner}, "d": (1, {2}), "e": collections.OrderedDict(x=1)})
    inner.append(2)
    assert plain == {"a": [1], "b": {"c": [1]}, "d": (1, {2}), "e": {"x": 1}}


def test_other_objects_and_odd_keys_pass():
    day = datetime.date(2024, 1, 2)
    plain = plain_metrics({"day": day, "odd": {(1, 2): 3, numpy.int64(4): 5}})
    assert plain == {"day": day, "odd": {"(1, 2)": 3, 4: 5}}
    assert encode_json(plain) == '{"day":"2024-01-02","odd":{"(1, 2)":3,"4":5}}'


@pytest.mark.parametrize(("value", "text"), [
    (numpy.zeros(3), "{'x': ...}): a NumPy array of shape (3,)"), (torch.zeros(2, 1), "{'x': ...}): a tensor of shape (2, 1)"),
    (torch.nn.Linear(1, 1), "{'x': ...}): a module (Linear)"), ({"deep": [numpy.zeros(1)]}, "{'x/deep[0]': ...})")])
def test_arrays_tensors_and_modules_are_refused_by_key(value: object, text: str):
    with pytest.raises(ArgumentTypeError) as caught:
        plain_metrics({"x": value})
    assert text in str(caught.value)


@pytest.mark.parametrize("metrics", [None, 5, [("a", 1)], {1: 2}])
def test_metrics_are_a_dict_with_text_keys(metrics: object):
    with pytest.raises(ArgumentTypeError, match=r"report\(metrics="):
        plain_metrics(metrics)


def test_too_big_metrics_are_refused_with_their_biggest_keys():
    refuse_oversized({"a": "x" * 100}, 1000)
    with pytest.raises(ArgumentError, match=r"the metrics have 2\.0 MiB, allowed are 1 MiB \('big' about 2\.0 MiB, 'small'"):
        refuse_oversized({"small": 1, "big": "x" * 2**21}, 2**20)


def test_autofill_leaves_the_users_keys_alone():
    record = autofill({"loss": 1, "timestamp": "mine"}, iteration=3, wall=0.0, this_iter_s=0.5, total_s=2.0, restored_s=1.0, checkpoint="c")
    assert record["loss"] == 1
    assert record["timestamp"] == "mine"
    assert (record["training_iteration"], record["time_this_iter_s"], record["time_total_s"]) == (3, 0.5, 2.0)
    assert (record["time_since_restore"], record["checkpoint_dir_name"]) == (1.0, "c")


def test_lines_cut_by_a_crash_are_left_out():
    assert parse_lines(b'{"a":1}\n\n[1]\n{"a":NaN}\n{"a":') == [{"a": 1}, pytest.approx({"a": math.nan}, nan_ok=True)]


def test_the_log_continues_after_its_last_whole_line(storage: LocalStorage):
    log = MetricsLog(storage, is_new=True)
    log.append({"i": 1})
    log.append({"i": 2})
    log.close()
    with open(storage.at(METRICS_FILE), "ab") as file:
        file.write(b'{"i": 3')
    log = MetricsLog(storage, is_new=False)
    assert (log.count, log.last) == (2, {"i": 2})
    log.append({"i": 3})
    log.upload()
    log.close()
    assert storage.read(METRICS_FILE) == b'{"i":1}\n{"i":2}\n{"i":3}\n'


def test_the_log_of_a_remote_run_is_uploaded():
    storage = open_run("run", "memory://metrics-test").storage
    log = MetricsLog(storage, is_new=True)
    local = Path(log._path)
    log.append({"i": 1})
    assert storage.read(METRICS_FILE) is None
    log.upload()
    assert storage.read(METRICS_FILE) == b'{"i":1}\n'
    log.close()
    assert not local.exists()
    again = MetricsLog(storage, is_new=False)
    again.append({"i": 2})
    again.upload()
    again.close()
    assert parse_lines(storage.read(METRICS_FILE) or b"") == [{"i": 1}, {"i": 2}]
    storage.remove("")


def test_a_log_that_cannot_be_written_says_so(storage: LocalStorage):
    Path(storage.at(METRICS_FILE)).mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        MetricsLog(storage, is_new=True)
