"""Targets of a recipe's frozen teachers for every view of every record, computed once.

    ivj teach --config=RECIPE --out=features/ --views=1 --config.data.train=shards/

A run whose objective has no teachers of its own then reads them with --config.data.features=DIR
--config.data.fixed_views=1: same clips, same masks, same loss, no teacher in the memory. Writes
one companion shard (data_pipelines.records.companion) for each shard of the training split, and
beside them what they were made with, which such a run is compared with. The record of a clip
holds, for V views, `visible` (V, n) int32, the patch tokens that the student sees, and as the
objective wants them `clip_middle` (V, K, [1+]n, C), `clip_final` (V, E) and `mae` (V, Km, n, C).
Starting the same command again keeps finished shards. Processes do not talk to each other:
--parts=4 --part=0 to 3 share the shards, on one machine or several, and the last one to end
completes the companion.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data_pipelines.records import storage
from data_pipelines.records.companion import CompanionWriter, encode
from data_pipelines.records.dataset import UnreadableRecordError
from data_pipelines.stream.parts.features import PREFIX, left_out
from data_pipelines.stream.views import FixedViews
from internvideo_jax import cli
from internvideo_jax.checkpoint.frozen import load_frozen
from internvideo_jax.checkpoint.metadata import git_revision, versions
from internvideo_jax.config import TrainConfig, as_plain
from internvideo_jax.inference.clips import clip_batches
from internvideo_jax.inference.steps import Program, fetched
from internvideo_jax.offline import by_shard
from internvideo_jax.offline.by_shard import ShardRequest, say
from internvideo_jax.parallel.mesh import check_batch, make_mesh
from internvideo_jax.run import target_cache
from internvideo_jax.run.build import check_clip
from internvideo_jax.run.state import plan_frozen
from internvideo_jax.run.step import draw_key
from internvideo_jax.types import Batch, Params

DTYPES = ("float16", "bfloat16", "float32")
Networks = Mapping[str, tuple[Any, Params]]  # field of the objective -> model, parameters


@dataclasses.dataclass(frozen=True)
class Teaching:
    """Settings of the command beside the recipe."""

    views: int = 0  # of each record; 0 = config.data.fixed_views
    set: str = ""  # of config.data.mixture
    dtype: str = "bfloat16"  # of the stored features
    batch: int = 32  # clips per step
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.views < 0:
            raise ValueError(
                f"--views={self.views}: expected a number, or 0 for config.data.fixed_views"
            )
        if self.batch < 1:
            raise ValueError(f"--batch={self.batch}: expected at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype={self.dtype}: expected one of {', '.join(DTYPES)}")


@dataclasses.dataclass
class TeacherJob:
    """The teachers of an objective on the devices of this process, and the clips they look at.

    Attributes:
      networks: teachers by field of the objective, parameters on the mesh.
      skipped: records left out because they cannot be read.
    """

    config: TrainConfig
    networks: Networks
    mesh: Mesh
    views: FixedViews
    options: Teaching
    skipped: int = 0

    def __post_init__(self) -> None:
        check_batch(self.mesh, self.options.batch, "--batch")
        models = {name: model for name, (model, _) in self.networks.items()}
        self._shape, _ = self.views.spec()["video"]
        self._params = {name: params for name, (_, params) in self.networks.items()}
        objective, dtype = self.config.objective, jnp.dtype(self.options.dtype)
        key = draw_key(self.config.seed)  # of the train step

        def targets(params: Mapping[str, Params], batch: Batch) -> dict[str, jax.Array]:
            frozen = {name: (models[name], params[name]) for name in models}
            made = objective.targets(frozen, batch, key)
            return {
                name.removeprefix(PREFIX): (
                    value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value
                )
                for name, value in made.items()
            }

        self._targets = Program(jax.jit(targets), self.mesh)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Name -> shape and type of what is stored of one view."""
        batch = {
            name: jax.ShapeDtypeStruct((self.options.batch, *shape), dtype)
            for name, (shape, dtype) in self.views.spec().items()
        }
        with jax.set_mesh(self.mesh):
            made = jax.eval_shape(self._targets.function, self._params, batch)
        return {name: (leaf.shape[1:], np.dtype(leaf.dtype)) for name, leaf in made.items()}

    def record_bytes(self) -> int:
        """Of one stored record, all its views."""
        views = self.views.views
        return len(
            encode(
                {
                    name: np.broadcast_to(np.zeros((), dtype), (views, *shape))
                    for name, (shape, dtype) in self.shapes().items()
                }
            )
        )

    def shard(self, records: range) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of each record, in order. Batches do not reach over the end of a shard, so its
        bytes do not depend on which shards were there before."""
        views = self.views.views
        batches = clip_batches(
            list(itertools.product(records, range(views))),
            lambda row: self._clip(*row),
            self._shape,
            size=self.options.batch,
            threads=max(self.config.data.reader.threads, 1),
        )
        started = (((rows, readable), self._run(rows, video)) for rows, readable, video in batches)
        kept: list[dict[str, np.ndarray] | None] = []  # views of the record that is under way
        for (rows, readable), made in fetched(started):
            places = np.flatnonzero(readable)
            for name, array in made.items():
                if (bad := by_shard.first_not_finite(array[places])) >= 0:
                    record = rows[places[bad]][0]
                    raise by_shard.not_finite(self.views.dataset.address(record), name)
            for place, there in enumerate(readable):
                # Copies, so that a record under way does not hold its whole batch.
                each = {name: array[place].copy() for name, array in made.items()}
                kept.append(each if there else None)
                if len(kept) == views:
                    yield self._record(kept)
                    kept = []

    def _record(self, kept: list[dict[str, np.ndarray] | None]) -> dict[str, np.ndarray]:
        found = [each for each in kept if each is not None]
        if len(found) < len(kept):  # what of it can be read is not enough for every pass
            self.skipped += 1
            return left_out(self.shapes())
        return {name: np.stack([each[name] for each in found]) for name in found[0]}

    def _clip(self, record: int, view: int) -> np.ndarray | None:
        out = np.empty(self._shape, np.uint8)
        try:
            self.views.read(record, view, out)
        except UnreadableRecordError:
            if not self.options.skip_unreadable:
                raise
            return None
        return out

    def _run(self, rows: list[tuple[int, int]], video: np.ndarray) -> dict[str, jax.Array]:
        position = np.zeros(len(video), np.uint32)
        position[: len(rows)] = [self.views.position(*row) & 0xFFFFFFFF for row in rows]
        return self._targets(self._params, {"video": video, "position": position})[1]


def teach(
    teacher: TeacherJob,
    out: str | os.PathLike[str],
    provenance: dict[str, Any],
    *,
    part: int = 0,
    parts: int = 1,
) -> int:
    """Writes the missing shards of this process, and the manifest once all are there.

    Returns:
      Number of shards written.

    Raises:
      ValueError: `out` holds targets made with other teachers, settings or data.
      UnreadableRecordError: a damaged record, unless those are skipped.
    """
    by_shard.check_part(part, parts)
    dataset = teacher.views.dataset
    writer = CompanionWriter(out, target_cache.NAME, dataset.manifest, dataset.split)
    by_shard.check_same(
        storage.join(out, target_cache.file_name(dataset.split)),
        provenance,
        "settings",
        "dtype",
        "teachers",
        "data_fingerprint",
    )
    records = by_shard.counts(writer, dataset)
    mine = sum(records[number] for number in writer.missing() if number % parts == part)
    free = math.inf if storage.is_remote(out) else shutil.disk_usage(storage.local(out)).free
    say(_sizes(teacher, len(dataset), mine, free))
    written = by_shard.write_shards(writer, records, teacher.shard, part, parts)
    if teacher.skipped:
        say(
            f"warning: {teacher.skipped} records cannot be read and have no targets; train with "
            "--config.data.reader.on_corrupt=substitute, which leaves them out"
        )
    by_shard.finish(writer, out)
    return written


def _sizes(teacher: TeacherJob, records: int, mine: int, free: float) -> str:
    """What will be stored, before it is computed."""
    each, views = teacher.record_bytes(), teacher.views.views
    arrays = ", ".join(
        f"{name} {'x'.join(str(n) for n in shape)} {dtype}"
        for name, (shape, dtype) in teacher.shapes().items()
    )
    lines = [
        f"of each view: {arrays}",
        f"{_size(each)} per record of {views} view{'s' if views > 1 else ''}, "
        f"{_size(each * records)} for all {records} records, "
        f"{_size(each * mine)} left to this process",
    ]
    if each * mine > free:
        lines.append(f"warning: only {_size(int(free))} are free there")
    return "\n".join(lines)


def _size(count: int) -> str:
    power = min(int(math.log(max(count, 1), 1024)), 4)
    return f"{count / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


HELP = {
    "views": "Fixed views of each record; 0 takes config.data.fixed_views.",
    "set": "Which set of config.data.mixture.",
    "dtype": "Of the stored features: float16, bfloat16 or float32.",
    "batch": "Clips per step.",
    "skip_unreadable": "Leave records that cannot be read without targets instead of stopping.",
}


def prepare(config: TrainConfig, options: Teaching) -> tuple[TeacherJob, dict[str, Any]]:
    """The teachers of a recipe with their weights, and what decides their targets.

    Raises:
      ValueError: a recipe without teachers, or whose settings contradict each other or the data.
      FileNotFoundError: data or weights are not there.
    """
    objective = config.objective
    if not (objective.networks() or objective.cached_shapes(config.model)):
        raise ValueError(
            f"config.objective = {objective.name!r} takes no targets from a teacher; take a recipe "
            "whose objective does, such as alignment"
        )
    if options.views:
        data = dataclasses.replace(config.data, fixed_views=options.views)
        config = dataclasses.replace(config, data=data)
    elif not config.data.fixed_views:
        raise ValueError(
            "--views is needed, such as --views=1: how many clips of each record get targets; "
            "training takes the same number as config.data.fixed_views"
        )
    views = FixedViews(config.data, options.set)
    check_clip(config, views.component.media)
    objective.check(config.model)
    mesh = make_mesh(config.mesh)
    plans = plan_frozen(config, mesh)
    if not plans:
        raise ValueError(
            "config.objective has no teacher in the step, so there is nothing to compute; take the "
            "recipe with its teachers (targets=step), and targets=cached only to train"
        )
    params, digests = load_frozen(plans, config.seed, say)
    networks = {name: (plan.model, params[name]) for name, plan in plans.items()}
    dataset = views.dataset
    provenance = {
        "settings": target_cache.target_settings(config, views.component, dataset),
        "dtype": options.dtype,
        "teachers": {
            name: {"config": as_plain(plan.config), "params_digest": digests[name]}
            for name, plan in plans.items()
        },
        "data_fingerprint": dataset.manifest.fingerprint(dataset.split),
        "versions": versions(),
        "git": git_revision(),
    }
    return TeacherJob(config, networks, mesh, views, options), provenance


def start(asked: ShardRequest) -> None:
    """Does the work of the command."""
    teacher, provenance = prepare(cli.typed_config(), asked.options)
    teach(teacher, asked.out, provenance, part=asked.part, parts=asked.parts)


def main() -> None:
    """The command `ivj teach`."""
    by_shard.Flags(Teaching, helps=HELP, what="targets").run(
        start,
        __doc__,
        needed="--out is needed: the directory for the targets, which training then takes as "
        "config.data.features",
    )


if __name__ == "__main__":
    main()
