from __future__ import annotations

import dataclasses

import pytest

from runtime.errors import ArgumentError, ArgumentTypeError
from train.arguments import check_int, check_name, check_number, config_class, reject_unknown, warn_once


@config_class(old="it is gone.")
class Sample:
    size: int = 1
    name: str | None = None


def test_a_config_class_is_a_dataclass_with_rays_tolerance():
    assert dataclasses.is_dataclass(Sample)
    assert repr(Sample(size=2)) == "Sample(size=2)"
    assert dataclasses.replace(Sample(size=2), name="x") == Sample(2, "x")
    with pytest.warns(UserWarning, match=r"Sample\(old=\.\.\.\) is accepted for Ray's sake and has no effect here: it is gone\."):
        assert Sample(old=3, size=1) == Sample()


def test_a_ray_only_argument_warns_once_and_not_for_none(recwarn: pytest.WarningsRecorder):
    with pytest.warns(UserWarning, match="no effect"):
        Sample(old=1)
    Sample(old=1)
    Sample(old=None)
    assert not recwarn.list


def test_unknown_arguments_name_the_closest():
    with pytest.raises(ArgumentTypeError, match=r"Sample\(\) got an unexpected argument 'siz'; did you mean 'size'\?"):
        Sample(siz=1)
    with pytest.raises(TypeError, match="it takes name, size"):
        Sample(zzz=1)
    reject_unknown("f", [], ["a"])


@pytest.mark.parametrize(("value", "text"), [
    (1.5, "must be an int, got float, at least one."), ("2", "did you mean 2?"), (2.0, "did you mean 2?"), (True, "a bool is not a count"),
    (None, "got NoneType")])
def test_check_int_says_type_and_guess(value: object, text: str):
    with pytest.raises(ArgumentTypeError) as caught:
        check_int("F", "n", value, 1, meaning="at least one")
    assert text in str(caught.value)


def test_check_int_checks_the_range():
    check_int("F", "n", 1, 1, meaning="x")
    with pytest.raises(ArgumentError, match=r"F\(n=0\): must be >= 1 \(x\)"):
        check_int("F", "n", 0, 1, meaning="x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0])
def test_check_number_refuses_what_is_no_duration(value: float):
    with pytest.raises(ArgumentError, match="must be a finite number > 0"):
        check_number("F", "s", value, above=True)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "-x", "a b", "x" * 129, "ü", "a\n"])
def test_names_that_are_unsafe_in_a_path_are_refused(name: str):
    with pytest.raises(ArgumentError, match="allowed are 1 to 128 characters"):
        check_name("F", "name", name)


def test_warn_once_warns_once(recwarn: pytest.WarningsRecorder):
    with pytest.warns(UserWarning, match="hello"):
        warn_once("hello")
    warn_once("hello")
    assert not recwarn.list
