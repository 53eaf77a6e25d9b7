"""VideoMAE V2 as a teacher of motion (Wang et al. 2024, InternVideo2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.families.teacher import Form, Teacher, TeacherOutputs, check_stated, last
from internvideo_jax.families.videomae.model import SIZES, VideoConfig, VideoMAEEncoder
from internvideo_jax.layers.block import BlockConfig
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.tower import SMALLEST, TowerConfig, check_layers, preset_size
from internvideo_jax.protocols import Traits

LAYERS = 4  # that a student is aligned with, the last ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoMAETeacherConfig(VideoConfig):
    """The encoder of a pre-trained VideoMAE, on all tokens; its decoder is left out.

    Targets are patch tokens as they leave the returned blocks; only those of the last block go
    through the final norm. It has neither class token nor attention to draw masks from.

    The position table is no weight unless `pos_table` is learnable: it must be the one that the
    weights were trained with. The published ViT-g has `resized`, the flat sine table of 16 frames
    at 224 pixels, which for another number of frames is stretched linearly in time; models of our
    own say theirs in run.json.

    Factory: `VideoMAETeacherConfig.of_size("giant")`.
    """

    name: str = "videomae_v2"
    init_from: str = ""  # run or weight file; "random" for rehearsals
    layers: Sequence[int]  # blocks whose tokens are targets, ascending
    # The released stage-1 code hands its attention kernel tensors with tokens and heads exchanged,
    # so that the heads of a token attend to each other. The weights were trained with ordinary
    # attention; whether the published students learned from the one or the other is not known.
    literal: bool = False

    class_token: ClassVar[bool] = False
    per_frame: ClassVar[bool] = False
    final_width: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(f"layers of the teacher {self.name!r}", self.layers, self.encoder.depth)

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> VideoMAETeacherConfig:
        """A size of `models.videomae.SIZES` with changes, by default its last four layers.

        Raises:
          ValueError: unknown name.
        """
        preset = preset_size(SIZES, name)
        table = "sincos" if name == "tiny" else "resized"
        settings: dict[str, Any] = {
            "encoder": preset.encoder,
            "patch": preset.patch,
            "pos_table": table,
            **changes,
        }
        settings.setdefault("layers", last(settings["encoder"].depth, LAYERS))
        return cls(**settings)

    def smallest(self) -> Self:
        """Two thin layers; as many of them teach as did, at most both."""
        layers = last(SMALLEST.depth, len(self.layers))
        return cast(Self, VideoConfig.smallest(dataclasses.replace(self, layers=layers)))

    @property
    def traits(self) -> Traits:
        """Weights of a run are compared with what they meant there."""
        return dataclasses.replace(super().traits, check_source=self.check_source)

    def check_source(self, stated: Mapping[str, Any]) -> None:
        """ValueError where a run computed something else with the same weights.

        Its position table may have another name, but not other values.
        """
        check_stated(self, stated, ("cosine",))
        fields = ("pos_table", "pos_frames", "pos_size")
        theirs = {name: stated[name] for name in fields if name in stated}
        if "learnable" in (self.pos_table, theirs.get("pos_table")):
            check_stated(self, stated, ("pos_table",))
            return
        run = dataclasses.replace(self, **theirs)
        if not np.array_equal(self.fixed_positions(), run.fixed_positions()):
            raise ValueError(
                f"the run was trained with {theirs}, which gives other positions than pos_table = "
                f"{self.pos_table!r} of the teacher {self.name!r}; give it the same"
            )

    @property
    def width(self) -> int:
        """Channels of a target token."""
        return self.encoder.width

    def block(self, tower: TowerConfig) -> BlockConfig:
        """Of the encoder, in the arithmetic of the reference where `literal`."""
        block = super().block(tower)
        attention = dataclasses.replace(block.attention, literal=self.literal)
        return dataclasses.replace(block, attention=attention)

    def model(self) -> FunctionalModel:
        """The encoder without a decoder."""
        return FunctionalModel(self, VideoMAETeacher)

    def forward_flops(self) -> float:
        """Of one clip."""
        return self.embed_flops(self.tokens) + self.encoder.flops(self.tokens)


class VideoMAETeacher(Teacher):
    """See `VideoMAETeacherConfig`."""

    form = Form(lead=0, keeps_lead=False)

    def __init__(self, config: VideoMAETeacherConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = VideoMAEEncoder(config, norm=True, init=Init("xavier"), rngs=rngs)

    def read(self, video: jax.Array) -> TeacherOutputs:
        """All patch tokens of its layers; see `Teacher.read`."""
        _, intermediates = self.encoder(video, intermediate_layers=self.config.layers)
        assert intermediates is not None  # noqa: S101  (layers are asked for)
        return TeacherOutputs(intermediates)

    def finish(self, x: jax.Array) -> jax.Array:
        """The last norm on the last layer, if that is among them."""
        norm = self.encoder.norm
        assert norm is not None  # noqa: S101  (made with one)
        if self.config.layers[-1] != self.config.encoder.depth - 1:
            return x
        return jnp.concatenate([x[:-1], norm(x[-1:])])
