"""Video and text of the same clip brought together, against all others of the batch (ViCLIP)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from data_pipelines.limits import limited
from internvideo_jax.ops import contrastive, masking
from internvideo_jax.parallel.mesh import BATCH_AXES
from internvideo_jax.protocols import Model, ModelConfig, clip_of
from internvideo_jax.tasks import Objective
from internvideo_jax.types import Batch, Mean, Params

SCALES = ("true", "reference")


@dataclasses.dataclass(frozen=True)
class Contrastive(Objective):
    """Symmetric InfoNCE or the pairwise sigmoid loss over the batch of all devices.

    Rows of one record (equal `index`, in a mixture of the same set) are right for each other; rows
    without a caption count neither way. The batch is compared as a whole also with
    config.optim.accumulate > 1, by gradient caching.

    The model has `encode_video`, `encode_text` and the scalar parameter `temperature`; for kind
    `sigmoid` it may have the scalar `bias`.
    """

    name: str = "contrastive"
    mask_ratio: float = 0.0  # share of video tokens dropped before the encoder; 0 = none
    kind: str = "softmax"  # softmax | sigmoid
    form: str = "global"  # global | ring: ops/contrastive.py
    dtype: str = "float32"  # of the embeddings as devices exchange and multiply them; or bfloat16
    # reference: encoder gradients divided by the number of devices, as the averaging over GPUs of
    # ViCLIP's code comes to; that of the temperature is whole in both.
    scale: str = "true"
    min_temperature: float = limited(0.01, least=0)
    bias: float = -10.0  # of the sigmoid's logits, where the model has no parameter `bias`

    @property
    def across(self) -> bool:
        """Every clip is compared with every caption of the batch."""
        return True

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError for settings that contradict each other or the model."""
        for field, value, known in (
            ("kind", self.kind, contrastive.KINDS),
            ("form", self.form, contrastive.FORMS),
            ("scale", self.scale, SCALES),
            ("dtype", self.dtype, ("float32", "bfloat16")),
        ):
            if value not in known:
                raise ValueError(
                    f"config.objective.{field} = {value!r}; expected one of {', '.join(known)}"
                )
        if not (math.isfinite(self.min_temperature) and self.min_temperature > 0):
            raise ValueError(
                f"config.objective.min_temperature = {self.min_temperature}; expected a positive "
                "number, 0.01 for ViCLIP: logits are divided by the temperature"
            )
        if config.inputs.text is None:
            raise ValueError(
                "config.objective=contrastive needs a model that reads text, such as viclip; "
                f"config.model is {config.name!r}"
            )
        if self.mask_ratio:
            masking.check("random", clip_of(config).grid, self.mask_ratio)

    def embed(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """`video` and `text`, both (B, E) float32, not normalised; each row of its example only."""
        del step
        if "text" not in batch:
            raise ValueError(
                "the contrastive objective needs captions as token ids, the batch has "
                f"{', '.join(sorted(batch))}; set config.data.text and config.data.tokenizer"
            )
        keys = masking.example_keys(key, batch["position"])
        visible = None
        if self.mask_ratio:
            clip = clip_of(model.config)
            t, h, w = clip.grid
            t = t * batch["video"].shape[1] // clip.frames  # an image has one frame
            visible, _ = masking.sample("random", keys, (t, h, w), self.mask_ratio)
        video = model.apply(
            params, batch["video"], keys=keys, visible=visible, method="encode_video"
        )
        return {"video": video, "text": model.apply(params, batch["text"], method="encode_text")}

    def compare(
        self, params: Params, embeddings: dict[str, jax.Array], batch: Batch
    ) -> tuple[Mean, dict[str, Mean]]:
        """The loss between the embeddings of a whole batch, and means to log.

        Args:
          params: with `temperature`, and `bias` where the model learns one.
          batch: `index` (B,); `dataset` (B,) and `has_text` (B,) where there are any.
        """
        if self.scale == "reference":
            factor = 1.0 / _batch_devices()
            embeddings = jax.tree.map(lambda x: _scale_gradient(x, factor), embeddings)
        temperature = clamped(params["temperature"], self.min_temperature)
        ids = [batch[name] for name in ("index", "dataset") if name in batch]
        loss, metrics = contrastive.contrastive_loss(
            embeddings["video"],
            embeddings["text"],
            temperature,
            ids=jnp.stack(ids, axis=-1),
            valid=batch.get("has_text"),
            bias=params.get("bias", jnp.float32(self.bias)),
            kind=self.kind,
            form=self.form,
            dtype=self.dtype,
            batch_axes=BATCH_AXES,
        )
        return loss, metrics | {"temperature": Mean.of(jax.lax.stop_gradient(temperature))}

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Mean, dict[str, Mean]]:
        """`compare` of this batch.

        Args:
          batch: `video` (B, T, H, W, 3), `text` (B, S), `index` (B,), `position` (B,), and as
            `compare`.
        """
        return self.compare(params, self.embed(model, params, batch, key, step), batch)

    def project(self, params: Params) -> Params:
        """Parameters with the temperature at its lower bound or above."""
        bounded = jnp.maximum(params["temperature"], self.min_temperature)
        return params | {"temperature": bounded}

    def flops(self, config: ModelConfig) -> float:
        """Model FLOPs of one training example: forward and twice that for the backward pass.

        Those of the loss, which depend on the batch, are not counted: 6 B E beside two towers.
        """
        if not self.mask_ratio:
            return 3.0 * config.forward_flops()
        visible = sum(masking.visible_per_frame("random", clip_of(config).grid, self.mask_ratio))
        return 3.0 * config.forward_flops(visible)


def clamped(x: jax.Array, least: float) -> jax.Array:
    """max(x, least) with the gradient of x.

    That of a maximum is halved at the bound, where the temperature of ViCLIP starts, and would be
    zero below it.
    """
    return x + jax.lax.stop_gradient(jnp.maximum(x, least) - x)


def _batch_devices() -> int:
    """Devices that the batch is split over; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(name, 1) for name in BATCH_AXES)


def _scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """`x`, whose gradient is multiplied by `factor`."""

    @jax.custom_vjp
    def scaled(x: jax.Array) -> jax.Array:
        return x

    scaled.defvjp(lambda x: (x, None), lambda _, gradient: (factor * gradient,))
    return scaled(x)
