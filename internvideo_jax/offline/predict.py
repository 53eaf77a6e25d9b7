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
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.ingest.file_views import FileViews, list_files
from data_pipelines.records import manifest, storage
from data_pipelines.records.outputs import check_file, local_only
from internvideo_jax import cli
from internvideo_jax.api.model import VideoModel
from internvideo_jax.checkpoint.metadata import weights_provenance
from internvideo_jax.config import TrainConfig, as_plain
from internvideo_jax.evaluate import with_protocol
from internvideo_jax.evaluators.base import Pass, describe_views
from internvideo_jax.evaluators.per_video import TOP, best, jsonl, sheet
from internvideo_jax.evaluators.published.templates import TEMPLATES
from internvideo_jax.inference.quantized import stated
from internvideo_jax.offline.by_shard import say
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.tasks import Input

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
      pixels: digest of what the model was shown (inference/pixels.py).
      seen: the same of each video that was used, V.
    """

    names: tuple[str, ...]
    scores: np.ndarray
    labels: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    protocol: dict[str, Any]
    pixels: dict[str, Any]
    seen: tuple[str, ...]

    def rows(self, count: int) -> list[dict[str, Any]]:
        """A row per video with its `count` best labels, then one for each that was skipped."""
        rows: list[dict[str, Any]] = []
        each = zip(self.names, self.scores, self.notes, self.seen, strict=True)
        for name, scores, note, seen in each:
            odd = {"note": note} if note else {}
            found = best(scores, self.labels, count)
            rows.append({"video": name, "top": found, "pixels": seen, **odd})
        return rows + [{"video": name, "skipped": why} for name, why in self.skipped]


class Predictor:
    """A model and the names of what it can say.

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
        reads_text, traits = config.model.inputs.text is not None, config.model.traits
        if not reads_text and (traits.classifier is None or traits.heads is not None):
            raise ValueError(
                f"config.model is {config.model.name!r}, which gives no classes; take a fine-tuned "
                "classifier, or a model that reads texts, such as viclip, with --labels"
            )
        if reads_text and not labels:
            raise ValueError("--labels=a,b,c or --labels=@FILE is needed: the model reads texts")
        self.model = VideoModel(config, checkpoint, labels=labels, threads=threads)
        if not self.model.labels:
            raise ValueError(f"{checkpoint} has no classes: it is no fine-tuned classifier")
        self.template, self.threads = template, threads
        self.views, self.merge = self.model.views(text=reads_text)

    def provenance(self) -> dict[str, Any]:
        """Which weights made a result, and of what model."""
        model = as_plain(self.model.config.model)
        return {
            **weights_provenance(self.model.checkpoint, self.model.params),
            **stated(self.model.context.model),
            "model": model,
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
        stream = self.model.context.open(Input(directory, split, views, labelled=False))
        record, scores = self._scores(stream)
        dataset, used = stream.dataset, set(record.tolist())
        names = [f"record {number}" for number in range(len(dataset))]
        for number in used:
            names[number] = dataset.load(number).media_id or names[number]
        why = "the record cannot be read; `ivj data verify` says more"
        lost = {number: why for number in map(int, dataset.used) if number not in used}
        return self._prediction(names, record, scores, lost, {})

    def _scores(self, stream: Pass) -> tuple[np.ndarray, np.ndarray]:
        self.model.context.look_anew()
        return self.model.scores(stream, self.model.labels, self.template)

    def _prediction(
        self,
        names: Sequence[str],
        record: np.ndarray,
        scores: np.ndarray,
        problems: dict[int, str],
        notes: dict[int, str],
    ) -> Prediction:
        how: dict[str, Any] = {"merge": self.merge}
        if self.model.reads_text:
            how = {"template": self.template, "tokenizer": self.model.tokenizer_identity}
        used: list[int] = record.tolist()
        seen = self.model.context.seen
        return Prediction(
            tuple(names[number] for number in used),
            scores,
            self.model.labels,
            tuple((names[number], problems[number]) for number in sorted(problems)),
            tuple(notes.get(number, "") for number in used),
            {**describe_views(self.views), **how},
            seen.content(),
            tuple(seen.of_record(number) for number in used),
        )


def write(
    prediction: Prediction,
    out: str | os.PathLike[str],
    count: int,
    provenance: dict[str, Any],
) -> None:
    """The rows as JSON with what made them, as JSONL, or as CSV, by the suffix of `out`."""
    rows, suffix = prediction.rows(count), os.path.splitext(out)[1]
    if suffix == ".json":
        content = {
            **provenance,
            "protocol": prediction.protocol,
            "pixels": prediction.pixels,
            "labels": list(prediction.labels),
            "videos": [row for row in rows if "top" in row],
            "skipped": [row for row in rows if "top" not in row],
        }
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    else:
        text = sheet(rows) if suffix == ".csv" else jsonl(rows)
    storage.make_directory(os.path.dirname(os.fspath(out)) or ".")
    storage.write_atomic(out, text.encode("utf-8", "backslashreplace"))


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
    outs: Sequence[str | os.PathLike[str]] = (),
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
    shards = [place for place in places if storage.exists(storage.join(place, manifest.FILE_NAME))]
    if shards and len(places) > 1:
        raise ValueError(f"{shards[0]} is a directory of shards; give it alone")
    for place in places:
        if not shards:
            local_only("videos", place)
            list_files(place)  # what is not there shows before the model is loaded
    predictor = Predictor(config, checkpoint, labels=labels, template=template, threads=threads)
    found = predictor.shards(shards[0], split) if shards else predictor.files(places)
    report(found)
    if not found.names:
        raise ValueError("none of the videos can be used")
    provenance = predictor.provenance() if outs else {}
    for out in outs:
        write(found, out, count, provenance)
        say(f"written to {out}")
    return found


def main() -> None:
    """The command `ivj predict`."""
    flags.adopt_module_key_flags(cli)
    checkpoint = flags.DEFINE_string(*cli.CHECKPOINT)
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
            check_file("--out", out, SUFFIXES, remote=True)
        config = cli.typed_config()
        if protocol.value:
            config = with_protocol(config, protocol.value, cli.overridden())
        predict(
            config,
            checkpoint.value,
            words,
            outs.value,
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
