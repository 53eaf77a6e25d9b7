"""CLIP and ViCLIP as teachers: both look where the class token of the last block looks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
from flax import nnx

from internvideo_jax.families.teacher import (
    Form,
    Teacher,
    TeacherOutputs,
    check_stated,
    last,
    per_frame,
)
from internvideo_jax.families.viclip import model as viclip
from internvideo_jax.families.viclip.model import VideoTransformer, VideoTransformerConfig
from internvideo_jax.layers.block_stack import layer
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.tower import SMALLEST, check_layers, preset_size, tower
from internvideo_jax.protocols import Traits

LAYERS = 6  # that a student is aligned with, the last ones

CLIP_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"encoder": tower(96, 4, 4), "embedding": 64, "resolution": 48, "patch": 8},
    "base16": {"encoder": tower(768, 12, 12), "embedding": 512, "patch": 16},
    # 14 x 14 patches, as a student with patches of 16 pixels has at 224.
    "large14": {"encoder": tower(1024, 24, 16), "embedding": 768, "patch": 14, "resolution": 196},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config(VideoTransformerConfig):
    """What the two share."""

    name: str = ""
    init_from: str = ""  # run or weight file; "random" for rehearsals
    layers: Sequence[int]  # blocks whose tokens are targets, ascending

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers(f"layers of the teacher {self.name!r}", self.layers, self.encoder.depth)

    @property
    def traits(self) -> Traits:
        return dataclasses.replace(super().traits, check_source=self.check_source)

    def check_source(self, stated: Mapping[str, Any]) -> None:
        """ValueError where a run computed something else with the same weights."""
        check_stated(self, stated)

    def smallest(self) -> Self:
        """The same kind of teacher with two thin layers and four tokens a frame."""
        layers = last(SMALLEST.depth, len(self.layers))
        return self.shrunk(4, layers=layers, embedding=32)  # frames as the students that it teaches


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTeacherConfig(_Config):
    """CLIP's image half, frame by frame (Li et al. 2023, Unmasked Teacher).

    Targets are patch tokens in the space that CLIP shares with captions: its last norm and its
    projection work on every returned layer. The class token is dropped; its attention in the last
    block, mean over heads, is what the teacher looks at.

    Factory: `CLIPTeacherConfig.of_size("base16")`.
    """

    name: str = "clip"

    class_token: ClassVar[bool] = False
    per_frame: ClassVar[bool] = True
    final_width: ClassVar[int] = 0

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> CLIPTeacherConfig:
        """A size of CLIP_SIZES with changes, by default its last six layers.

        Raises:
          ValueError: unknown name.
        """
        settings = {**preset_size(CLIP_SIZES, name), **changes}
        settings.setdefault("layers", last(settings["encoder"].depth, LAYERS))
        return cls(**settings)

    @property
    def width(self) -> int:
        """Channels of a target token."""
        return self.embedding

    def model(self) -> FunctionalModel:
        """The network that reads frames apart."""
        return FunctionalModel(self, CLIPTeacher)

    def forward_flops(self) -> float:
        """Of one clip."""
        frame = dataclasses.replace(self, frames=1)
        project = 2.0 * self.encoder.width * self.embedding * self.tokens * len(self.layers)
        return self.frames * frame.video_flops() + project


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViCLIPTeacherConfig(_Config):
    """A ViCLIP's video half on the whole clip.

    Targets are the class token and all patch tokens as they leave the returned blocks, and the
    video embedding. Factory: `ViCLIPTeacherConfig.of_size("base")`.
    """

    name: str = "viclip"

    class_token: ClassVar[bool] = True
    per_frame: ClassVar[bool] = False

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> ViCLIPTeacherConfig:
        """A size of `models.viclip.SIZES` with changes, by default its last six layers.

        Raises:
          ValueError: unknown name.
        """
        preset = preset_size(viclip.SIZES, name)
        settings: dict[str, Any] = {**vars(preset), **changes}
        del settings["text"]
        settings.setdefault("layers", last(settings["encoder"].depth, LAYERS))
        return cls(**settings)

    @property
    def width(self) -> int:
        """Channels of a target token."""
        return self.encoder.width

    @property
    def final_width(self) -> int:
        """Channels of the target of the whole clip: those of its embedding."""
        return self.embedding

    def model(self) -> FunctionalModel:
        """The network that reads a clip as a whole."""
        return FunctionalModel(self, ViCLIPTeacher)

    def forward_flops(self) -> float:
        """Of one clip."""
        return self.video_flops()


class _ClassTokenTeacher(Teacher):
    """A `VideoTransformer` and the attention of its class token."""

    def __init__(self, config: _Config, *, temporal: bool, rngs: nnx.Rngs):
        self.config = config
        self.encoder = VideoTransformer(config, temporal=temporal, init=Init("xavier"), rngs=rngs)

    def look(self, video: jax.Array) -> tuple[jax.Array, TeacherOutputs]:
        """Tokens after the last block (rows, 1 + L, D), and the reading without `final`."""
        layers = tuple(self.config.layers)
        before = self.config.encoder.depth - 2  # its output is what the last block takes
        intermediate_layers = layers if before in layers or before < 0 else (*layers, before)
        x, intermediates = self.encoder(video, intermediate_layers=intermediate_layers)
        assert intermediates is not None  # noqa: S101  (layers are asked for)
        block = layer(self.encoder.blocks, -1)
        taken = (
            intermediates[intermediate_layers.index(before)]
            if before >= 0
            else self.encoder.first(video)
        )
        row = block.attn.first_row(block.norm1(taken))
        return x, TeacherOutputs(intermediates[: len(layers)], row[:, 1:])


class CLIPTeacher(_ClassTokenTeacher):
    """See `CLIPTeacherConfig`."""

    form = Form(lead=1, keeps_lead=False)

    def __init__(self, config: CLIPTeacherConfig, *, rngs: nnx.Rngs):
        super().__init__(config, temporal=False, rngs=rngs)

    def read(self, video: jax.Array) -> TeacherOutputs:
        """Of every frame; see `Teacher.read`."""
        return self.look(per_frame(video))[1]

    def finish(self, x: jax.Array) -> jax.Array:
        """Norm and projection into the space of captions, of every token."""
        return self.encoder.proj(self.encoder.norm_post(x))


class ViCLIPTeacher(_ClassTokenTeacher):
    """See `ViCLIPTeacherConfig`."""

    form = Form(lead=1, keeps_lead=True)

    def __init__(self, config: ViCLIPTeacherConfig, *, rngs: nnx.Rngs):
        super().__init__(config, temporal=True, rngs=rngs)

    def read(self, video: jax.Array) -> TeacherOutputs:
        """Of the clip, with its embedding as `final`; see `Teacher.read`."""
        x, reading = self.look(video)
        return reading._replace(final=self.encoder.embed_token(x))
