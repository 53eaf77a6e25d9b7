"""Ranges of settings, declared at the field."""

from __future__ import annotations

import dataclasses

import pytest

from data_pipelines.limits import Limit, check_value, limited, limits_of


@dataclasses.dataclass(frozen=True)
class Base:
    frames: int = limited(16, least=1)
    share: float = limited(0.5, least=0, below=1)
    kind: str = limited("a", known=("a", "bee"), note="there is no c")
    seed: int = limited(0)
    count: int = 3


@dataclasses.dataclass(frozen=True)
class Other(Base):
    frames: int = 8  # keeps its range


def test_a_subclass_with_another_default_keeps_the_range():
    assert limits_of(Other) == limits_of(Base)
    assert limits_of(Other)["frames"] == Limit(least=1) and "count" not in limits_of(Other)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frames", 0, "x.frames = 0: expected at least 1"),
        ("frames", -5, "x.frames = -5: expected at least 1"),
        ("share", 1.0, "x.share = 1: expected at least 0 and less than 1"),
        ("share", float("nan"), "x.share = nan: expected a finite number"),
        ("share", (0.1, float("-inf")), "x.share = -inf: expected a finite number"),
        ("kind", "be", r"x.kind = 'be': did you mean 'bee'\? known: a, bee \(there is no c\)"),
        ("count", -1, "x.count = -1: expected at least 0"),
        ("seed", 10**400, "x.seed: expected a number of at most 64 bits"),
        ("anything", {"deep": [1.0, float("inf")]}, "x.anything.deep = inf"),
    ],
)
def test_values_outside_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        check_value(value, limits_of(Base).get(name), f"x.{name}")


def test_values_inside_pass():
    for name, value in (
        ("frames", 1),
        ("share", 0.0),
        ("share", 0),
        ("kind", "bee"),
        ("seed", -7),
        ("count", 0),
        ("flag", True),
        ("nothing", None),
        ("text", "nan"),
        ("rate", -1e30),
    ):
        check_value(value, limits_of(Base).get(name), name)
