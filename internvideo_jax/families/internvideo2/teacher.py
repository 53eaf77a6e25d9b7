"""InternVL's image tower and InternVideo2 as teachers: one network, on frames or on whole clips.

Both look where the query of their attention pool looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import jax
import numpy as np
from flax import nnx

from internvideo_jax.families.internvideo2.model import (
    SIZES,
    EncoderConfig,
    InternVideo2Encoder,
    attention_pool,
)
from internvideo_jax.families.teacher import (
    Form,
    Teacher,
    TeacherOutputs,
    check_stated,
    last,
    per_frame,
)
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.layers.tower import SMALLEST, check_layers, preset_size
from internvideo_jax.protocols import Traits

LAYERS = 6  # that a student is aligned with, the last ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config(EncoderConfig):
    """What the two share. Targets are class and patch tokens as they leave the returned blocks."""

    init_from: str = ""  # run or weight file; "random" for rehearsals
    layers: Sequence[int]  # blocks whose tokens are targets, ascending

    class_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(f"layers of the teacher {self.name!r}", self.layers, self.encoder.depth)

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> Self:
        """A size of `models.internvideo2.SIZES` with changes, by default its last six layers.

        Raises:
          ValueError: unknown name.
        """
        depth = changes.get("encoder", preset_size(SIZES, name)["encoder"]).depth
        return super().of_size(name, **{"layers": last(depth, LAYERS), **changes})

    def smallest(self) -> Self:
        layers = last(SMALLEST.depth, len(self.layers))
        return cast(Self, EncoderConfig.smallest(dataclasses.replace(self, layers=layers)))

    @property
    def width(self) -> int:
        """Channels of a target token."""
        return self.encoder.width

    @property
    def final_width(self) -> int:
        return self.embedding

    @property
    def traits(self) -> Traits:
        return dataclasses.replace(super().traits, check_source=self.check_source)

    def check_source(self, stated: Mapping[str, Any]) -> None:
        """ValueError where a run computed something else with the same weights."""
        check_stated(self, stated, ("activation", "qk_norm"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternVLConfig(_Config):
    """InternVL-C's vision tower, InternViT-6B with its attention pool, frame by frame.

    Chen et al. 2023 (InternVL), as stage 1 of InternVideo2 uses it: the class token and the pooled
    vector are means over the frames. Factory: `InternVLConfig.of_size("6b")`.
    """

    name: str = "internvl"

    per_frame: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tubelet != 1 or self.pos_table != "joint":
            raise ValueError(
                f"teacher {self.name!r} reads single frames with one table: expected tubelet = 1 "
                f"and pos_table = 'joint', found {self.tubelet} and {self.pos_table!r}"
            )

    @property
    def frame(self) -> EncoderConfig:
        """The config of its network, which sees one frame."""
        return dataclasses.replace(self, frames=1)

    def model(self) -> FunctionalModel:
        """The vision tower of InternVL-C, frame by frame."""
        return FunctionalModel(self, InternVLTeacher)

    def forward_flops(self, visible: int | None = None) -> float:
        """Of one clip; `visible` patch tokens of a frame (default: all)."""
        return self.frames * EncoderConfig.forward_flops(self.frame, visible)

    def adapt_weights(
        self, source: Mapping[str, np.ndarray], frames: int = 0
    ) -> dict[str, np.ndarray]:
        """Weights of a tower of another image size: the table is resized bicubically."""
        return EncoderConfig.adapt_weights(self.frame, source, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternVideo2TeacherConfig(_Config):
    """InternVideo2's encoder on the whole clip: what the small students are distilled from.

    The vision encoder of a stage-2 file has a position table of 4 frames: set `pos_frames = 4`, and
    it is stretched when it is loaded.

    The released distillation never switches the teacher to evaluation and builds it with drop path
    0.25, so that there the frozen teacher drops layers at random. Here it never does, whatever
    `drop_path` says. Factory: `InternVideo2TeacherConfig.of_size("1b", layers=...)`.
    """

    per_frame: ClassVar[bool] = False

    def model(self) -> FunctionalModel:
        """The encoder as the teacher of a smaller one."""
        return FunctionalModel(self, InternVideo2Teacher)


class _PooledTeacher(Teacher):
    """An encoder and its attention pool."""

    form = Form(lead=1, keeps_lead=True)

    def __init__(self, config: _Config, network: EncoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = InternVideo2Encoder(network, rngs=rngs)
        self.pool = attention_pool(network, rngs=rngs)

    def read(self, video: jax.Array) -> TeacherOutputs:
        x, intermediates = self.encoder(video, intermediate_layers=self.config.layers)
        assert intermediates is not None  # noqa: S101  (layers are asked for)
        final, weights = self.pool.with_attention(x)
        return TeacherOutputs(intermediates, weights[:, 1:], final)


class InternVLTeacher(_PooledTeacher):
    """See `InternVLConfig`."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.frame, rngs=rngs)

    def read(self, video: jax.Array) -> TeacherOutputs:
        """Of every frame, with the attention of the pool; see `Teacher.read`."""
        return super().read(per_frame(video))


class InternVideo2Teacher(_PooledTeacher):
    """See `InternVideo2TeacherConfig`."""

    def __init__(self, config: InternVideo2TeacherConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config, rngs=rngs)
