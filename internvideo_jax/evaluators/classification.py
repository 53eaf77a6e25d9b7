"""Top-1 and top-5 accuracy with several views per video."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.config import ViewConfig
from internvideo_jax.evaluators import metrics
from internvideo_jax.evaluators.base import EvalContext, Input, Result, describe_data
from internvideo_jax.telemetry.pictures import confusion_picture


@dataclasses.dataclass(frozen=True)
class Classification:
    """Scores of all segments x crops of a video are merged, then ranked.

    The published protocol averages the softmax of the views (`probability`), 5 segments x 3 crops
    on Kinetics, 2 x 3 on Something-Something.
    """

    name: str = "classification"
    every: int = 0  # steps; 0 = only at the end, -1 = never
    data: str = ""  # default: the run's
    split: str = ""  # default: test, else val, else train
    views: ViewConfig = ViewConfig()
    merge: str = "probability"  # metrics.py: probability | logit | probability_sum

    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.data, self.split, self.views, labelled=True, head=True),)

    def run(self, context: EvalContext) -> Result:
        views = context.open(*self.inputs())
        classes = views.dataset.classes
        if len(classes) != context.model.config.classes:
            raise ValueError(
                f"the model has {context.model.config.classes} classes, the data set "
                f"{views.dataset.manifest.directory} has {len(classes)}"
            )

        def build():
            return lambda params, batch: context.model.apply(params, batch["video"])

        rows = list(context.outputs(views, "logits", build, self.name))
        valid = np.concatenate([batch["valid"] for batch, _ in rows])
        record, view, label = (
            np.concatenate([batch[key] for batch, _ in rows])[valid]
            for key in ("index", "view", "label")
        )
        logits = np.concatenate([logits for _, logits in rows])[valid]
        labelled = label >= 0
        videos, scores = metrics.merge_views(
            record[labelled], view[labelled], logits[labelled], self.merge
        )
        truth = dict(zip(record.tolist(), label.tolist(), strict=True))
        label = np.array([truth[video] for video in videos.tolist()])
        table = metrics.confusion(scores, label, len(classes))
        count = table.sum(axis=1)
        per_class = {
            name: {"videos": int(n), "top1": float(hit / n)}
            for name, n, hit in zip(classes, count, np.diag(table), strict=True)
            if n
        }
        return Result(
            metrics={
                "top1": metrics.top_k(scores, label, 1),
                "top5": metrics.top_k(scores, label, 5),
                "mean_class": metrics.mean_class_accuracy(scores, label),
                "videos": float(len(videos)),
                "chance": float(count.max() / count.sum()),  # always the most frequent class
            },
            protocol={
                **describe_data(views.dataset, self.views),
                "merge": self.merge,
                "unreadable": views.skipped,
                "unlabelled": int((~labelled).sum()),
            },
            tables={"per_class": per_class, "confusion": table.tolist(), "classes": list(classes)},
            pictures={"confusion": confusion_picture(table, classes)},
        )
