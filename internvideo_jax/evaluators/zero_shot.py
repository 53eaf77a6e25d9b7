"""Recognition without training: a video belongs to the class whose prompts it is closest to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from data_pipelines.limits import limited
from internvideo_jax.evaluators import metrics
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.classification import CONFUSION, per_class, per_class_sheet
from internvideo_jax.evaluators.per_video import Scored
from internvideo_jax.evaluators.published import templates
from internvideo_jax.evaluators.published import video_text as presets
from internvideo_jax.evaluators.video_text import VideoTextTask, embed_videos, logit_scale
from internvideo_jax.tasks import Input, Result
from internvideo_jax.telemetry.pictures import confusion_picture


@dataclasses.dataclass(frozen=True)
class ZeroShot(VideoTextTask):
    """Class names in templates, and the scores of a class merged over its prompts.

    `of_preset` gives the settings of a published table (video_text_presets.py).
    """

    name: str = "zero_shot"
    preset: str = ""  # whose settings these are meant to be (video_text_presets.py); "": nobody's
    templates: str = "kinetics28"  # a set of templates.py
    texts: Sequence[str] = ()  # templates of your own instead, each with one {}
    merge: str = "cosine"  # templates.py, MERGES: cosine | embedding | probability
    # merge=probability: what cosines are multiplied by; 0 = 1 / temperature of the model.
    scale: float = limited(0.0, least=0)
    names: str = ""  # text file with a class name per line, in the order of the labels

    @classmethod
    def of_preset(cls, name: str, *, resolution: int, batch: int, frames: int = 0) -> Self:
        """An evaluator with the settings of a published test; arguments as in `settings`."""
        found = presets.find(presets.ZERO_SHOT, name)
        return cls(
            **presets.settings(name, found, resolution=resolution, batch=batch, frames=frames)
        )

    def inputs(self) -> tuple[Input, ...]:
        """The labelled split that is tested."""
        return (Input(self.data, self.split, self.views, labelled=True, seconds=self.seconds),)

    def check(self, context: EvalContext) -> None:
        """ValueError for templates that are unknown, or class names that are missing."""
        if self.merge not in templates.MERGES:
            raise ValueError(
                f"unknown merge rule {self.merge!r}; known: {', '.join(templates.MERGES)}"
            )
        self._preset()
        self.prompts(context.dataset(*self.inputs()).classes)
        super().check(context)

    def prompts(self, found: Sequence[str]) -> tuple[tuple[str, ...], int, list[str]]:
        """Class names, templates, and all prompts, those of a class next to each other.

        Args:
          found: class names of the dataset.

        Raises:
          ValueError: a template without a slot, an unknown set, a names file of another length,
            classes without or of the same name, a prompt of which nothing is left.
        """
        classes = tuple(found)
        if self.names:
            classes = read_names(self.names)
            if len(classes) != len(found):
                raise ValueError(
                    f"{self.names} has {len(classes)} class names, the dataset has {len(found)} "
                    "classes; expected one line per class in the order of the labels"
                )
        chosen = self.texts or templates.named(self.templates)
        texts = templates.prompts(classes, chosen)
        for text in texts:
            if self.is_empty(text):
                raise ValueError(f"nothing is left of the prompt {text!r} after cleaning")
        return classes, len(chosen), texts

    def run(self, context: EvalContext) -> Result:
        """The class whose captions are nearest to the video; the share of right ones."""
        videos = embed_videos(context, *self.inputs(), title=self.name)
        classes, each, prompts = self.prompts(videos.dataset.classes)
        encoder = self.text_encoder(context)
        text = encoder(prompts).reshape(len(classes), each, -1)
        labelled = videos.label >= 0
        label = videos.label[labelled]
        if not len(label):
            raise ValueError("no video that can be read has a label, which are needed here")
        scale = logit_scale(context.params, self.scale) if self.merge == "probability" else 1.0
        scores = templates.class_scores(videos.values[labelled], text, self.merge, scale)
        top1, top5 = (metrics.top_k(scores, label, k) for k in (1, 5))
        table = metrics.confusion(scores, label, len(classes))
        count = table.sum(axis=1)
        return Result(
            metrics={
                "top1": top1,
                "top5": top5,
                "top1_top5_mean": (top1 + top5) / 2,
                "mean_class": metrics.mean_class_accuracy(scores, label),
                "videos": float(len(label)),
                "chance": float(count.max() / count.sum()),  # always the most frequent class
            },
            protocol={
                **self.protocol(videos, encoder),
                "templates": list(self.texts) or self.templates,
                "prompts_per_class": each,
                "merge": self.merge,
                "scale": scale,
                "names": self.names,
                "ties": "first",
                "truncated_prompts": encoder.cut(prompts),
                "unlabelled": int((~labelled).sum()),
                **presets.compared(self.preset, self._preset(), self, context.model.config),
            },
            tables={
                "per_class": per_class(table, classes),
                "confusion": table.tolist(),
                "classes": list(classes),
            },
            pictures={"confusion": confusion_picture(table, classes)},
            captions={"confusion": CONFUSION},
            sheets={"per_class": per_class_sheet(table, classes)},
            scored=Scored(videos.dataset, videos.record[labelled], label, scores, classes),
        )

    def _preset(self) -> presets.ZeroShotPreset | None:
        return presets.find(presets.ZERO_SHOT, self.preset) if self.preset else None


def read_names(path: str) -> tuple[str, ...]:
    """A class name per line; ValueError for a file without any, OSError without a file."""
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"{path}: holds no class names; expected one per line")
    return tuple(line.strip() for line in lines)
