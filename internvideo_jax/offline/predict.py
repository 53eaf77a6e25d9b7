"""The most likely classes of videos: files, a folder, a list, or a split of shards.

    ivj predict clips/ --checkpoint=runs/finetune --out=predictions.json
    ivj predict clips/ --checkpoint=runs/viclip --labels="a dog runs,rain"

A classifier gives its own classes; a model that reads texts gives those of --labels. Files are
decoded as the ingest does, and looked at in the views of the config's evaluator `test` (or of
--protocol), so a file scores as its record would. One that cannot be used is counted and listed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from data_pipelines.commands.outputs import check_file
from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.ingest.file_views import FileViews, list_files
from data_pipelines.records import manifest
from data_pipelines.records.storage import write_atomic
from internvideo_jax import cli
from internvideo_jax.checkpoint.classes import HEAD
from internvideo_jax.checkpoint.initial import initialise, load_source
from internvideo_jax.checkpoint.metadata import weights_provenance
from internvideo_jax.config import TrainConfig, as_plain
from internvideo_jax.evaluate import with_protocol
from internvideo_jax.evaluators import metrics
from internvideo_jax.evaluators.base import EvalContext, Pass, describe_views
from internvideo_jax.evaluators.classification import Accuracy, forward
from internvideo_jax.evaluators.per_video import TOP, best, jsonl, sheet
from internvideo_jax.evaluators.published import templates
from internvideo_jax.evaluators.published.templates import TEMPLATES
from internvideo_jax.evaluators.video_text import (
    VideoTextTask,
    embeddings,
    logit_scale,
)
from internvideo_jax.inference.vectors import gather, mean_of_views, no_direction
from internvideo_jax.inference.weights import on_devices
from internvideo_jax.offline.by_shard import say
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.protocols import Input, clip_of
from internvideo_jax.run.build import with_classes

SUFFIXES = (".json", ".jsonl", ".csv")
SHOWN = 20  # videos, and damaged ones, that are printed


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was found.

    Attributes:
      names: of the videos that could be used, V.
      scores: (V, K) float64, rows add to 1.
      labels: K names.
      skipped: (name, reason) of the videos that could not be used.
      notes: what is odd about each that was used, V; mostly empty.
      protocol: how they were looked at.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    labels: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    protocol: dict[str, Any]

    def rows(self, count: int) -> list[dict[str, Any]]:
        """A row per video with its `count` best labels, then one for each that was skipped."""
        rows: list[dict[str, Any]] = []
        for name, scores, note in zip(self.names, self.scores, self.notes, strict=True):
            odd = {"note": note} if note else {}
            rows.append({"video": name, "top": best(scores, self.labels, count), **odd})
        return rows + [{"video": name, "skipped": why} for name, why in self.skipped]


class Predictor:
    """A model with its parameters on the devices, and the names of what it can say.

    Args:
      labels: classes; empty: those that the checkpoint was trained on.
      template: of the prompts of a model that reads texts (evaluators/templates.py).

    Raises:
      ValueError: a model that neither classifies nor reads texts; names that do not fit it.
    """

    def __init__(
        self,
        config: TrainConfig,
        checkpoint: str,
        *,
        labels: Sequence[str] = (),
        template: str = "plain",
        threads: int = 2,
    ):
        self.reads_text = config.model.inputs.text is not None
        traits = config.model.traits
        if not self.reads_text and (traits.classifier is None or traits.heads is not None):
            raise ValueError(
                f"config.model is {config.model.name!r}, which gives no classes; take a fine-tuned "
                "classifier, or a model that reads texts, such as viclip, with --labels"
            )
        if self.reads_text and not labels:
            raise ValueError("--labels=a,b,c or --labels=@FILE is needed: the model reads texts")
        self.template = template
        if not self.reads_text:
            labels, config = _classes(config, checkpoint, labels)
        self.config, self.labels, self.threads = config, tuple(labels), threads
        self.views, self.merge = _views(config, text=self.reads_text)
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        model = config.model.model()
        self.context = EvalContext(model, mesh, config.data, config.seed)
        if self.reads_text:
            self._task = VideoTextTask(name="predict", clean=config.data.text_clean)
            self._encoder = self._task.text_encoder(self.context)
        params, report = initialise(checkpoint, model.shapes(), config.model)
        report.require_all()
        self.context.params = on_devices(config, model, params, mesh)
        self.provenance = {
            **weights_provenance(checkpoint, self.context.params),
            "model": as_plain(config.model),
        }

    def files(self, places: Sequence[str]) -> Prediction:
        """Of the videos that `list_files` finds there."""
        rows = [row for place in places for row in list_files(place)]
        views = dataclasses.replace(self.views, batch=1)
        stream = FileViews(rows, views, threads=self.threads)
        record, scores = self._scores(stream)
        names = [row.name for row in rows]
        if len(set(names)) < len(names):  # parts of one file, or folders with the same names
            names = [row.path if row.start is None else f"{row.path} {row.id}" for row in rows]
        return self._prediction(names, record, scores, stream.problems, stream.notes)

    def shards(self, directory: str, split: str = "") -> Prediction:
        """Of the records of a split; by default as evaluators choose it."""
        reader = dataclasses.replace(self.views.reader, on_corrupt="substitute")
        views = dataclasses.replace(self.views, reader=reader)
        stream = self.context.open(Input(directory, split, views, labelled=False))
        record, scores = self._scores(stream)
        dataset, used = stream.dataset, set(record.tolist())
        names = [f"record {number}" for number in range(len(dataset))]
        for number in used:
            names[number] = dataset.load(number).media_id or names[number]
        why = "the record cannot be read; `ivj data verify` says more"
        lost = {number: why for number in range(len(dataset)) if number not in used}
        return self._prediction(names, record, scores, lost, {})

    def _scores(self, stream: Pass) -> tuple[np.ndarray, np.ndarray]:
        """(V,) numbers of the videos that can be used, ascending, and (V, K) scores."""
        if self.reads_text:
            rows = gather(embeddings(self.context, stream, "predict"))
        else:
            build = lambda: forward(self.context.model.apply)  # noqa: E731
            rows = gather(self.context.outputs(stream, "logits", build, "predict"))
        if not len(rows):
            return rows.record, np.zeros((0, len(self.labels)))
        if not np.isfinite(rows.values).all():
            raise ValueError(
                "the model gives values that are not finite, so there is nothing to rank: the "
                "checkpoint is broken"
            )
        if not self.reads_text:
            record, scores = metrics.merge_views(rows.record, rows.view, rows.values, self.merge)
            if self.merge == "logit":
                scores = metrics.softmax(scores)
            elif self.merge == "probability_sum":
                scores /= scores.sum(axis=1, keepdims=True)
            return record, scores
        rows = rows.sorted()
        values = rows.values.astype(np.float32)
        if no_direction(values).any():
            raise ValueError("the model gives an embedding of zero: the checkpoint is broken")
        record, _, mean = mean_of_views(rows.record, values)
        text = self._encoder(self._prompts()).reshape(len(self.labels), -1, mean.shape[1])
        scale = logit_scale(self.context.params, 0.0)
        return record, metrics.softmax(scale * templates.class_scores(mean, text))

    def _prompts(self) -> list[str]:
        prompts = templates.prompts(self.labels, templates.named(self.template))
        for text in prompts:
            if self._task.is_empty(text):
                raise ValueError(f"nothing is left of the prompt {text!r} after cleaning")
        return prompts

    def _prediction(
        self,
        names: Sequence[str],
        record: np.ndarray,
        scores: np.ndarray,
        problems: dict[int, str],
        notes: dict[int, str],
    ) -> Prediction:
        how: dict[str, Any] = {"merge": self.merge}
        if self.reads_text:
            how = {"template": self.template, "tokenizer": self._encoder.tokenizer.identity}
        used: list[int] = record.tolist()
        return Prediction(
            tuple(names[number] for number in used),
            scores,
            self.labels,
            tuple((names[number], problems[number]) for number in sorted(problems)),
            tuple(notes.get(number, "") for number in used),
            {**describe_views(self.views), **how},
        )


def _classes(
    config: TrainConfig, checkpoint: str, labels: Sequence[str]
) -> tuple[Sequence[str], TrainConfig]:
    """Names of the classes of a checkpoint's head, and the config with their number."""
    source = load_source(checkpoint)
    if HEAD[0] not in source.params:
        raise ValueError(f"{checkpoint} has no classes: it is no fine-tuned classifier")
    count = source.params[HEAD[0]].shape[-1]
    if labels and len(labels) != count:
        raise ValueError(f"--labels has {len(labels)} names, {checkpoint} has {count} classes")
    known = labels or source.classes or [f"class {number}" for number in range(count)]
    return known, with_classes(config, count)


def _views(config: TrainConfig, *, text: bool) -> tuple[ViewConfig, str]:
    """How videos are looked at, and how their views are merged: as the config's test does."""
    for found in config.evals.values():
        if not text and isinstance(found, Accuracy):
            return found.views, found.merge
        if text and isinstance(found, VideoTextTask):
            return found.views, ""
    takes = clip_of(config.model)
    size = {"frames": takes.frames, "resolution": takes.resolution}
    if text:
        clip = dataclasses.replace(VideoTextTask().views.clip, **size)
        return dataclasses.replace(VideoTextTask().views, clip=clip), ""
    return ViewConfig(clip=ClipConfig(**size, sampling="stepped")), "probability"


def write(prediction: Prediction, out: Path, count: int, provenance: dict[str, Any]) -> None:
    """The rows as JSON with what made them, as JSONL, or as CSV, by the suffix of `out`."""
    rows = prediction.rows(count)
    if out.suffix == ".json":
        content = {
            **provenance,
            "protocol": prediction.protocol,
            "labels": list(prediction.labels),
            "videos": [row for row in rows if "top" in row],
            "skipped": [row for row in rows if "top" not in row],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    else:
        text = sheet(rows) if out.suffix == ".csv" else jsonl(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(str(out), text.encode("utf-8", "backslashreplace"))


def report(prediction: Prediction) -> None:
    """Prints the best labels of the first videos, and what was skipped."""
    for name, scores in list(zip(prediction.names, prediction.scores, strict=True))[:SHOWN]:
        found = best(scores, prediction.labels, 3)
        say(f"{name}: " + ", ".join(f"{each['label']} {each['score']:.3f}" for each in found))
    if (rest := len(prediction.names) - SHOWN) > 0:
        say(f"and {rest} more")
    say(f"{len(prediction.names)} videos, {len(prediction.skipped)} skipped")
    for name, why in prediction.skipped[:SHOWN]:
        say(f"  skipped {name}: {why}")


def predict(
    config: TrainConfig,
    checkpoint: str,
    places: Sequence[str],
    outs: Sequence[Path] = (),
    *,
    labels: Sequence[str] = (),
    template: str = "plain",
    count: int = TOP,
    split: str = "",
    threads: int = 2,
) -> Prediction:
    """What the command does.

    Args:
      places: files, folders and lists, or one directory of shards.
      outs: files of the rows (`write`).
      count: labels of a row.

    Raises:
      ValueError: nothing that can be used; settings that do not fit (`Predictor`).
    """
    shards = [place for place in places if (Path(place) / manifest.FILE_NAME).is_file()]
    if shards and len(places) > 1:
        raise ValueError(f"{shards[0]} is a directory of shards; give it alone")
    for place in places:
        if not shards:
            list_files(place)  # what is not there shows before the model is loaded
    predictor = Predictor(config, checkpoint, labels=labels, template=template, threads=threads)
    found = predictor.shards(shards[0], split) if shards else predictor.files(places)
    report(found)
    if not found.names:
        raise ValueError("none of the videos can be used")
    for out in outs:
        write(found, out, count, predictor.provenance)
        say(f"written to {out}")
    return found


def main() -> None:
    """The command `ivj predict`."""
    flags.adopt_module_key_flags(cli)
    checkpoint = flags.DEFINE_string(
        "checkpoint",
        None,
        "Run directory, one of its steps, or a .safetensors / .pth file. A run knows its config; a "
        "file needs --config.",
    )
    outs = flags.DEFINE_list("out", [], "Files to write, with commas: .json, .jsonl, .csv.")
    labels = flags.DEFINE_string(
        "labels",
        "",
        "Classes, a,b,c or @FILE with one a line: of a model that reads texts, or names for a "
        "classifier whose file has none.",
    )
    template = flags.DEFINE_enum("template", "plain", list(TEMPLATES), "Prompts of --labels.")
    protocol = flags.DEFINE_string(
        "protocol", "", "Views of a published test protocol, instead of the config's."
    )
    top = flags.DEFINE_integer("top", TOP, "Labels of each video.", lower_bound=1)
    split = flags.DEFINE_string("split", "", "Of shards; default: test, val or train.")
    threads = flags.DEFINE_integer("threads", 2, "Files decoded at a time.", lower_bound=1)

    def run(words: Sequence[str]) -> int:
        use_compile_cache(cli.COMPILE_CACHE.value)
        if not words or not checkpoint.value:
            raise ValueError(
                "videos and --checkpoint are needed: ivj predict clips/ "
                "--checkpoint=RUN; see --help"
            )
        for out in outs.value:
            check_file("--out", out, SUFFIXES)
        config = cli.typed_config()
        if protocol.value:
            config = with_protocol(config, protocol.value, cli.overridden())
        predict(
            config,
            checkpoint.value,
            words,
            tuple(Path(out) for out in outs.value),
            labels=cli.read_labels(labels.value),
            template=template.value,
            count=top.value,
            split=split.value,
            threads=threads.value,
        )
        return 0

    cli.run(run, words=True, stored=True)


if __name__ == "__main__":
    main()
