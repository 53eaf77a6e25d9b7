"""One audit: fingerprints of all splits, pairs that may be the same, each compared."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.audit import compare, fingerprints
from data_pipelines.audit.candidates import Buckets
from data_pipelines.audit.collect import SplitPrints, collect, splits_of
from data_pipelines.audit.options import AuditOptions
from data_pipelines.commands.lock import DirectoryLock
from data_pipelines.records import leave_out, manifest, split_names
from data_pipelines.records.index import write_atomic

COLUMNS = (
    "distance", "mirrored", "shift_seconds", "pictures",
    "set", "split", "record", "id", "label",
    "other_set", "other_split", "other_record", "other_id", "other_label",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Side:
    """A split that takes part, its clips numbered from `first` among all."""

    prints: SplitPrints
    first: int
    own: bool  # of `directory`

    @property
    def name(self) -> str:
        """`directory split`."""
        return f"{self.prints.manifest.directory} {self.prints.split}"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two records that show the same; the first is of the split that should not have it."""

    one: Side
    record: int
    other: Side
    other_record: int
    mirrored: bool
    match: compare.Match

    def row(self) -> dict[str, Any]:
        """By COLUMNS."""
        one, other = self.one.prints, self.other.prints
        values = (
            round(self.match.distance, 4), self.mirrored, self.match.shift_us / 1e6,
            self.match.pictures,
            one.manifest.directory, one.split, self.record,
            one.id_of(self.record), one.label_of(self.record),
            other.manifest.directory, other.split, self.other_record,
            other.id_of(self.other_record), other.label_of(self.other_record),
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found.

    Attributes:
      pairs: the nearest first.
      compared: pairs whose pictures were laid over each other.
      crowded: clips left out of buckets that hold too many alike (candidates.CROWD).
      blank: records without a picture that says something, per side.
    """

    options: AuditOptions
    sides: tuple[Side, ...]
    pairs: tuple[Pair, ...]
    compared: int
    crowded: int
    blank: tuple[int, ...]

    def summary(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "threshold": self.options.threshold,
            "splits": [
                {
                    "set": side.prints.manifest.directory,
                    "split": side.prints.split,
                    "fingerprint": side.prints.manifest.fingerprint(side.prints.split),
                    "records": len(side.prints),
                    "decoded_frames": sum(each.decoded for each in side.prints.shards),
                    "unreadable": sum(each.unreadable for each in side.prints.shards),
                    "blank": blank,
                }
                for side, blank in zip(self.sides, self.blank, strict=True)
            ],
            "compared": self.compared,
            "crowded": self.crowded,
            "leaked_records": sum(len(each.records) for each in self.leaked()),
            "pairs": [pair.row() for pair in self.pairs],
        }

    def leaked(self) -> tuple[leave_out.Records, ...]:
        """The records to leave out, of every split that should share none with another."""
        found: dict[int, set[int]] = {side.first: set() for side in self.sides if side.own}
        for pair in self.pairs:
            # Of two copies in one split the first may stay.
            same = pair.one is pair.other
            found[pair.one.first].add(max(pair.record, pair.other_record) if same else pair.record)
        return tuple(
            leave_out.Records.of(
                side.prints.manifest,
                side.prints.split,
                records := sorted(found[side.first]),
                [side.prints.id_of(record) for record in records],
            )
            for side in self.sides
            if side.own
        )


def audit(options: AuditOptions, *, quiet: bool = False) -> Audit:
    """Compares splits; started again after an interruption, it reads no shard twice.

    Raises:
      ValueError: no such set or split, sets without pixels, nothing to compare.
      RuntimeError: another audit with the same --out is running, or a shard could not be read.
    """
    if not 0 < options.threshold < 1:
        raise ValueError(f"--threshold {options.threshold:g}: expected a distance between 0 and 1")
    work = f"{options.out}.work"
    plan = list(_splits(options))
    busy = "{directory}: another audit is writing there (process {process} on {host})"
    with DirectoryLock(work, "audit.lock", busy):
        sides, first = [], 0
        for found, split, own in plan:
            prints = collect(found, split, work, options.workers, quiet=quiet)
            sides.append(Side(prints, first, own))
            first += len(prints)
        result = _compare(options, sides, work)
        write_atomic(
            f"{options.out}.json", (json.dumps(result.summary(), indent=1) + "\n").encode()
        )
        write_atomic(f"{options.out}.csv", _sheet(result).encode("utf-8", "replace"))
        leave_out.write(f"{options.out}.leave_out.json", result.leaked())
        return result


def _splits(options: AuditOptions) -> Iterator[tuple[manifest.Manifest, str, bool]]:
    """(set, split, whether it is of `directory`); training splits come first."""
    own = manifest.load(options.directory)
    names = options.splits or tuple(splits_of(own))
    for name in sorted(names, key=split_names.is_held_out):
        own.split(name)
        yield own, name, True
    for directory in options.against:
        other = manifest.load(directory)
        there = tuple(splits_of(other))
        held = tuple(filter(split_names.is_held_out, there))
        for name in options.against_splits or held or there:
            other.split(name)
            same = other.fingerprint(name) in {own.fingerprint(each) for each in names}
            if same and not options.against_splits:
                raise ValueError(
                    f"--against {directory}: its split {name} is one of {options.directory}; leave "
                    "--against out to compare the splits of one set"
                )
            yield other, name, False


def _wanted(options: AuditOptions, sides: Sequence[Side]) -> list[tuple[int, int]]:
    own = [number for number, side in enumerate(sides) if side.own]
    others = [number for number, side in enumerate(sides) if not side.own]
    wanted = (
        list(itertools.product(own, others)) if others else list(itertools.combinations(own, 2))
    )
    wanted += [(number, number) for number in own if options.within]
    if not wanted:
        raise ValueError(
            f"{options.directory} has one split, {sides[0].prints.split}: name a set to compare it "
            "with as --against, or look for copies in it with --within"
        )
    return wanted


def _compare(options: AuditOptions, sides: Sequence[Side], work: str) -> Audit:
    wanted = _wanted(options, sides)
    keys = os.path.join(work, "keys")
    shutil.rmtree(keys, ignore_errors=True)
    pictures = sum(len(each.hashes) for side in sides for each in side.prints.shards)
    buckets = Buckets(keys, pictures)
    for number, side in enumerate(sides):
        mirrored = any(number == other for _, other in wanted)
        buckets.add(side.prints, side.first, mirrored=mirrored)
    which = np.repeat(np.arange(len(sides)), [len(side.prints) for side in sides])
    found = buckets.pairs(which, wanted)
    best: dict[tuple[int, int], Pair] = {}
    for one, other, mirrored in found.tolist():
        pair = _pair(sides[int(which[one])], one, sides[int(which[other])], other, bool(mirrored))
        known = best.get((one, other))
        near = pair.match.distance <= options.threshold
        if near and (known is None or pair.match.distance < known.match.distance):
            best[one, other] = pair
    shutil.rmtree(keys, ignore_errors=True)
    pairs = tuple(sorted(best.values(), key=lambda pair: pair.match.distance))
    blank = tuple(
        sum(int((np.diff(each.begin) == 0).sum()) for each in side.prints.shards) for side in sides
    )
    return Audit(options, tuple(sides), pairs, len(found), buckets.crowded, blank)


def _pair(one: Side, clip: int, other: Side, other_clip: int, mirrored: bool) -> Pair:
    record, other_record = clip - one.first, other_clip - other.first
    first, period = one.prints.of(record)
    second, other_period = other.prints.of(other_record)
    match = compare.match(first, second, period, other_period, mirrored)
    return Pair(one, record, other, other_record, mirrored, match)


def _sheet(result: Audit) -> str:
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(pair.row() for pair in result.pairs)
    return text.getvalue()


def lines(result: Audit) -> Iterator[str]:
    """What a person is told."""
    for side, blank in zip(result.sides, result.blank, strict=True):
        unreadable = sum(each.unreadable for each in side.prints.shards)
        odd = [f"{blank} without a picture that shows anything"] if blank else []
        odd += [f"{unreadable} of them unreadable"] if unreadable else []
        yield f"{side.name}: {len(side.prints)} records" + (f", {', '.join(odd)}" if odd else "")
    if result.crowded:
        yield (
            f"{result.crowded} times a clip was left out of a comparison of too many that look "
            "alike, such as of one camera: what is found is a lower bound"
        )
    yield (
        f"{result.compared} pairs compared, {len(result.pairs)} within distance "
        f"{result.options.threshold:g} (a picture every "
        f"{fingerprints.PERIOD_US / 1e6:g} s of clips up to "
        f"{fingerprints.MOST * fingerprints.PERIOD_US / 1e6:g} s)"
    )
    for pair in result.pairs[:10]:
        row = pair.row()
        how = "mirrored, " if pair.mirrored else ""
        yield (
            f"  {row['split']} {row['id']} = {row['other_split']} {row['other_id']} ({how}distance "
            f"{row['distance']:.3f}, begins {row['shift_seconds']:+.2f} s)"
        )
    if len(result.pairs) > 10:
        yield f"  and {len(result.pairs) - 10} more"
