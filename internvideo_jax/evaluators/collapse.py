"""Do the features of different clips still differ? A monitor that trains nothing, and an alarm.

An objective without labels may be content with features that are the same for every clip, and its
loss then looks well. This looks at the features of a few fixed clips instead: the clip encoder's
mean token or, of a model that compares videos with texts, the embeddings of both towers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from data_pipelines.config import ClipConfig, ViewConfig
from data_pipelines.limits import limited
from internvideo_jax.evaluators.base import EvalContext, check_finite, describe_data
from internvideo_jax.evaluators.features import MEAN, features_of
from internvideo_jax.evaluators.spread import neighbours, own_caption, spread
from internvideo_jax.evaluators.video_text import TextEncoder, VideoTextTask, embeddings
from internvideo_jax.inference.vectors import Rows, gather
from internvideo_jax.protocols import clip_of
from internvideo_jax.tasks import Input, Result

ACTIONS = ("off", "warn", "stop")
WITHOUT_TEXT, VIDEO, TEXT = "features", "video", "text"  # towers
RANK, COSINE = "effective_rank", "cosine"
LEAST_CLIPS = 8  # of fewer clips no rank says anything


@dataclasses.dataclass(frozen=True)
class Collapse:
    """Effective rank, spread and neighbours of the features of a few clips, and when they are bad.

    The alarm is raised when one rule is broken in `patience` looks in a row: the effective rank is
    below `least_rank`, or below `rank_share` of that of the run's first look; or the mean cosine of
    different clips is above `most_cosine`. Of a model with two towers each is judged by itself.
    """

    name: str = "collapse"
    every: int = limited(100, least=-1)  # steps; 0 = only at the end, -1 = never
    data: str = ""  # default: the run's
    split: str = ""  # default: test, else val, else train
    # Two windows in time, for the share of nearest neighbours that are of the same video.
    views: ViewConfig = ViewConfig(clip=ClipConfig(sampling="dense"), clips=2)
    clips: int = limited(64, least=LEAST_CLIPS)  # videos looked at, evenly spaced over the split
    action: str = "warn"  # off: measure only | warn | stop: save, and end the run
    least_rank: float = limited(1.2, least=0)
    rank_share: float = limited(0.25, least=0, most=1)
    most_cosine: float = limited(0.9999, least=-1, most=1)
    patience: int = limited(2, least=1)  # looks
    tokenizer: str = ""  # of two towers: clip | clip:PATH | bert:PATH; empty: the run's, else clip
    clean: bool = True  # captions without case and punctuation, as ViCLIP trains

    compares_texts: ClassVar[bool] = False

    def inputs(self) -> tuple[Input, ...]:
        """The split whose clips are looked at; labels are used where there are any."""
        return (Input(self.data, self.split, self.views, labelled=False, limit=self.clips),)

    def check(self, context: EvalContext) -> None:
        """ValueError for a model without features, a split of few clips, or an unknown action."""
        if self.action not in ACTIONS:
            raise ValueError(f"action = {self.action!r}; expected one of {', '.join(ACTIONS)}")
        config = context.model.config
        clip_of(config)
        if config.inputs.text is None and config.traits.features is None:
            raise ValueError(f"config.model is {config.name!r}, which gives no features")
        dataset = context.dataset(*self.inputs())
        if len(dataset) < LEAST_CLIPS:
            raise ValueError(
                f"split {dataset.split!r} of {dataset.manifest.directory} has {len(dataset)} "
                f"records; features are compared over {LEAST_CLIPS} or more"
            )
        if config.inputs.text is not None:
            self._texts(context)

    def run(self, context: EvalContext) -> Result:
        """What the features of the clips are like, and the alarm if there is one."""
        (source,) = self.inputs()
        stream = context.open(source)
        dataset, model = stream.dataset, context.model
        two = model.config.inputs.text is not None
        tower = VIDEO if two else WITHOUT_TEXT
        outputs = (
            embeddings(context, stream, self.name)
            if two
            else context.outputs(
                stream, ("features", MEAN), lambda: features_of(model, MEAN), self.name
            )
        )
        steps = []
        for batch, values in outputs:
            check_finite(values, batch, batch["valid"], tower)
            steps.append((batch, values))
        rows = gather(steps).sorted()
        first = rows.where(rows.view == 0)
        metrics = _named(tower, spread(first.values)) | _named(tower, neighbours(rows))
        sizes = {"clips": len(first), **_chance(first)}
        if two:
            said = {
                int(number): captions[0]
                for number in first.record.tolist()
                if (captions := [each for each in dataset.load(number).captions if each.strip()])
            }
            found, sizes["captions"] = self._text_metrics(context, first, said)
            metrics |= found
        alarm = self.alarm(metrics, context.earlier)
        return Result(
            metrics=metrics,
            protocol={
                **describe_data(dataset, self.views),
                **sizes,
                "rules": {
                    "least_rank": self.least_rank,
                    "rank_share": self.rank_share,
                    "most_cosine": self.most_cosine,
                    "patience": self.patience,
                },
                "looks_before": len(context.earlier),
            },
            alarm=alarm,
            stops=bool(alarm) and self.action == "stop",
        )

    def _texts(self, context: EvalContext) -> TextEncoder:
        task = VideoTextTask(name=self.name, tokenizer=self.tokenizer, clean=self.clean)
        return task.text_encoder(context)

    def _text_metrics(
        self, context: EvalContext, videos: Rows, said: Mapping[int, str]
    ) -> tuple[dict[str, float], int]:
        """Of the captions of these videos, and how many different ones there are."""
        different = sorted(set(said.values()))
        if len(different) < 2:
            return {}, len(different)
        found = self._texts(context).raw(different)
        if not np.isfinite(found).all():
            raise ValueError(
                "an embedding of a text is not finite: the checkpoint's text encoder is broken"
            )
        metrics = _named(TEXT, spread(found))
        place = {text: at for at, text in enumerate(different)}
        captioned = np.array([number in said for number in videos.record.tolist()])
        own = [place[said[number]] for number in videos.record[captioned].tolist()]
        metrics[f"{TEXT}/own_caption"] = own_caption(videos.values[captioned], found, own)
        return metrics, len(different)

    def alarm(
        self, metrics: Mapping[str, float], earlier: Sequence[Mapping[str, float]] = ()
    ) -> str:
        """What is wrong with these features and has been for `patience` looks; empty if nothing."""
        if self.action == "off":
            return ""
        looks = [*earlier, metrics][-self.patience :]
        if len(looks) < self.patience:
            return ""
        first = earlier[0] if earlier else metrics
        broken = [self._broken(look, first) for look in looks]
        lasting = [rule for rule in broken[-1] if all(rule in each for each in broken)]
        if not lasting:
            return ""
        since = f", in {self.patience} looks in a row" if self.patience > 1 else ""
        return f"the features collapse: {'; '.join(broken[-1][rule] for rule in lasting)}{since}"

    def _broken(
        self, look: Mapping[str, float], first: Mapping[str, float]
    ) -> dict[tuple[str, str], str]:
        """(tower, rule) -> in words, of the rules that a look breaks."""
        found = {}
        for tower in (WITHOUT_TEXT, VIDEO, TEXT):
            rank, cosine = (look.get(f"{tower}/{name}") for name in (RANK, COSINE))
            if rank is None or cosine is None:
                continue
            whose = "" if tower == WITHOUT_TEXT else f"{tower} "
            begun = first.get(f"{tower}/{RANK}", rank)
            if rank < self.least_rank:
                found[tower, "least_rank"] = (
                    f"{whose}effective rank {rank:.3g}, below least_rank = {self.least_rank:g}"
                )
            if rank < self.rank_share * begun:
                found[tower, "rank_share"] = (
                    f"{whose}effective rank {rank:.3g}, below rank_share = {self.rank_share:g} of "
                    f"the {begun:.3g} of the first look"
                )
            if cosine > self.most_cosine:
                found[tower, "most_cosine"] = (
                    f"mean cosine of different {whose}clips {cosine:.6f}, above most_cosine = "
                    f"{self.most_cosine:g}"
                )
        return found


def _named(tower: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{tower}/{name}": value for name, value in values.items()}


def _chance(rows: Rows) -> dict[str, Any]:
    """How often a clip chosen by chance has the same label, where there are labels."""
    counts = np.unique(rows.label[rows.label >= 0], return_counts=True)[1]
    total = int(counts.sum())
    if total < 2:
        return {}
    return {"same_label_chance": float((counts * (counts - 1)).sum() / (total * (total - 1)))}
