"""Which clip goes into which shard: decided once, written down, and checked on every restart.

Clips are sorted by a hash of their id and cut into equal runs, so the order inside a shard is
already mixed and depends neither on the order of the source nor on anything random. `plan.json`
stores the decision with digests of everything it rests on; a run with the same inputs continues,
another one is refused.
"""

import dataclasses
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.ingest.decode import DecodeOptions
from data_pipelines.ingest.estimate import EstimateTask
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.pool import run_tasks
from data_pipelines.ingest.rows import Row
from data_pipelines.ingest.work import ShardTask
from data_pipelines.records import manifest, schema, storage

FILE_NAME = "plan.json"

# Files opened per split to estimate the size of a record.
_SAMPLES = 32
_FALLBACK_RECORD_BYTES = 2e6


@dataclass(frozen=True, slots=True)
class IngestPlan:
    """The decision.

    Attributes:
      options: what a resumed run must share (`IngestOptions.plan_options`).
      classes: class names by index.
      inputs: digest of all rows, whatever their order in the source.
      rows: number of rows per split.
      shards: number of shards per split.
    """

    options: Mapping[str, Any]
    classes: tuple[str, ...]
    inputs: str
    rows: Mapping[str, int]
    shards: Mapping[str, int]

    def digest(self) -> str:
        """Hex digest that ties a finished shard to this plan."""
        return hashlib.sha256(_plan_json(self)).hexdigest()


def prepare(
    options: IngestOptions, rows: Sequence[Row], classes: tuple[str, ...]
) -> tuple[IngestPlan, bool]:
    """Read the plan of an earlier run, or make one and write it.

    Returns:
      The plan, and whether it continues an earlier run.

    Raises:
      ValueError: the earlier run had other options or inputs (the message lists each), its plan
        is unreadable, or the directory holds shards without a plan.
    """
    by_split = _by_split(rows)
    counts = {split: len(members) for split, members in by_split.items()}
    inputs = hash_rows(rows)
    path = storage.join(options.out, FILE_NAME)
    if storage.exists(path):
        old = _read(path)
        _check_same(options.out, old, options.plan_options(), classes, inputs, counts)
        return old, True
    _check_vacant(options.out)
    shards = {split: _shard_count(members, options) for split, members in by_split.items()}
    plan = IngestPlan(options.plan_options(), classes, inputs, counts, shards)
    storage.write_atomic(path, _plan_json(plan))
    return plan, False


def assign(
    plan: IngestPlan, options: IngestOptions, rows: Sequence[Row]
) -> list[tuple[str, ShardTask]]:
    """The shards to write, as (split, task) pairs in the order of their names."""
    decode = DecodeOptions(**options.record_options())
    digest = plan.digest()
    result = []
    for split, members in sorted(_by_split(rows).items()):
        count = plan.shards[split]
        bounds = [i * len(members) // count for i in range(count + 1)]
        for i in range(count):
            task = ShardTask(
                directory=options.out,
                name=f"{options.name}-{split}-{i:05d}-of-{count:05d}.tfrecord",
                plan=digest,
                rows=tuple(members[bounds[i] : bounds[i + 1]]),
                classes=plan.classes,
                options=decode,
            )
            result.append((split, task))
    return result


def hash_rows(rows: Sequence[Row]) -> str:
    """Digest of everything about the rows that ends up in records, independent of their order.

    Paths enter as the source lists them: a dataset that moved is still the same.
    """
    digests = sorted(
        hashlib.sha256(
            json.dumps(
                [
                    row.split,
                    row.id,
                    row.name,
                    row.labels,
                    row.captions,
                    row.start,
                    row.end,
                    dict(row.extra),
                    row.segments,
                    row.boxes,
                    bool(row.problem),
                    # What a row has not is not mentioned, so that older plans stay the same.
                    *([list(map(dataclasses.astuple, row.turns))] if row.turns else []),
                ],
                sort_keys=True,
            ).encode()
        ).digest()
        for row in rows
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()


def schema_version(options: Mapping[str, Any]) -> int:
    """Of the records that an ingest with these options writes."""
    return schema.NEWEST_VERSION if options.get("storage") == "png" else schema.SCHEMA_VERSION


def _by_split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    splits: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        splits[row.split].append(row)
    for members in splits.values():
        members.sort(key=lambda row: (hashlib.sha256(row.id.encode()).digest(), row.id))
    return dict(splits)


def _plan_json(plan: IngestPlan) -> bytes:
    content = {
        "version": 1,
        "schema_version": schema_version(plan.options),
        "options": dict(plan.options),
        "classes": list(plan.classes),
        "inputs_sha256": plan.inputs,
        "rows": dict(plan.rows),
        "shards": dict(plan.shards),
    }
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _read(path: str) -> IngestPlan:
    try:
        content = json.loads(storage.read_text(path))
        plan = IngestPlan(
            options=dict(content["options"]),
            classes=tuple(content["classes"]),
            inputs=content["inputs_sha256"],
            rows=dict(content["rows"]),
            shards={split: int(count) for split, count in content["shards"].items()},
        )
        newer = content["version"] > 1 or content["schema_version"] > schema.NEWEST_VERSION
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: is not a readable plan ({type(error).__name__}: {error}); choose another "
            "--out, or delete the directory to start over"
        ) from error
    if newer:
        raise ValueError(f"{path}: was written by a newer version of this program; update it")
    return plan


def _check_same(
    out: str,
    old: IngestPlan,
    options: Mapping[str, Any],
    classes: tuple[str, ...],
    inputs: str,
    rows: Mapping[str, int],
) -> None:
    then = {**manifest.EARLIER_OPTIONS, **old.options}
    differences = [
        f"--{key.replace('_', '-')}: {then.get(key)!r} then, {value!r} now"
        for key, value in options.items()
        if then.get(key) != value
    ]
    if old.classes != classes:
        differences.append(f"classes: {_difference(old.classes, classes)}")
    if old.inputs != inputs:
        before, now = (
            ", ".join(f"{count} in {split}" for split, count in sorted(counts.items()))
            for counts in (old.rows, rows)
        )
        same = "; same number, other content" if old.rows == rows else ""
        differences.append(f"rows of --source: {before} then, {now} now{same}")
    if differences:
        raise ValueError(
            f"{out} was begun with other options or inputs:\n  "
            + "\n  ".join(differences)
            + "\nRepeat them to continue that run, or choose another --out"
        )


def _difference(old: tuple[str, ...], new: tuple[str, ...]) -> str:
    gone = sorted(set(old) - set(new))
    added = sorted(set(new) - set(old))
    if not gone and not added:
        return "same names in another order"
    return f"{len(old)} then, {len(new)} now" + "".join(
        f"; {what} {', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}"
        for what, names in (("gone", gone), ("new", added))
        if names
    )


def _check_vacant(out: str) -> None:
    try:
        there = storage.listdir(out)
    except FileNotFoundError:  # an object store has no empty folders
        there = []
    taken = [name for name in there if name.endswith(".tfrecord") or name == manifest.FILE_NAME]
    if taken:
        raise ValueError(
            f"{out}: holds {', '.join(taken[:3])}{', ...' if len(taken) > 3 else ''} but no "
            f"{FILE_NAME}, so it is not an ingest to continue; choose another --out"
        )


def _shard_count(rows: Sequence[Row], options: IngestOptions) -> int:
    """Shards for a split; never more than rows, so that none is empty by plan."""
    if options.shards is not None:
        return min(options.shards, len(rows))
    step = max(1, len(rows) // _SAMPLES)
    task = EstimateTask(tuple(rows[::step][:_SAMPLES]), DecodeOptions(**options.record_options()))
    mean = _FALLBACK_RECORD_BYTES
    # In a worker, because a header can take the decoder down just as well as a frame.
    for outcome in run_tasks(
        "data_pipelines.ingest.estimate:estimate",
        [task],
        min(1, options.workers),
        stall_seconds=options.stall_seconds,
    ):
        mean = outcome.result or mean
    # The smaller one first: for the tiniest sizes the number of shards is infinite.
    return max(1, math.ceil(min(len(rows), mean * len(rows) / (options.shard_mb * 1e6))))
