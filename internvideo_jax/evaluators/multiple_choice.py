"""Which of a few texts fits a video."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_pipelines.records import schema
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.published import video_text as presets
from internvideo_jax.evaluators.video_text import (
    Videos,
    VideoTextTask,
    embed_videos,
    some,
)
from internvideo_jax.tasks import Input, Result

COLUMNS, CLASSES = "columns", "classes"
TIES = ("share", "first")
LISTED = 100  # questions in the result's table


@dataclasses.dataclass(frozen=True)
class Question:
    """Texts for a video, one of them right."""

    options: tuple[str, ...]
    answer: int  # from 0


@dataclasses.dataclass(frozen=True)
class MultipleChoice(VideoTextTask):
    """The option with the highest cosine is the choice.

    `options` says where the questions are:
      `columns`: in the records, as extra columns `options` (a JSON list of texts) and `answer`
        (a whole number);
      `classes`: the class names are the options of every video, its label is the answer;
      a path: a JSONL file with a row {"id": ..., "options": [...], "answer": ...} per question,
        `id` being that of the record; a video may have several.
    """

    name: str = "multiple_choice"
    preset: str = ""  # whose settings these are meant to be (video_text_presets.py); "": nobody's
    options: str = COLUMNS
    first_answer: int = 0  # the answer that means the first option: 1 in LSMDC's files
    # Several options with the highest score: `share` counts 1 / their number if the answer is one
    # of them, so that a model that knows nothing is at chance; `first` takes the first (argmax).
    ties: str = "share"

    @classmethod
    def of_preset(cls, name: str, *, resolution: int, batch: int, frames: int = 0) -> Self:
        """An evaluator with the settings of a published test; arguments as in `settings`."""
        found = presets.find(presets.CHOICE, name)
        return cls(
            **presets.settings(name, found, resolution=resolution, batch=batch, frames=frames)
        )

    def inputs(self) -> tuple[Input, ...]:
        """The split of the questions."""
        labelled = self.options == CLASSES
        return (Input(self.data, self.split, self.views, labelled, seconds=self.seconds),)

    def check(self, context: EvalContext) -> None:
        """ValueError for options that are unknown, or that the model cannot read as text."""
        if self.ties not in TIES:
            raise ValueError(f"unknown ties {self.ties!r}; known: {', '.join(TIES)}")
        self._preset()
        super().check(context)
        if self.options not in (COLUMNS, CLASSES):
            read_questions(self.options, self.first_answer)

    def run(self, context: EvalContext) -> Result:
        """The option nearest to the video is the answer; the share of right ones."""
        videos = embed_videos(context, *self.inputs(), title=self.name)
        asked, without, unknown = self._questions(videos)
        encoder = self.text_encoder(context)
        shared = self.options == CLASSES  # the same options again and again
        texts = [text for _, each in (asked[:1] if shared else asked) for text in each.options]
        empty = {text for text in set(texts) if self.is_empty(text)}
        for video, question in asked if empty else ():
            if found := empty.intersection(question.options):
                raise ValueError(
                    f"{videos.name(video)}: nothing is left of the option {found.pop()!r} after "
                    "cleaning; expected a text"
                )
        embedded = encoder(texts).astype(np.float64)
        embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
        credits, rows, tied, at = [], [], 0, 0
        for video, question in asked:
            count = len(question.options)
            options = embedded[at : at + count]
            at += 0 if shared else count
            # Not a matrix product, whose rows may add up in different orders: equal texts tie.
            scores = (options * videos.values[video].astype(np.float64)).sum(axis=1)
            best = np.flatnonzero(scores == scores.max())
            tied += len(best) > 1
            credits.append(_credit(best, question.answer, self.ties))
            if len(rows) < LISTED:
                rows.append(_row(videos.name(video), question, scores))
        return Result(
            metrics={
                "accuracy": float(np.mean(credits)),
                "questions": float(len(asked)),
                "chance": float(np.mean([1 / len(question.options) for _, question in asked])),
                "tied": tied / len(asked),  # share whose result depends on the rule
            },
            protocol={
                **self.protocol(videos, encoder),
                "options": self.options,
                "ties": self.ties,
                "videos_without_question": without,
                "questions_without_video": unknown,
                "truncated_options": encoder.cut(texts),
                **presets.compared(self.preset, self._preset(), self, context.model.config),
            },
            tables={"questions": rows},
        )

    def _questions(self, videos: Videos) -> tuple[list[tuple[int, Question]], int, int]:
        """(video, question) in the order of the videos; videos without; questions without.

        Raises:
          ValueError: no question for any video, or one that makes no sense.
        """
        threads, unknown, hint = self.views.reader.threads, 0, ""
        if self.options == CLASSES:
            names = tuple(videos.dataset.classes)
            found = [[Question(names, int(label))] if label >= 0 else [] for label in videos.label]
        elif self.options == COLUMNS:
            found = videos.records(lambda record: _of_columns(record, self.first_answer), threads)
        else:
            listed = read_questions(self.options, self.first_answer)
            ids = videos.records(lambda record: record.media_id, threads)
            found = [listed.get(name, []) for name in ids]
            known = set(ids)
            unknown = sum(len(rows) for name, rows in listed.items() if name not in known)
            hint = f"; ids of the file: {some(list(listed))}; of the records: {some(ids)}"
        asked = [(video, each) for video, rows in enumerate(found) for each in rows]
        if not asked:
            place = videos.dataset
            raise ValueError(
                f"no record of split {place.split!r} of {place.manifest.directory} has a question "
                f"with options={self.options!r}{hint}"
            )
        return asked, sum(not rows for rows in found), unknown

    def _preset(self) -> presets.ChoicePreset | None:
        return presets.find(presets.CHOICE, self.preset) if self.preset else None


def read_questions(path: str, first_answer: int = 0) -> dict[str, list[Question]]:
    """The questions of a JSONL file by record id; ValueError with the line that is wrong."""
    found: dict[str, list[Question]] = {}
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: is not JSON ({error})") from error
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise ValueError(
                    f'{where}: expected {{"id": TEXT, "options": [...], "answer": N}}, found '
                    f"{line.strip()[:80]}"
                )
            found.setdefault(row["id"], []).append(_question(row, where, first_answer))
    if not found:
        raise ValueError(f"{path}: holds no questions")
    return found


def _of_columns(record: schema.Record, first_answer: int) -> list[Question]:
    row: dict[str, Any] = dict(record.extra)
    if "options" not in row:
        return []
    where = f"record {record.media_id!r}"
    try:
        row["options"] = json.loads(row["options"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: its column options is {row['options']!r}, expected a JSON list of texts"
        ) from error
    return [_question(row, where, first_answer)]


def _question(row: Mapping[str, Any], where: str, first_answer: int) -> Question:
    options, answer = row.get("options"), row.get("answer")
    if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
        raise ValueError(f"{where}: options is {options!r}, expected a list of texts")
    if len(options) < 2:
        raise ValueError(f"{where}: has {len(options)} options, expected at least 2")
    if not isinstance(answer, int) or isinstance(answer, bool):
        raise ValueError(f"{where}: answer is {answer!r}, expected the number of an option")
    if not 0 <= answer - first_answer < len(options):
        raise ValueError(
            f"{where}: answer {answer} is outside {first_answer} to "
            f"{first_answer + len(options) - 1}; first_answer says which number means the first "
            "option"
        )
    return Question(tuple(options), answer - first_answer)


def _credit(best: np.ndarray, answer: int, ties: str) -> float:
    if ties == "first":
        return float(best[0] == answer)
    return float(answer in best) / len(best)


def _row(name: str, question: Question, scores: Sequence[float] | np.ndarray) -> dict[str, Any]:
    chosen = int(np.argmax(scores))
    return {
        "id": name,
        "chosen": question.options[chosen],
        "right": question.options[question.answer],
        "score": float(scores[chosen]),
        "score_of_right": float(scores[question.answer]),
    }
