"""Answers to texts from an index: ranked clips, and classes of clips."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from data_pipelines.text.caption import replace_surrogates
from internvideo_jax.evaluators.metrics import softmax
from internvideo_jax.evaluators.published import templates
from internvideo_jax.search.encoder import SearchEncoder
from internvideo_jax.search.index import VideoIndex, directions

LONGEST = 1000  # characters of a query that are looked at
MOST = 100  # results of one query
LONGEST_LABEL = 200  # characters
REMEMBERED = 8  # lists of classes whose vectors are kept


class BadQuestion(ValueError):
    """A text or a list that cannot be answered; the message is for the person who asked."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """A clip of the index with its rank from 1 and its cosine to the query."""

    rank: int
    clip: int
    similarity: float


@dataclasses.dataclass(frozen=True)
class FoundClips:
    """The clips for one query.

    Attributes:
      query: as it was understood.
      note: what was done to it; mostly empty.
    """

    query: str
    note: str
    hits: tuple[Hit, ...]


class Answers:
    """Thread-safe questions to one index.

    Raises (all methods):
      BadQuestion: the text says nothing, or a list breaks its rules.
    """

    def __init__(self, index: VideoIndex, encoder: SearchEncoder):
        self.index, self.encoder = index, encoder
        self._classes: collections.OrderedDict[tuple[str, ...], np.ndarray] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def search(self, query: str, count: int = 10) -> FoundClips:
        """The `count` clips nearest to a text."""
        if not 1 <= count <= MOST:
            raise BadQuestion(f"count is {count}, expected 1 to {MOST}")
        text, notes = replace_surrogates(query).strip(), []
        if len(text) > LONGEST:
            notes.append(f"cut to the first {LONGEST} of {len(text)} characters")
            text = text[:LONGEST]
        if not text:
            raise BadQuestion("the query is empty; say what should happen in the video")
        some, whole = self.encoder.ids.words(text)
        if not some:
            raise BadQuestion("the query has no word that the model reads")
        if not whole:
            notes.append(
                f"the model reads its first {self.encoder.ids.tokenizer.length - 2} tokens"
            )
        if not self.index.clips:
            return FoundClips(text, "; ".join(notes), ())
        order, similarity = self.index.nearest(self.encoder.text([text])[0], count)
        hits = [
            Hit(rank, int(clip), float(value))
            for rank, (clip, value) in enumerate(zip(order, similarity, strict=True), 1)
        ]
        return FoundClips(text, "; ".join(notes), tuple(hits))

    def label(
        self, clips: Sequence[int], labels: Sequence[str], template: str = "plain"
    ) -> np.ndarray:
        """Zero-shot probabilities: softmax of the cosines over the model's temperature.

        Args:
          clips: numbers of N clips of the index.
          labels: K names of classes.
          template: name in evaluators/templates.py; its prompts' cosines are averaged.

        Returns:
          (N, K) float64, rows add to 1.
        """
        if outside := [clip for clip in clips if not 0 <= clip < len(self.index.clips)]:
            raise BadQuestion(f"there is no clip {outside[0]}; clips are 0 to "
                              f"{len(self.index.clips) - 1}")  # fmt: skip
        names = self.check_labels(labels)
        try:
            prompts = templates.named(template)
        except ValueError as error:
            raise BadQuestion(str(error)) from error
        text = self._class_vectors(names, template, prompts)
        if not len(clips):
            return np.zeros((0, len(names)))
        scores = templates.class_scores(self.index.embeddings[np.asarray(clips)], text)
        return softmax(scores / self.encoder.temperature)

    def check_labels(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Names without surrounding spaces."""
        names = tuple(replace_surrogates(label).strip() for label in labels)
        if not names:
            raise BadQuestion("no labels; give at least one")
        for name in names:
            if not name:
                raise BadQuestion("a label is empty")
            if len(name) > LONGEST_LABEL:
                raise BadQuestion(
                    f"the label {name[:20]!r}... has {len(name)} characters, expected at most "
                    f"{LONGEST_LABEL}"
                )
            if not self.encoder.ids.words(name)[0]:
                raise BadQuestion(f"the label {name!r} has no word that the model reads")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BadQuestion(f"the label {twice!r} is there twice")
        return names

    def _class_vectors(
        self, names: tuple[str, ...], template: str, prompts: Sequence[str]
    ) -> np.ndarray:
        """(K, A, E) of length 1."""
        key = (template, *names)
        with self._lock:
            if key in self._classes:
                self._classes.move_to_end(key)
                return self._classes[key]
        vectors = directions(self.encoder.text(templates.prompts(names, prompts)))
        vectors = vectors.reshape(len(names), len(prompts), -1)
        with self._lock:
            self._classes[key] = vectors
            while len(self._classes) > REMEMBERED:
                self._classes.popitem(last=False)
        return vectors


def clock(seconds: float) -> str:
    """`0:07.5`, as a player shows it."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{head}:{rest // 10:02}.{rest % 10}"
