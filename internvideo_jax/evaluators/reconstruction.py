"""How well hidden tubelets are predicted, as a number and as pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.config import ViewConfig
from data_pipelines.limits import limited
from internvideo_jax.evaluators.base import ANIMATED, EvalContext, check_finite, describe_data
from internvideo_jax.inference.steps import Forward
from internvideo_jax.ops import masking
from internvideo_jax.ops.pixels import patchify, to_unit, unpatchify
from internvideo_jax.ops.reconstruction import pixel_loss, restore_pixels
from internvideo_jax.ops.tokens import scatter, take
from internvideo_jax.protocols import clip_of
from internvideo_jax.tasks import Input, Result
from internvideo_jax.telemetry.pictures import side_by_side, strip
from internvideo_jax.types import Params

GREY = 0.5


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Loss on all hidden tokens under fixed masks, and original / masked / reconstructed strips.

    The mask of a record depends on the seed and its number only, so runs can be compared. Where the
    target is normalised per tubelet, pictures borrow mean and contrast of the true tubelet.
    """

    name: str = "reconstruction"
    every: int = limited(0, least=-1)  # steps; 0 = only at the end, -1 = never
    data: str = ""  # default: the run's
    split: str = ""  # default: test, else val, else train
    views: ViewConfig = ViewConfig()
    mask: str = "tube"
    mask_ratio: float = 0.9
    normalized: bool = True
    pictures: int = 4  # videos shown
    scale: int = limited(2, least=1)  # enlargement of the pictures

    compares_texts: ClassVar[bool] = False

    def check(self, context: EvalContext) -> None:
        """ValueError for a mask that does not fit the model's tokens."""
        masking.check(self.mask, clip_of(context.model.config).grid, self.mask_ratio)

    def inputs(self) -> tuple[Input, ...]:
        """The split that is shown; labels are not needed."""
        return (Input(self.data, self.split, self.views, labelled=False),)

    def run(self, context: EvalContext) -> Result:
        """The error on hidden tubelets, and some clips as the model completes them."""
        views = context.open(*self.inputs())
        self.check(context)
        total = weight = 0.0
        shown: list[dict[str, np.ndarray]] = []
        outputs = context.outputs(views, self, lambda: self.forward(context), self.name)
        for batch, out in outputs:
            check_finite(out["error"], batch, batch["valid"], "predictions")
            total += float((out["error"] * batch["valid"]).sum())
            weight += float(batch["valid"].sum())
            for row in range(len(batch["valid"])):
                if len(shown) < self.pictures and batch["valid"][row] and batch["view"][row] == 0:
                    shown.append({key: value[row] for key, value in out.items()})
        pictures = {
            f"video{i}": strip(
                [clip["original"], clip["masked"], clip["rebuilt"]], scale=self.scale
            )
            for i, clip in enumerate(shown)
        }
        animations = {
            f"video{i}": side_by_side(
                [clip["original"], clip["masked"], clip["rebuilt"]], scale=self.scale
            )
            for i, clip in enumerate(shown)
        }
        return Result(
            metrics={"loss": total / max(weight, 1.0), "clips": weight},
            protocol={
                **describe_data(views.dataset, self.views),
                "mask": self.mask,
                "mask_ratio": self.mask_ratio,
                "normalized": self.normalized,
                "seed": context.seed,
            },
            pictures=pictures,
            animations=animations,
            captions=self._captions(len(shown)),
        )

    def _captions(self, count: int) -> dict[str, str]:
        """What the pictures of so many videos show."""
        how = (
            "The model predicts each tubelet with mean 0 and variance 1; the picture borrows both "
            "from the true tubelet."
            if self.normalized
            else "The model predicts the pixels themselves."
        )
        parts = (
            f"the clip; what the encoder sees, {self.mask_ratio:.0%} of the tubelets hidden "
            f"(grey); the same with the hidden ones as predicted. {how}"
        )
        found = {f"video{i}": f"Rows, from the top: {parts}" for i in range(count)}
        return found | {f"video{i}{ANIMATED}": f"From the left: {parts}" for i in range(count)}

    def forward(self, context: EvalContext) -> Forward:
        """(params, batch with `index`) -> error (B,), and pixels (B, T, H, W, 3) uint8: original,
        masked, rebuilt."""
        model, clip = context.model, clip_of(context.model.config)
        key = jax.random.key(context.seed)

        def forward(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            video = batch["video"]
            keys = masking.example_keys(key, batch["index"])
            visible, hidden = masking.sample(self.mask, keys, clip.grid, self.mask_ratio)
            predicted = model.apply(params, video, visible, hidden)
            error = jax.vmap(
                lambda p, x, v, h: pixel_loss(
                    p[None],
                    x[None],
                    v[None],
                    h[None],
                    tubelet=clip.tubelet,
                    patch=clip.patch,
                    normalized=self.normalized,
                ).value()
            )(predicted, video, visible, hidden)  # one mean per clip
            tokens = to_unit(patchify(video, clip.tubelet, clip.patch))
            grey = jnp.full_like(predicted, GREY)
            if self.normalized:
                predicted = restore_pixels(predicted, take(tokens, hidden))

            def picture(values: jax.Array) -> jax.Array:
                whole = unpatchify(
                    scatter(tokens, hidden, values), clip.grid, clip.tubelet, clip.patch
                )
                return (jnp.clip(whole, 0.0, 1.0) * 255.0).round().astype(jnp.uint8)

            return {
                "error": error,
                "original": (to_unit(video) * 255.0).round().astype(jnp.uint8),
                "masked": picture(grey),
                "rebuilt": picture(predicted),
            }

        return forward
