"""Finding videos by text and texts by video."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np

from data_pipelines.limits import limited
from data_pipelines.records.dataset import Dataset
from internvideo_jax.evaluators import retrieval_metrics
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.published import video_text as presets
from internvideo_jax.evaluators.retrieval_picture import Answer, Query, query_sheet
from internvideo_jax.evaluators.video_text import (
    Videos,
    VideoTextTask,
    embed_videos,
    first_captions,
    logit_scale,
)
from internvideo_jax.parallel.multihost import is_main
from internvideo_jax.tasks import Result

CAPTIONS = ("all", "first", "paragraph")
FOUND = 5  # videos shown per query


@dataclasses.dataclass(frozen=True)
class TextVideoRetrieval(VideoTextTask):
    """Every caption is a query for its video, and every video one for its captions.

    Metrics `t2v_...` and `v2t_...` are of the plain similarities, those below `dsl/` of the dual
    softmax, which looks at all queries at once and is never mixed with the plain ones.
    `of_preset` gives the settings of a published table (video_text_presets.py).
    """

    name: str = "retrieval"
    preset: str = ""  # whose settings these are meant to be (video_text_presets.py); "": nobody's
    # Captions of a record: `all` are texts of their own, the `first` only, or all joined by spaces
    # to a `paragraph`.
    captions: str = "all"
    # What cosines are multiplied by, for the dual softmax: 1 in ViCLIP; 0 = 1 / temperature of the
    # model (InternVideo1).
    scale: float = limited(1.0, least=0)
    ties: str = "mid"  # retrieval_metrics.py, TIES: optimistic | mid | pessimistic | later | ...
    video_to_text: str = "captions"  # retrieval_metrics.py: captions | grouped
    block: int = limited(4096, least=1)  # texts and videos compared at a time; bounds the memory
    pictured: int = 8  # queries drawn with the videos they find

    @classmethod
    def of_preset(cls, name: str, *, resolution: int, batch: int, frames: int = 0) -> Self:
        """An evaluator with the settings of a published test; arguments as in `settings`."""
        found = presets.find(presets.RETRIEVAL, name)
        return cls(
            **presets.settings(name, found, resolution=resolution, batch=batch, frames=frames)
        )

    def check(self, context: EvalContext) -> None:
        """ValueError for a rule that is unknown, or captions that the model cannot read."""
        for field, value, known in (
            ("captions", self.captions, CAPTIONS),
            ("ties", self.ties, retrieval_metrics.TIES),
            ("video_to_text", self.video_to_text, retrieval_metrics.VIDEO_TO_TEXT),
        ):
            if value not in known:
                raise ValueError(f"unknown {field} {value!r}; known: {', '.join(known)}")
        if self.block < 1 or self.pictured < 0:
            raise ValueError(
                f"block = {self.block}, pictured = {self.pictured}: expected at least 1 and 0"
            )
        self._preset()
        super().check(context)
        dataset = context.dataset(*self.inputs())
        if next(first_captions(dataset), None) is None:
            raise ValueError(_no_captions(dataset))

    def run(self, context: EvalContext) -> Result:
        """Recalls and ranks from texts to videos and back."""
        videos = embed_videos(context, *self.inputs(), title=self.name)
        texts, text_video, empty = self._texts(videos)
        encoder = self.text_encoder(context)
        text = encoder(texts)
        scale = logit_scale(context.params, self.scale)
        found = retrieval_metrics.retrieve(
            text,
            videos.values,
            text_video,
            scale=scale,
            ties=self.ties,
            video_to_text=self.video_to_text,
            block=self.block,
        )
        del found["texts_left_out"]  # texts of videos that cannot be read are not among these
        queries = self._queries(videos, texts, text, text_video)
        return Result(
            # A prefix of its own, so that nobody takes one for the other.
            metrics={key.replace("dsl_", "dsl/", 1): value for key, value in found.items()},
            protocol={
                **self.protocol(videos, encoder),
                "captions": self.captions,
                "scale": scale,
                "ties": self.ties,
                "ties_rule": retrieval_metrics.TIES[self.ties],
                "video_to_text": self.video_to_text,
                "empty_captions": empty,
                "truncated_captions": encoder.cut(texts),
                "videos_without_caption": len(videos.record) - len(np.unique(text_video)),
                **presets.compared(self.preset, self._preset(), self, context.model.config),
            },
            tables={"queries": [query.row() for query in queries]},
            pictures={"queries": query_sheet(videos, queries)} if queries and is_main() else {},
        )

    def _texts(self, videos: Videos) -> tuple[list[str], np.ndarray, int]:
        """Texts, the video that each belongs to, and how many captions were empty."""
        texts: list[str] = []
        owner: list[int] = []
        empty = 0
        threads = self.views.reader.threads
        for video, captions in enumerate(
            videos.records(lambda record: tuple(record.captions), threads)
        ):
            kept = [caption for caption in captions if not self.is_empty(caption)]
            empty += len(captions) - len(kept)
            if self.captions == "first":
                kept = kept[:1]
            elif self.captions == "paragraph" and kept:
                kept = [" ".join(kept)]
            texts += kept
            owner += [video] * len(kept)
        if not texts:
            raise ValueError(_no_captions(videos.dataset, empty))
        return texts, np.array(owner), empty

    def _queries(
        self, videos: Videos, texts: list[str], text: np.ndarray, text_video: np.ndarray
    ) -> list[Query]:
        """Texts spread evenly over the set, with the videos they find."""
        count = min(self.pictured, len(texts))
        score = retrieval_metrics.of_embeddings(text, videos.values)
        queries = []
        for number in np.linspace(0, len(texts) - 1, count).round().astype(int).tolist():
            row = score(np.array([number]), slice(0, len(videos.values)))[0]
            own = int(text_video[number])
            best = np.argsort(-row, kind="stable")[:FOUND].tolist()
            answers = [
                Answer(video, videos.name(video), float(row[video]), video == own)
                for video in (best if own in best else [*best, own])
            ]
            rank = 1 + int((row > row[own]).sum())
            queries.append(Query(texts[number], rank, tuple(answers)))
        return queries

    def _preset(self) -> presets.RetrievalPreset | None:
        return presets.find(presets.RETRIEVAL, self.preset) if self.preset else None


def _no_captions(dataset: Dataset, empty: int = 0) -> str:
    some = f"only empty captions ({empty})" if empty else "no captions"
    return (
        f"split {dataset.split!r} of {dataset.manifest.directory} has {some}, which retrieval "
        "needs; give them to the ingest as a column caption or captions"
    )
