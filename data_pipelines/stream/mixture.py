"""Weighted mixtures of datasets: what stands at which position of the stream, by arithmetic alone.

On the command line a mixture is one line of text:

    k400=/data/k400:0.7, ssv2=gs://bucket/ssv2:0.3; flip=off; split=train

NAME=DIRECTORY, then optionally `:WEIGHT`, then options after semicolons; sets are separated by
commas. Options are the fields of `SetConfig`. A recipe may give these by name instead, where texts
can have any characters. Weights are the sets' shares of all examples; without
any weight the shares are the sets' numbers of records, so that each is seen equally often.

Sets of one media type are mixed record by record, media types step by step: a global batch holds
clips of one shape (as in the second stage of InternVideo2). Each set is shuffled and repeated on
its own. Nothing is drawn at random here: shares are exact over a period and spread evenly within
it, so the position of any step follows from its number, without replay.
"""

from __future__ import annotations

import bisect
import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from data_pipelines.config import ClipConfig, DataConfig, SetConfig
from data_pipelines.limits import check_value, limits_of, suggest
from data_pipelines.records import leave_out
from data_pipelines.records.dataset import Dataset, open_dataset
from data_pipelines.records.media import MEDIA

MERGES = ("off", "offset", "name")
# Weights are exact fractions; beyond these the digits of 1e99999999 alone would fill the memory.
_LONGEST_WEIGHT = 40  # characters
_MOST_DIGITS = 18  # before and behind the point, the exponent counted
_LONGEST_PERIOD = 2**62  # positions that Python can number
_NAME = r"[\w.-]+"


@dataclasses.dataclass(frozen=True)
class Component:
    """One set of a mixture; empty options are those of `config.data`."""

    name: str
    directory: str
    weight: Fraction | None = None  # share of the examples, before all are scaled to 1
    split: str = ""
    media: str = "video"
    crop: str = ""
    flip: str = ""
    features: str = ""
    prompt: str = ""

    def __post_init__(self) -> None:
        if self.media not in MEDIA:
            raise ValueError(
                f"config.data.mixture: unknown media type {self.media!r} of {self.name}; known: "
                f"{', '.join(MEDIA)}"
            )


def parse(text: str) -> tuple[Component, ...]:
    """The sets of a mixture.

    Raises:
      ValueError: not of the form above, a name twice, an unknown option, a weight that is not
        positive, or weights for some sets only.
    """
    components = tuple(_component(part.strip()) for part in text.split(","))
    names = [component.name for component in components]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"config.data.mixture: the name {name!r} is given twice")
    return _weighted(components)


def of_sets(sets: Mapping[str, SetConfig | Mapping[str, Any]]) -> tuple[Component, ...]:
    """The sets of a mixture that is given by name; ValueError as `parse`."""
    return _weighted(tuple(_given(name, values) for name, values in sets.items()))


def _given(name: str, values: SetConfig | Mapping[str, Any]) -> Component:
    where = f"config.data.mixture.{name}"
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"{where}: expected a name of letters, digits, '_', '.' and '-'")
    if not isinstance(values, SetConfig):
        known = [field.name for field in dataclasses.fields(SetConfig)]
        if wrong := set(values) - set(known):
            raise ValueError(f"unknown field {where}.{min(wrong)}: {suggest(min(wrong), known)}")
        if "directory" not in values:
            raise ValueError(f"missing field {where}.directory: it has no default")
        values = SetConfig(**values)
    fields = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    limits = limits_of(SetConfig)
    for key, value in fields.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number if key == "weight" else isinstance(value, str)):
            kind = "a number" if key == "weight" else "a text"
            raise ValueError(f"{where}.{key}: expected {kind}, found {value!r}")
        check_value(value, limits.get(key), f"{where}.{key}")
    given = fields.pop("weight")
    weight = _weight(name, repr(given)) if given else None  # the decimal that was written
    return Component(name, fields.pop("directory"), weight, **fields)


def _weighted(components: tuple[Component, ...]) -> tuple[Component, ...]:
    without = [component.name for component in components if component.weight is None]
    if without and len(without) < len(components):
        raise ValueError(
            f"config.data.mixture: no weight for {', '.join(without)}, but for others; give all "
            "weights, or none to go by the numbers of records"
        )
    return components


def _component(part: str) -> Component:
    head, *options = (item.strip() for item in part.split(";"))
    name, equals, position = head.partition("=")
    if not equals or not re.fullmatch(_NAME, name) or not position:
        raise ValueError(
            f"config.data.mixture: expected NAME=DIRECTORY:WEIGHT, found {part!r}; for example "
            '"k400=/data/k400:0.7, ssv2=/data/ssv2:0.3"'
        )
    values: dict[str, str] = {}
    if found := re.fullmatch(r"(.+):([-+]?[\d.]+(?:e[-+]?\d+)?(?:/\d+)?)", position):
        position, values["weight"] = found[1], found[2]
    known = [field.name for field in dataclasses.fields(Component)][2:]
    for option in options:
        key, equals, value = (item.strip() for item in option.partition("="))
        if not equals or key not in known or not value:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"config.data.mixture: unknown option {option!r} of {name}; known: "
                f"{', '.join(f'{key}=...' for key in known)}{hint}"
            )
        values[key] = value
    weight = _weight(name, values.pop("weight")) if "weight" in values else None
    return Component(name, position, weight, **values)


def _weight(name: str, text: str) -> Fraction:
    exponent = re.search(r"e([-+]?\d{1,9})", text, re.IGNORECASE)
    digits = int(exponent[1]) if exponent else 0
    if len(text) > _LONGEST_WEIGHT or abs(digits) > _MOST_DIGITS:
        shown = f"{text[:_LONGEST_WEIGHT]}..." if len(text) > _LONGEST_WEIGHT else text
        raise ValueError(
            f"config.data.mixture: weight {shown!r} of {name} is too long a number; expected at "
            f"most {_LONGEST_WEIGHT} characters and an exponent of at most {_MOST_DIGITS}"
        )
    try:
        weight = Fraction(text)
    except (ValueError, ZeroDivisionError):
        weight = Fraction(0)
    if weight <= 0:
        raise ValueError(
            f"config.data.mixture: weight {text!r} of {name}; expected a number above 0 (leave a "
            "set out to see nothing of it)"
        )
    return weight


def components_of(config: DataConfig) -> tuple[Component, ...]:
    """The sets of a stream with every option filled in; a single set has the name ""."""
    if config.mixture and config.train:
        raise ValueError(
            f"config.data.train = {config.train!r} and config.data.mixture = {config.mixture!r}: "
            "expected one of them"
        )
    if not config.mixture:
        components = (Component("", config.train),)
    elif isinstance(config.mixture, str):
        components = parse(config.mixture)
    else:
        components = of_sets(config.mixture)
    without = [part.name for part in components if not (part.features or config.features)]
    if without and len(without) < len(components):
        raise ValueError(
            f"config.data.mixture: no features for {', '.join(without)}, but for others; give all "
            "sets the option features=DIRECTORY, or set config.data.features"
        )
    return tuple(
        dataclasses.replace(
            component,
            split=component.split or config.split,
            crop=component.crop or config.crop,
            flip=component.flip or config.flip,
            features=component.features or config.features,
        )
        for component in components
    )


Opened = tuple[tuple[Component, Dataset], ...]  # the sets of a stream


def open_components(config: DataConfig) -> Opened:
    """The sets of a stream, opened; the number in this tuple is the `dataset` of an example."""
    if config.merge_classes not in MERGES:
        raise ValueError(
            f"unknown config.data.merge_classes {config.merge_classes!r}; known: "
            f"{', '.join(MERGES)}"
        )
    check_crc = config.reader.check_crc
    opened = tuple(
        (
            component,
            open_dataset(
                component.directory,
                component.split,
                check_crc=check_crc,
                leave_out=config.leave_out,
            ),
        )
        for component in components_of(config)
    )
    named = (
        leave_out.is_about(config.leave_out, dataset.manifest, dataset.split)
        for _, dataset in opened
        if config.leave_out
    )
    if config.leave_out and not any(named):
        about = {f"{each.directory} {each.split}" for each in leave_out.read(config.leave_out)}
        raise ValueError(
            f"config.data.leave_out = {config.leave_out} does not name the training data; it "
            f"is about {', '.join(sorted(about)) or 'nothing'}. Run `ivj data audit` on the data "
            "that are trained on, or leave it out"
        )
    return opened


def join_classes(
    opened: Sequence[tuple[Component, Dataset]], merge: str
) -> tuple[tuple[str, ...] | None, tuple[np.ndarray | None, ...]]:
    """The common class list, and per set the common number of each of its labels.

    Returns:
      (classes, tables). Tables of None leave labels as they are. Classes of None mean that the
      lists differ and nobody asked to join them: such a stream has no labels.
    """
    lists = [dataset.classes for _, dataset in opened]
    if all(classes == lists[0] for classes in lists):
        return lists[0], (None,) * len(lists)
    if merge == "off":
        return None, (None,) * len(lists)
    if merge == "offset":
        lists = [
            tuple(f"{component.name}/{label}" for label in classes)
            for (component, _), classes in zip(opened, lists, strict=True)
        ]
    joined = tuple(dict.fromkeys(label for classes in lists for label in classes))
    number = {label: i for i, label in enumerate(joined)}
    return joined, tuple(
        np.array([number[label] for label in classes], np.int32) for classes in lists
    )


@dataclasses.dataclass(frozen=True)
class Interleave:
    """An endless sequence of elements of several parts, in exact shares.

    Element k of a part with weight w stands at time (k + 1/2) / w; the sequence is all elements by
    time, equal times in the order of the parts. In every period of sum(weights) elements a part
    has exactly its weight, and in any prefix its share to within half an element per part.

    Attributes:
      weights: positive integers without a common factor.
    """

    weights: tuple[int, ...]

    @classmethod
    def of(cls, shares: Sequence[Fraction]) -> Interleave:
        """The shortest period with these shares, all positive.

        Raises:
          ValueError: it is longer than positions can be numbered.
        """
        scale = math.lcm(*(share.denominator for share in shares))
        whole = [int(share * scale) for share in shares]
        factor = math.gcd(*whole)
        weights = tuple(weight // factor for weight in whole)
        if sum(weights) > _LONGEST_PERIOD:
            raise ValueError(
                f"config.data.mixture: the shares repeat after {float(sum(weights)):.3g} examples, "
                f"more than {_LONGEST_PERIOD}; give weights with fewer digits, such as 0.7 and 0.3"
            )
        return cls(weights)

    @property
    def period(self) -> int:
        """Draws after which the pattern repeats."""
        return sum(self.weights)

    def share(self, part: int) -> Fraction:
        """Of the draws, those of a part."""
        return Fraction(self.weights[part], self.period)

    def _rank(self, part: int, k: int) -> int:
        """How many elements of the first period stand before element k of a part."""
        weight, odd = self.weights[part], 2 * k + 1
        rank = 0
        for other, theirs in enumerate(self.weights):
            # Elements m of the other part with (2m + 1) / theirs < odd / weight, or equal to it.
            limit = (odd * theirs - (other >= part)) // weight
            rank += (limit + 1) // 2
        return rank

    def locate(self, position: int) -> tuple[int, int]:
        """(part, number of the element in its part) at a position of the sequence."""
        if len(self.weights) == 1:
            return 0, position
        periods, rank = divmod(position, self.period)
        parts, period = len(self.weights), self.period
        for part, weight in enumerate(self.weights):
            # Rounding moves an element by half a position per part at most.
            first = max((weight * (2 * rank - parts) - period) // (2 * period), 0)
            last = min(-((period - weight * (2 * rank + parts)) // (2 * period)), weight - 1)
            window = range(first, last + 1)
            k = bisect.bisect_left(window, rank, key=lambda k, part=part: self._rank(part, k))
            if k < len(window) and self._rank(part, window[k]) == rank:
                return part, periods * weight + window[k]
        raise AssertionError(f"no element of {self} has the rank {rank}")

    def count(self, part: int, position: int) -> int:
        """How many of the elements before a position belong to a part."""
        weight = self.weights[part]
        periods, rank = divmod(position, self.period)
        inside = bisect.bisect_left(range(weight), rank, key=lambda k: self._rank(part, k))
        return periods * weight + inside


@dataclasses.dataclass(frozen=True)
class Group:
    """All sets of one media type.

    Attributes:
      media: of `records.media`.
      batch: examples per step, over all hosts.
      clip: their shape.
      members: numbers of its sets.
      order: which member gives the n-th record that this media type reads.
    """

    media: str
    batch: int
    clip: ClipConfig
    members: tuple[int, ...]
    order: Interleave


@dataclasses.dataclass(frozen=True)
class Slot:
    """What one step holds.

    Attributes:
      group: whose examples they are.
      record: number of its first record among all that this media type reads.
      position: position of its first example in the stream, all media types counted.
    """

    group: Group
    record: int
    position: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole stream as arithmetic on the step number.

    Attributes:
      groups: one per media type, in the order of MEDIA.
      steps: which group has which step.
      repeats: examples per record.
      records: number of records of each set.
    """

    groups: tuple[Group, ...]
    steps: Interleave
    repeats: int
    records: tuple[int, ...]

    def slot(self, step: int) -> Slot:
        """Which group makes the batch of a step, and from where on."""
        which, number = self.steps.locate(step)
        group = self.groups[which]
        return Slot(group, number * group.batch // self.repeats, self.examples(step))

    def examples(self, step: int) -> int:
        """Examples of all media types in the first `step` steps."""
        return sum(self.steps.count(i, step) * group.batch for i, group in enumerate(self.groups))

    def draws(self, step: int) -> tuple[int, ...]:
        """Examples of each set in the first `step` steps."""
        draws = [0] * len(self.records)
        for i, group in enumerate(self.groups):
            records = self.steps.count(i, step) * group.batch // self.repeats
            for part, member in enumerate(group.members):
                draws[member] = group.order.count(part, records) * self.repeats
        return tuple(draws)

    def media_records(self) -> Mapping[str, int]:
        """Number of records of each media type."""
        return {
            group.media: sum(self.records[member] for member in group.members)
            for group in self.groups
        }

    def mean_batch(self) -> float:
        """Examples per step, averaged over media types."""
        return float(sum(self.steps.share(i) * group.batch for i, group in enumerate(self.groups)))


def make_plan(config: DataConfig, components: Sequence[Component], records: Sequence[int]) -> Plan:
    """The order of a stream.

    Args:
      records: number of records of each set.

    Raises:
      ValueError: a batch that repeats do not divide.
    """
    if config.repeats < 1:
        raise ValueError(f"config.data.repeats must be at least 1, found {config.repeats}")
    weights = [
        Fraction(count) if component.weight is None else component.weight
        for component, count in zip(components, records, strict=True)
    ]
    groups, shares = [], []
    for media in MEDIA:
        members = tuple(i for i, component in enumerate(components) if component.media == media)
        if not members:
            continue
        batch = config.batch_of(media)
        if batch < 1 or batch % config.repeats:
            raise ValueError(
                f"{batch} examples per step of media type {media} are not a positive multiple of "
                f"config.data.repeats = {config.repeats}"
            )
        order = Interleave.of([weights[member] for member in members])
        groups.append(Group(media, batch, config.clip_of(media), members, order))
        shares.append(sum(weights[member] for member in members) / Fraction(batch))
    return Plan(tuple(groups), Interleave.of(shares), config.repeats, tuple(records))
