"""How well each caption fits its video: a column `similarity` for `data_pipelines subset`.

    ivj score --config=configs/... --checkpoint=ViCLIP-L_FLT.pth \\
        --config.data.train=shards/ --split=train --out=scores/
    ivj data subset --source scores/similarity-train.jsonl --out flt.jsonl \\
        --top-share=0.3

Similarity is the cosine of the embeddings of clip and caption, as InternVid's FLT list was made.
Every shard of the split gives one JSONL file; the same command again keeps the finished ones. With
--part and --parts several processes share the shards, each with the devices of its own host.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.clips import sampling, transforms
from data_pipelines.records import schema, storage
from data_pipelines.records.dataset import Dataset, UnreadableRecordError
from data_pipelines.text.caption import clean_caption
from internvideo_jax.config import TrainConfig
from internvideo_jax.inference.clips import clip_batches
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.inference.steps import Program, fetched
from internvideo_jax.inference.texts import embed_unique, fitting_tokenizer
from internvideo_jax.inference.vectors import no_direction, unit
from internvideo_jax.offline import by_shard
from internvideo_jax.offline.by_shard import ShardJob, say
from internvideo_jax.offline.seen import SeenShards
from internvideo_jax.parallel.mesh import check_batch
from internvideo_jax.protocols import Model, clip_of
from internvideo_jax.types import Params

NAME = "similarity"  # of the files and of the column


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What decides the numbers beside weights and data. The default is ViCLIP's evaluation."""

    sampling: str = "uniform"
    stride: int = 1
    crop: str = "squash"
    tokenizer: str = ""  # empty: the config's, else clip
    clean: bool = True
    batch: int = 32
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if self.sampling not in sampling.VIEW_RULES:
            raise ValueError(
                f"--sampling={self.sampling}: expected one of {', '.join(sampling.VIEW_RULES)}"
            )
        if self.crop not in ("center", "squash"):
            raise ValueError(f"--crop={self.crop}: expected center or squash")
        for name, value in (("stride", self.stride), ("batch", self.batch)):
            if value < 1:
                raise ValueError(f"--{name}={value}: expected at least 1")


@dataclasses.dataclass
class Scorer:
    """A model on the devices of this process, and the split that it runs over."""

    model: Model
    params: Params
    mesh: Mesh
    dataset: Dataset
    options: Scoring
    threads: int = 4
    unreadable: int = 0
    empty: int = 0  # captions of which nothing is left
    without: int = 0  # records without a caption
    seen: PixelDigest = dataclasses.field(default_factory=PixelDigest)  # of the last shard

    def __post_init__(self) -> None:
        config = self.model.config
        if config.inputs.text is None:
            raise ValueError(
                f"--config: the model {config.name!r} reads no text; take one such as viclip"
            )
        self._clip_input = clip_of(config)
        check_batch(self.mesh, self.options.batch, "--batch")
        self._tokenize = fitting_tokenizer(
            self.options.tokenizer or "clip",
            config.inputs.text.context,
            config.inputs.text.vocab,
            clean=self.options.clean,
        )
        self._video = self._encoder("encode_video", "video")
        self._text = self._encoder("encode_text", "text")

    def _encoder(self, method: str, part: str) -> Program:
        apply = self.model.apply
        forward = jax.jit(lambda params, batch: apply(params, batch[part], method=method))
        return Program(forward, self.mesh)

    def shard(self, numbers: range) -> list[dict[str, Any]]:
        """A row per caption, records and captions in order.

        Batches do not reach over the end of a shard, so its rows do not depend on which shards
        were there before.
        """
        self.seen = PixelDigest()
        loaded: list[tuple[int, schema.Record]] = []
        for number in numbers:
            record = self._load(number)
            if record is None:
                continue
            if not record.captions:
                self.without += 1
                continue
            loaded.append((number, record))
        captions = [(place, text) for place, (_, r) in enumerate(loaded) for text in r.captions]
        kept = [(place, text) for place, text in captions if not self._is_empty(text)]
        self.empty += len(captions) - len(kept)
        videos, readable = self._embed_videos(loaded)
        kept = [(place, text) for place, text in kept if readable[place]]
        if not kept:
            return []
        ids = self._tokenize([text for _, text in kept])
        texts = embed_unique(functools.partial(self._text, self.params), ids, self.options.batch)
        self._check(videos[[place for place, _ in kept]], loaded, kept, "video")
        self._check(texts, loaded, kept, "caption")
        cosines = (unit(videos[[place for place, _ in kept]]) * unit(texts)).sum(axis=1)
        return [
            row(loaded[place][1], text, float(cosine))
            for (place, text), cosine in zip(kept, cosines, strict=True)
        ]

    def _load(self, number: int) -> schema.Record | None:
        try:
            return self.dataset.load(number)
        except UnreadableRecordError:
            if not self.options.skip_unreadable:
                raise
            self.unreadable += 1
            return None

    def _is_empty(self, text: str) -> bool:
        return not (clean_caption(text) if self.options.clean else text).strip()

    def _embed_videos(
        self, loaded: Sequence[tuple[int, schema.Record]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(R, E), and (R,) bool: whether a record could be decoded."""
        clip, values, readable = self._clip_input, [], []
        clips = clip_batches(
            loaded,
            lambda each: self._clip(*each),
            (clip.frames, clip.resolution, clip.resolution, 3),
            size=self.options.batch,
            threads=self.threads,
        )

        started = ((there, self._run(rows, there, video)) for rows, there, video in clips)
        for there, found in fetched(started):
            readable += there.tolist()
            values.append(found[: len(there)])
        self.unreadable += len(readable) - sum(readable)
        return np.concatenate(values) if values else np.zeros((0, 1)), np.array(readable, bool)

    def _run(
        self, rows: Sequence[tuple[int, schema.Record]], there: np.ndarray, video: np.ndarray
    ) -> jax.Array:
        made = self._video(self.params, {"video": video})[1]
        for (number, _), readable, clip in zip(rows, there, video, strict=False):
            if readable:  # while the device computes
                self.seen.add_clip(clip, number)
        return made

    def _clip(self, number: int, record: schema.Record) -> np.ndarray | None:
        """(T, H, W, 3) uint8; None for a record that cannot be read, if those are skipped."""
        clip, options = self._clip_input, self.options
        try:
            (wanted,) = sampling.view_frames(
                options.sampling, record.timestamps_us, record.fps, clip.frames, options.stride, 1
            )
            frames = self.dataset.frames(number, record, wanted)
        except UnreadableRecordError:
            if not options.skip_unreadable:
                raise
            return None
        if options.crop == "squash":
            whole = (0, 0, *frames[0].shape[:2])
            return transforms.crop_resize(frames, whole, clip.resolution, method="bicubic")
        small = {id(each): transforms.resize_short_side(each, clip.resolution) for each in frames}
        height, width = small[id(frames[0])].shape[:2]
        box = transforms.center_box(height, width, clip.resolution)
        return transforms.crop_resize([small[id(each)] for each in frames], box, clip.resolution)

    def _check(
        self,
        values: np.ndarray,
        loaded: Sequence[tuple[int, schema.Record]],
        kept: Sequence[tuple[int, str]],
        what: str,
    ) -> None:
        if (bad := no_direction(values)).any():
            place, text = kept[int(np.argmax(bad))]
            raise ValueError(
                f"{self.dataset.address(*loaded[place])}: the embedding of its {what} is zero or "
                f"not finite (caption {text!r}), so the similarity is NaN: the checkpoint or the "
                "record is broken"
            )


def row(record: schema.Record, caption: str, similarity: float) -> dict[str, Any]:
    """A row of the list: the record's annotation columns, and what `subset` reads."""
    found: dict[str, Any] = {
        **record.extra,
        "id": record.media_id,
        "path": record.filename or record.media_id,
        "caption": caption,
        NAME: round(similarity, 6),
    }
    if record.end_us > record.start_us:
        found |= {"start": record.start_us / 1e6, "end": record.end_us / 1e6}
    return found


def score(
    scorer: Scorer,
    out: str | os.PathLike[str],
    provenance: dict[str, Any],
    *,
    part: int = 0,
    parts: int = 1,
) -> int:
    """Writes the missing shards of this process, and the joined list once all are there.

    Returns:
      Number of shards written.

    Raises:
      ValueError: `out` holds scores made with other weights, settings or data; an embedding that
        is zero or not finite; a split without any caption.
      UnreadableRecordError: a damaged record, unless those are skipped.
    """
    by_shard.check_part(part, parts)
    storage.make_directory(out)
    dataset = scorer.dataset
    by_shard.check_same(storage.join(out, f"{NAME}-{dataset.split}.json"), provenance, "scoring")
    counts = [shard.records for shard in dataset.manifest.split(dataset.split).shards]
    bounds = [0, *itertools.accumulate(counts)]
    paths = [
        storage.join(out, f"{NAME}-{dataset.split}-{number:05d}-of-{len(counts):05d}.jsonl")
        for number in range(len(counts))
    ]
    seen = SeenShards(out, NAME, dataset.split, len(counts))
    missing = [number for number, path in enumerate(paths) if not storage.exists(path)]
    rows = written = 0
    for number in by_shard.mine(missing, part, parts, dict(enumerate(counts))):
        found = scorer.shard(range(bounds[number], bounds[number + 1]))
        lines = "".join(json.dumps(each, ensure_ascii=True) + "\n" for each in found)
        seen.keep(number, scorer.seen)
        storage.write_atomic(paths[number], lines.encode())
        rows, written = rows + len(found), written + 1
    if written:
        say(f"{rows} captions in {written} shards")
    for count, what in (
        (scorer.unreadable, "records cannot be read"),
        (scorer.without, "records have no caption"),
        (scorer.empty, "captions are empty after cleaning"),
    ):
        if count:
            say(f"warning: {count} {what} and have no row")
    left = [path for path in paths if not storage.exists(path)]
    if left:
        say(f"{len(left)} shards are left to other processes")
        return written
    joined = storage.join(out, f"{NAME}-{dataset.split}.jsonl")
    _join(paths, joined)
    if not storage.size(joined):
        raise ValueError(
            f"split {dataset.split!r} of {dataset.manifest.directory} gave no row: no record has "
            "a caption that can be scored"
        )
    say(f"complete: {joined}")
    seen.finish()
    return written


def _join(paths: Sequence[str], out: str) -> None:
    beside = None if storage.is_remote(out) else os.path.dirname(storage.local(out))
    handle, temporary = tempfile.mkstemp(dir=beside, suffix=".tmp")
    with open(handle, "wb") as file:
        for path in paths:
            file.write(storage.read_bytes(path))
    storage.publish(temporary, out)


HELP = {
    "sampling": "Which frames: data_pipelines/clips/sampling.py, VIEWS.",
    "stride": "Stored frames between two of a clip, for dense and clock.",
    "crop": "squash: the whole frame, bicubically; center: short side resized, middle cut out.",
    "tokenizer": "clip, clip:PATH or bert:PATH; default: the config's, else clip.",
    "clean": "Captions without case and punctuation, as ViCLIP trains.",
    "batch": "Clips, and captions, per step.",
    "skip_unreadable": "Leave damaged records out and count them instead of stopping.",
}


def fill(options: Scoring, config: TrainConfig) -> Scoring:
    """The tokenizer of the run where none is given."""
    tokenizer = options.tokenizer or config.data.tokenizer or "clip"
    return dataclasses.replace(options, tokenizer=tokenizer)


def start(job: ShardJob) -> None:
    """Does the work of the command."""
    scorer = Scorer(job.model, job.params, job.mesh, job.dataset, job.options, job.threads)
    score(scorer, job.out, job.provenance, part=job.part, parts=job.parts)


def main() -> None:
    """The command `ivj score`."""
    by_shard.command(
        start, Scoring, settings="scoring", helps=HELP, what="scores", split="train", fill=fill
    )


if __name__ == "__main__":
    main()
