"""How many ids are filled in, with one place of every caption hidden."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from data_pipelines.config import ViewConfig
from internvideo_jax.evaluators.base import EvalContext, describe_data
from internvideo_jax.tasks import Input, Result


@dataclasses.dataclass(frozen=True)
class HiddenIds:
    """The share of captions whose id at `place` is found."""

    name: str = "hidden_ids"
    every: int = 0
    data: str = ""
    split: str = ""
    views: ViewConfig = ViewConfig()
    place: int = 1

    compares_texts: ClassVar[bool] = False

    def check(self, context: EvalContext) -> None:
        """Nothing beside the split."""

    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.data, self.split, self.views, labelled=False, parts=("text",)),)

    def run(self, context: EvalContext) -> Result:
        model, right, count = context.model, 0.0, 0

        def forward(params, batch):
            ids = batch["text"]
            hidden = ids.at[:, self.place].set(model.config.vocab - 1)
            found = jnp.argmax(model.apply(params, hidden)[:, self.place], axis=-1)
            return found == ids[:, self.place]

        views = context.open(*self.inputs())
        for batch, found in context.outputs(views, self, lambda: forward, self.name):
            right += float((found & batch["valid"]).sum())
            count += int(batch["valid"].sum())
        return Result({"top1": right / count}, describe_data(views.dataset, self.views))
