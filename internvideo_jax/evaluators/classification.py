"""Top-1 and top-5 accuracy with several views per video."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import jax
import numpy as np

from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.limits import limited
from internvideo_jax.evaluators import metrics
from internvideo_jax.evaluators.base import EvalContext, describe_data, finite
from internvideo_jax.evaluators.per_video import Scored
from internvideo_jax.evaluators.published import protocols
from internvideo_jax.inference.steps import Forward
from internvideo_jax.inference.vectors import gather
from internvideo_jax.tasks import Input, Result
from internvideo_jax.telemetry.pictures import confusion_picture

CONFUSION = "Videos of each class (rows) by the class they are taken for (columns)."


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Scores of all clips x crops of a video are merged, then ranked.

    `of_protocol` gives the settings of a published table (protocols.py). The result says whose
    protocol it was and in which fields the run departed from it.
    """

    name: str = "classification"
    every: int = limited(0, least=-1)  # steps; 0 = only at the end, -1 = never
    data: str = ""  # default: the run's
    split: str = ""  # default: test, else val, else train
    # Whose settings views and merge are meant to be (protocols.py); empty: nobody's.
    protocol: str = ""
    views: ViewConfig = ViewConfig()
    merge: str = "probability"  # metrics.py: probability | logit | probability_sum
    mean_ap: bool = False  # also mAP over the classes, as reported for ActivityNet and HACS

    compares_texts: ClassVar[bool] = False

    @classmethod
    def of_protocol(cls, name: str, *, frames: int, resolution: int, batch: int) -> Self:
        """An evaluator with the views of a published protocol.

        Args:
          frames, size: of a clip, as the model takes it.
          batch: videos read at a time over all hosts.
        """
        views = ViewConfig(clip=ClipConfig(frames=frames, resolution=resolution), batch=batch)
        return cls(views=views).with_protocol(name)

    def with_protocol(self, name: str) -> Self:
        """The same evaluator under another protocol; ValueError when there is none of that name."""
        found = protocols.find(name)
        return dataclasses.replace(
            self,
            protocol=name,
            views=found.views(self.views),
            merge=found.merge,
            mean_ap=found.mean_ap,
        )

    def inputs(self) -> tuple[Input, ...]:
        """The labelled split that is tested."""
        if self.protocol:
            protocols.find(self.protocol)
        return (Input(self.data, self.split, self.views, labelled=True, head=True),)

    def check(self, context: EvalContext) -> None:
        """`inputs` says it all."""

    def run(self, context: EvalContext) -> Result:
        """Scores of every video, merged over its views, and what of them is right."""
        views = context.open(*self.inputs())
        classes = views.dataset.classes
        head = context.model.config.traits.classifier
        if head is None or len(classes) != head.classes:
            raise ValueError(
                f"the model has {head.classes if head else 'no'} classes, the dataset "
                f"{views.dataset.manifest.directory} has {len(classes)}"
            )
        rows = gather(
            finite(
                context.outputs(views, "logits", lambda: forward(context.model.apply), self.name),
                "scores",
            )
        )
        labelled = rows.where(rows.label >= 0)
        videos, scores = metrics.merge_views(
            labelled.record, labelled.view, labelled.values, self.merge
        )
        truth = dict(zip(rows.record.tolist(), rows.label.tolist(), strict=True))
        label = np.array([truth[video] for video in videos.tolist()])
        table = metrics.confusion(scores, label, len(classes))
        return Result(
            metrics=self._metrics(scores, label, table),
            protocol={
                **describe_data(views.dataset, self.views),
                "merge": self.merge,
                **self._preset(),
                "ties": "first",
                "mean_class_over": "classes of labels or predictions",
                "unreadable": views.skipped,
                "unlabelled": len(rows) - len(labelled),
            },
            tables={
                "per_class": per_class(table, classes),
                "confusion": table.tolist(),
                "classes": list(classes),
                # Equal digests: equal scores of every video to the last bit.
                "scores_sha256": hashlib.sha256(scores.tobytes()).hexdigest(),
            },
            pictures={"confusion": confusion_picture(table, classes)},
            captions={"confusion": CONFUSION},
            sheets={"per_class": per_class_sheet(table, classes)},
            scored=Scored(views.dataset, videos, label, scores, classes),
        )

    def _metrics(
        self, scores: np.ndarray, label: np.ndarray, table: np.ndarray
    ) -> dict[str, float]:
        count = table.sum(axis=1)
        top1, top5 = (metrics.top_k(scores, label, k) for k in (1, 5))
        found = {
            "top1": top1,
            "top5": top5,
            "top1_top5_mean": (top1 + top5) / 2,  # "AVG" of the zero-shot tables
            "mean_class": metrics.mean_class_accuracy(scores, label),
            "videos": float(len(label)),
            "chance": float(count.max() / count.sum()),  # always the most frequent class
        }
        if self.mean_ap:
            relevant = np.arange(scores.shape[1]) == label[:, None]
            found["mean_ap"] = metrics.mean_average_precision(scores, relevant)
        return found

    def _preset(self) -> dict[str, Any]:
        if not self.protocol:
            return {"preset": None, "source": None, "modified": {}}
        used = protocols.values_of(self.views, self.merge, self.mean_ap)
        return {
            "preset": self.protocol,
            "source": protocols.find(self.protocol).source,
            "modified": protocols.departures(self.protocol, used),
        }


def forward(apply: Callable[..., jax.Array]) -> Forward:
    """(params, batch) -> (R, K) float32 logits of its rows; what the evaluator compiles."""
    return lambda params, batch: apply(params, batch["video"])


def per_class(table: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Videos and top-1 of every class that has videos, from the confusion table."""
    return {
        name: {"videos": int(n), "top1": float(hit / n)}
        for name, n, hit in zip(classes, table.sum(axis=1), np.diag(table), strict=True)
        if n
    }


def per_class_sheet(table: np.ndarray, classes: Sequence[str]) -> str:
    """The same as CSV, the worst class first, with what it is most often taken for."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "videos", "top1", "most_often_taken_for", "share"])
    found = per_class(table, classes)
    number = {name: place for place, name in enumerate(classes)}
    for name, row in sorted(found.items(), key=lambda item: item[1]["top1"]):
        wrong = table[number[name]].copy()
        wrong[number[name]] = 0
        other = int(wrong.argmax())
        taken = (classes[other], f"{wrong[other] / row['videos']:.4f}") if wrong[other] else ("", 0)
        writer.writerow([name, row["videos"], f"{row['top1']:.4f}", *taken])
    return text.getvalue()
