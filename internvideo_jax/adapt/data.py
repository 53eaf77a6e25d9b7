"""The videos that pre-training goes on with: as shards, with a part kept from training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipelines.ingest import hold_out, sources
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.rows import Row
from data_pipelines.ingest.run import ingest
from data_pipelines.records import manifest, split_names, storage
from internvideo_jax.evaluators.collapse import LEAST_CLIPS
from internvideo_jax.registry import EVALUATORS, suggest

SHARES = (0.3, 0.4, 0.5)  # tried where so few videos are there that one side would be empty
# Labelled training clips per class from which a linear probe is fitted; below, neighbours vote.
PROBE_CLIPS = 10
LINEAR, NEIGHBOURS, UNLABELLED, PIXELS = "linear_probe", "knn", "collapse", "reconstruction"
# What a probe is judged by.
HEADLINE = {"collapse": ("features/own_video", "video/own_video")}


@dataclasses.dataclass(frozen=True)
class Clips:
    """A set with a part kept from training.

    Attributes:
      train, test: names of its splits.
      counts: labelled training clips per class; empty without labels.
    """

    directory: str
    train: str
    test: str
    records: int
    tested: int
    counts: tuple[int, ...]

    @property
    def classes(self) -> int:
        """Classes with a clip to learn from."""
        return sum(count > 0 for count in self.counts)

    def probes(self) -> tuple[str, ...]:
        """What can be measured here, the one that decides first."""
        if self.classes < 2:
            return (UNLABELLED,) if self.tested >= LEAST_CLIPS else (PIXELS,)
        enough = sum(self.counts) >= PROBE_CLIPS * self.classes
        return (LINEAR, NEIGHBOURS) if enough else (NEIGHBOURS,)

    def why(self) -> str:
        """Which probes these are, in words."""
        labelled = sum(self.counts)
        if self.classes < 2:
            found = "no labels" if not labelled else "one class only"
            if self.probes() == (PIXELS,):
                return f"{found}, and {self.tested} clips to probe on: the loss on them"
            return f"{found}: neighbours of own views and the spread of the features are compared"
        each = f"{labelled} labelled training clips of {self.classes} classes"
        if sum(self.counts) >= PROBE_CLIPS * self.classes:
            return f"{each}: a linear probe and nearest neighbours"
        return f"{each}, too few for a linear probe: nearest neighbours"


def shards_of(
    source: str, out: Path, resolution: int, share: float, flip_changes_label: bool
) -> str:
    """The directory of the shards: `source` itself where it holds some, else `out`, ingested once.

    A source that names no split kept from training gets one: about `share` of its source videos,
    all clips of a video on one side.

    Raises:
      ValueError: nothing to ingest, or too few videos to keep some from training.
      RuntimeError: an ingest that could not finish.
    """
    for place in (source, str(out)):
        if storage.exists(storage.join(place, manifest.FILE_NAME)):
            return place
    options = IngestOptions(
        source=source,
        out=str(out),
        short_side=short_side(resolution),
        flip_changes_label=flip_changes_label,
    )
    rows = sources.read(options).rows
    if not any(split_names.is_held_out(row.split) for row in rows):
        options = dataclasses.replace(options, hold_out=possible_share(rows, share, options))
    report = ingest(options)
    lost = report.rejected.total()
    if report.bad_share > options.max_bad:
        print(f"warning: {lost} of {report.rows} videos cannot be used; see {out}/rejected.jsonl")
    return str(out)


def short_side(resolution: int) -> int:
    """Pixels of the stored short side for crops of `resolution`: room to crop, an even number."""
    wanted = min(resolution * 3 // 2, 256) if resolution <= 224 else resolution * 8 // 7
    return wanted + wanted % 2


def possible_share(rows: Sequence[Row], share: float, options: IngestOptions) -> float:
    """`share`, or the next larger one that leaves a video on either side; else a ValueError."""
    if len({row.split for row in rows}) > 1:
        raise ValueError(
            f"{options.source} names the splits {', '.join(sorted({row.split for row in rows}))}, "
            "none of them test or val; name the one that is kept from training so"
        )
    groups = {hold_out.group_of(row) for row in rows}
    for tried in (share, *(each for each in SHARES if each > share)):
        taken = sum(hold_out.is_held_out(group, tried) for group in groups)
        if 0 < taken < len(groups):
            return tried
    raise ValueError(
        f"{options.source}: source videos found: {len(groups)}, of which none can be "
        "kept from training: each falls on its side by a hash of its name. Give more videos, or a "
        "table with the columns path,split"
    )


def clips_of(directory: str) -> Clips:
    """What a set holds.

    Raises:
      ValueError: no pixels in it, no split to train on, or none that is kept from training.
    """
    found = manifest.load(directory)
    if found.media == "features":
        raise ValueError(
            f"{directory} holds features without pixels; pre-training goes on with videos"
        )
    test = split_names.to_evaluate(list(found.splits))
    left = [name for name in found.splits if not split_names.is_held_out(name)]
    train = next((name for name in left if name.lower() in split_names.TRAIN), "".join(left[:1]))
    if not train or not split_names.is_held_out(test):
        raise ValueError(
            f"{directory} has the splits {', '.join(found.splits)}; expected one to train on and "
            "one called test or val, which the probes are scored on: `ivj ingest --hold-out 0.2` "
            "keeps a part back"
        )
    learned, kept = found.splits[train], found.splits[test]
    labelled = sum(learned.label_counts) and sum(kept.label_counts)
    counts = learned.label_counts if labelled else ()
    return Clips(found.directory, train, test, learned.records, kept.records, counts)


def check_probes(names: Sequence[str], clips: Clips, objective: str) -> None:
    """ValueError for a probe that does not exist, or that needs what is not there."""
    for name in names:
        if name == PIXELS and objective != "masked_pixels":
            raise ValueError(
                f"{clips.directory} has no labels of two classes and {clips.tested} clips to probe "
                f"on; without labels expected {LEAST_CLIPS} (--hold_out keeps more from training)"
            )
        if name not in EVALUATORS:
            raise ValueError(f"--probes={name}: {suggest(name, EVALUATORS)}")
        if clips.classes < 2 and name in (LINEAR, NEIGHBOURS, "attentive_probe", "concat_probe"):
            raise ValueError(
                f"--probes={name} needs labels of two classes or more in both splits of "
                f"{clips.directory}, found {clips.classes}; leave --probes out"
            )


def headline(label: str, metrics: Mapping[str, float]) -> str:
    """The name of the number that a probe is judged by: accuracy, where it has one."""
    wanted = (*HEADLINE.get(label, ()), "top1")
    return next((name for name in wanted if name in metrics), next(iter(metrics)))
