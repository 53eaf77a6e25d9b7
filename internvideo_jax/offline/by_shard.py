"""What commands share that run a model over a split and write something for each of its shards.

The same command again keeps the shards that are finished. Processes do not talk to each other:
--parts=4 --part=0 to 3 share the shards, on one machine or several.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from jax.sharding import Mesh

from data_pipelines.records import manifest, storage
from data_pipelines.records.companion import CompanionWriter
from data_pipelines.records.dataset import Dataset, open_dataset
from data_pipelines.records.outputs import check_folder
from data_pipelines.stream.identity import differences
from internvideo_jax import cli
from internvideo_jax.checkpoint.metadata import weights_provenance
from internvideo_jax.config import TrainConfig, as_plain
from internvideo_jax.evaluators.base import default_split
from internvideo_jax.inference.quantized import stated
from internvideo_jax.inference.weights import load
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.protocols import Model
from internvideo_jax.types import Params, flatten_paths

flags.disclaim_key_flags()  # what is defined here is a flag of the command, for its --help

SAY_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One command: a model with its parameters on the devices, a split, and where results go."""

    model: Model
    params: Params
    mesh: Mesh
    dataset: Dataset
    options: Any  # the command's own dataclass
    threads: int
    provenance: dict[str, Any]
    out: str | os.PathLike[str]
    part: int
    parts: int


@dataclasses.dataclass(frozen=True)
class ShardRequest:
    """What the flags say that all of these commands have.

    Attributes:
      options: the command's own dataclass.
    """

    options: Any
    out: str
    part: int
    parts: int


class Flags:
    """The flags of a command, and how it begins.

    Args:
      options: a dataclass of the command's settings, each of which becomes a flag.
      helps: a text for each of them.
      what: the results, for the help of --out.
      before, between: define further flags in front of those that all have, and in front of the
        options.
    """

    def __init__(
        self,
        options: type,
        *,
        helps: Mapping[str, str],
        what: str,
        before: Callable[[], None] = lambda: None,
        between: Callable[[], None] = lambda: None,
    ):
        flags.adopt_module_key_flags(cli)
        before()
        self._out = flags.DEFINE_string(
            "out", None, f"Directory for the {what}, local or on an object store."
        )
        self._part = flags.DEFINE_integer(
            "part", 0, "Which part of the shards this process takes, from 0."
        )
        self._parts = flags.DEFINE_integer(
            "parts", 1, "Processes that share the shards.", lower_bound=1
        )
        between()
        define = {int: flags.DEFINE_integer, str: flags.DEFINE_string, bool: flags.DEFINE_bool}
        self._type = options
        self._chosen: dict[str, Any] = {}
        for field in dataclasses.fields(options):
            default: Any = field.default
            self._chosen[field.name] = define[type(default)](field.name, default, helps[field.name])

    def run(
        self,
        work: Callable[[ShardRequest], None],
        about: str | None,
        *,
        needed: str,
        lacks: Callable[[], bool] = lambda: False,
        stored: bool = False,
    ) -> None:
        """Reads the flags and does the work; errors as `cli.run`.

        Args:
          about, stored: as `cli.run` takes them.
          needed: the message where --out is missing, or something else that the command `lacks`.
        """

        def run() -> int:
            use_compile_cache(cli.COMPILE_CACHE.value)
            if not self._out.value or lacks():
                raise ValueError(needed)
            check_folder("--out", self._out.value, remote=True)
            check_part(self._part.value, self._parts.value)
            options = self._type(**{name: flag.value for name, flag in self._chosen.items()})
            work(ShardRequest(options, self._out.value, self._part.value, self._parts.value))
            return 0

        cli.run(run, stored=stored, about=about or "")


def command(
    start: Callable[[ShardJob], None],
    options: type,
    *,
    settings: str,
    helps: Mapping[str, str],
    what: str,
    split: str = "",
    fill: Callable[[Any, TrainConfig], Any] = lambda options, config: options,
) -> None:
    """Defines the flags of a command that runs a checkpoint over a split, and runs it.

    Args:
      start: does the work.
      options, helps, what: as `Flags` takes them.
      settings: name of these settings in the provenance.
      split: that is taken without --split; empty: the one that evaluators take.
      fill: settings as they are with what the config knows.
    """
    given: dict[str, Any] = {}

    def checkpoint() -> None:
        given["checkpoint"] = flags.DEFINE_string(*cli.CHECKPOINT)

    def wanted() -> None:
        given["split"] = flags.DEFINE_string(
            "split",
            split,
            "Split to read." if split else "Default: test, val or train, the first there is.",
        )

    def work(asked: ShardRequest) -> None:
        start(_job(asked, given["checkpoint"].value, given["split"].value, split, settings, fill))

    Flags(options, helps=helps, what=what, before=checkpoint, between=wanted).run(
        work,
        sys.modules[start.__module__].__doc__,
        needed="--checkpoint and --out are needed: --checkpoint=RUN --out=FOLDER; see --help",
        lacks=lambda: not given["checkpoint"].value,
        stored=True,
    )


def _job(
    asked: ShardRequest,
    checkpoint: str,
    wanted: str,
    split: str,
    settings: str,
    fill: Callable[[Any, TrainConfig], Any],
) -> ShardJob:
    """The model on the devices, the split, and what decides the output."""
    config = cli.typed_config()
    options = fill(asked.options, config)
    data = (config.data.train, config.data.eval)
    first, second = data if split == "train" else reversed(data)
    directory = first or second
    found = directory and manifest.load(directory)
    dataset = open_dataset(found, wanted or (found and default_split(found)))
    mesh = make_mesh(config.mesh)
    model, params = load(config, checkpoint, mesh)
    provenance = {
        **weights_provenance(checkpoint, params),
        **stated(model),
        settings: dataclasses.asdict(options),
        "model": as_plain(model.config),
        "parameters": len(flatten_paths(params)),
        "data_fingerprint": dataset.manifest.fingerprint(dataset.split),
    }
    threads = max(config.data.reader.threads, 1)
    return ShardJob(
        model,
        params,
        mesh,
        dataset,
        options,
        threads,
        provenance,
        asked.out,
        asked.part,
        asked.parts,
    )


def check_part(part: int, parts: int) -> None:
    """ValueError for a part that is none of `parts`."""
    if not 0 <= part < parts:
        raise ValueError(f"--part={part}: expected 0 to {parts - 1}")


def check_same(path: str, provenance: dict[str, Any], settings: str, *others: str) -> None:
    """Writes what decides the output, or compares it with what made the one that is there.

    Args:
      settings: name of the entry that holds the settings.
      others: of further entries that decide it; by default those of weights, data and model.
    """
    text = json.dumps(provenance, indent=1, sort_keys=True, default=str) + "\n"
    if not storage.exists(path):
        storage.write_atomic(path, text.encode())
        return
    before, now = json.loads(storage.read_text(path)), json.loads(text)
    decide = others or ("quantization", "params_digest", "data_fingerprint", "model")
    for name in (settings, *decide):
        found, there = (each.get(name, "none") for each in (now, before))
        if there == found:
            continue
        if isinstance(found, dict) and isinstance(there, dict):
            said = "".join(f"\n  {line}" for line in differences(found, there, "it has")) + "\nGive"
        else:
            said = f" ({there}, now {found}); give"
        raise ValueError(
            f"{path}: made with another {name}{said} another --out, or delete that directory"
        )


def mine(missing: Sequence[int], part: int, parts: int, videos: Mapping[int, int]) -> Iterator[int]:
    """The shards of this process, with a line now and then on how far it is.

    Args:
      missing: shards without a result.
      videos: of each shard.
    """
    left = [number for number in missing if number % parts == part]
    shards = len(videos)
    say(f"{shards} shards, {shards - len(missing)} finished before, {len(left)} for this process")
    total, done = sum(videos[number] for number in left), 0
    began = said = time.monotonic()
    for number in left:
        yield number
        done, now = done + videos[number], time.monotonic()
        if now - said > SAY_SECONDS or number == left[-1]:
            rate = done / (now - began)
            say(
                f"shard {number}: {done}/{total} videos, {rate:.1f} videos/s, "
                f"ETA {(total - done) / rate:.0f} s"
            )
            said = now


def counts(writer: CompanionWriter, dataset: Dataset) -> dict[int, int]:
    """How many records each shard has."""
    shards = range(len(dataset.manifest.split(dataset.split).shards))
    return {number: len(writer.records(number)) for number in shards}


def write_shards(
    writer: CompanionWriter,
    records: Mapping[int, int],
    rows: Callable[[range], Iterator[dict[str, np.ndarray]]],
    part: int,
    parts: int,
    before: Callable[[int], None] = lambda number: None,
) -> int:
    """Writes the missing shards of this process and returns how many those are.

    Args:
      records: `counts`.
      rows: the arrays of each of these records.
      before: is called with the number of a shard when its arrays are there and it is not.
    """
    written = 0
    for number in mine(writer.missing(), part, parts, records):
        with writer.shard(number) as shard:
            for arrays in rows(writer.records(number)):
                shard.append(arrays)
            before(number)
        written += 1
    return written


def finish(writer: CompanionWriter, out: str | os.PathLike[str]) -> bool:
    """Writes the manifest where no shard is missing any more, and says so; whether that is so."""
    left = writer.missing()
    if left:
        say(f"{len(left)} shards are left to other processes")
        return False
    writer.finish()
    say(f"complete: {out}")
    return True


def first_not_finite(rows: np.ndarray) -> int:
    """The first row of (R, ...) with a value that is NaN or infinite; -1 if there is none."""
    bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
    return int(bad[0]) if len(bad) else -1


def not_finite(address: str, what: str) -> ValueError:
    """What stops a command before such values of a video are stored."""
    return ValueError(
        f"{address}: the {what} of this video are not finite: the checkpoint or the record is "
        "broken, or the values do not fit into the type they are stored in"
    )


def say(text: str) -> None:
    """A line of the command, at once."""
    print(text, flush=True)
