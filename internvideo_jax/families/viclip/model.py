"""ViCLIP: a video encoder and a text encoder that meet in one space.

Wang et al. 2023 (InternVid). CLIP's image transformer with one attention over all tokens of a clip,
a table for the frames, and nine tenths of the patches left out in training; CLIP's text transformer
as it is. A clip of one frame is an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.limits import limited
from internvideo_jax.families.clip.text import TextTransformer
from internvideo_jax.layers.block import BlockConfig, layer_norm
from internvideo_jax.layers.block_stack import stacked_blocks
from internvideo_jax.layers.clip import NORM_EPS, ImageTokens, clip_block, projection
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.tower import SMALLEST, TowerConfig, VideoTowerConfig, preset_size, tower
from internvideo_jax.ops.position_tables import resize_image, resize_length
from internvideo_jax.parallel.mesh import constrain
from internvideo_jax.protocols import (
    Adaptation,
    Inputs,
    ShardingRules,
    TextInput,
    TokenFeatures,
    Traits,
)

VOCABULARY = 49408  # of CLIP's tokenizer
IMAGE = "encoder/pos_embed/table"
FRAMES = "encoder/pos_embed/temporal"
TEXT = "text/pos_embed/table"


@dataclasses.dataclass(frozen=True)
class ViCLIPSize:
    """A published size: encoders of videos and captions, and the pixels of a frame."""

    encoder: TowerConfig
    text: TowerConfig
    embedding: int
    resolution: int = 224
    patch: int = 16


_BASE, _LARGE = tower(768, 12, 12), tower(1024, 24, 16)
SIZES = {
    "tiny": ViCLIPSize(tower(96, 4, 4), tower(96, 3, 4), 64, 48, 8),
    "base": ViCLIPSize(_BASE, tower(512, 12, 8), 512),
    "base32": ViCLIPSize(_BASE, tower(512, 12, 8), 512, patch=32),
    "large": ViCLIPSize(_LARGE, tower(768, 12, 12), 768, patch=14),
    "large336": ViCLIPSize(_LARGE, tower(768, 12, 12), 768, resolution=336, patch=14),
}

SIGLIP_BIAS = -10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTransformerConfig(VideoTowerConfig):
    """The video encoder alone.

    `attention` is that of the video encoder: the text encoder is causal, which only xla is.
    """

    embedding: int = limited(least=1)  # channels of the common space
    # Of the last layer of the video encoder; the others have less.
    drop_path: float = limited(0.0, least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding < 1:
            raise ValueError(f"config.model.embedding = {self.embedding}: expected 1 at least")

    @property
    def traits(self) -> Traits:
        """It starts from CLIP or another ViCLIP; probes can read its tokens."""
        return dataclasses.replace(
            super().traits,
            adaptation=Adaptation(lambda source, _: self.adapt_weights(source)),
            features=TokenFeatures(self.tokens, self.encoder.width, self.video_flops()),
        )

    def block(self) -> BlockConfig:
        """Of the video encoder."""
        return clip_block(self.encoder, self.attention)

    def video_flops(self, visible: int | None = None) -> float:
        """Of one clip, when `visible` patch tokens are left (default: all)."""
        tokens, width = self.tokens if visible is None else visible, self.encoder.width
        return (
            self.embed_flops(tokens) + self.encoder.flops(1 + tokens) + 2.0 * width * self.embedding
        )

    def adapt_weights(self, source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights of an encoder of another size or length as those of this one.

        The table of places is resized bicubically. A table of frames is stretched linearly for more
        frames, and its first rows are taken for fewer.
        """
        adapted = dict(source)
        if IMAGE in source:
            adapted[IMAGE] = resize_image(source[IMAGE], self.grid[1])
        if FRAMES in source:
            adapted[FRAMES] = resize_length(source[FRAMES], self.frames, longer="linear")
        return adapted


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViCLIPConfig(VideoTransformerConfig):
    """Factory: `ViCLIPConfig.of_size("base")`."""

    name: str = "viclip"
    text: TowerConfig
    context: int = limited(32, least=1)  # ids per caption, special tokens and padding included
    vocab: int = limited(VOCABULARY, least=1)
    # Initial value; objectives keep it from falling below 0.01.
    temperature: float = limited(0.01, above=0)
    # Also learn a bias of the logits, for the sigmoid loss: SigLIP (Zhai et al. 2023) starts it at
    # -10, since nearly all pairs of a batch are wrong. Published files have none.
    logit_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, value in (("context", self.context), ("vocab", self.vocab)):
            if value < 2:
                raise ValueError(f"config.model.{field} = {value}: expected 2 at least")
        if self.temperature <= 0:
            raise ValueError(f"config.model.temperature = {self.temperature}: expected more than 0")

    @classmethod
    def of_size(cls, name: str, /, **changes: Any) -> ViCLIPConfig:
        """A variant of SIZES; published are `base` (B/16) and `large` (L/14).

        Raises:
          ValueError: unknown name.
        """
        return cls(**{**vars(preset_size(SIZES, name)), **changes})

    def smallest(self) -> Self:
        """The same kind of model with two thin layers a side, four tokens a frame, few frames."""
        return self.shrunk(8, text=SMALLEST, embedding=32)

    def model(self) -> FunctionalModel:
        """Both encoders and the temperature."""
        return FunctionalModel(self, ViCLIP)

    @property
    def inputs(self) -> Inputs:
        """Clips, of images too, and captions."""
        clip = self.clip_input(media=("video", "image"))
        return Inputs(clip, TextInput(self.context, self.vocab))

    @property
    def traits(self) -> Traits:
        """Those of the video encoder, and a stack of text blocks."""
        stacks = {"encoder": self.encoder, "text": self.text}
        return dataclasses.replace(super().traits, stacks=stacks)

    @property
    def sharding_rules(self) -> ShardingRules:
        """Which axes of its parameters are split over which axes of the mesh."""
        return (*super().sharding_rules, (r"text/token_embed$", ("tensor", "fsdp")))

    def text_block(self) -> BlockConfig:
        """Of the text encoder: causal."""
        return clip_block(self.text, causal=True)

    def forward_flops(self, visible: int | None = None) -> float:
        """Of one clip with its caption, when `visible` patch tokens are left (default: all)."""
        return self.video_flops(visible) + self.text_flops()

    def text_flops(self) -> float:
        """Of one caption, padded to `context` tokens."""
        return self.text.flops(self.context) + 2.0 * self.text.width * self.embedding

    def adapt_weights(self, source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights of CLIP, or of a ViCLIP of another size or length, as those of this model.

        Tables of places and frames as in the base class. A table of text positions is stretched
        like the one of frames, but CLIP's own is filled up with zeros. CLIP has no table of frames
        and no temperature of our kind: these stay fresh.
        """
        adapted = super().adapt_weights(source)
        if TEXT in source:
            longer = "linear" if "temperature" in source else "zero"
            adapted[TEXT] = resize_length(source[TEXT], self.context, longer=longer)
        return adapted


class VideoTransformer(ImageTokens):
    """CLIP's image transformer on all patches of a clip and one class token.

    Without `temporal` there is no table of frames: CLIP itself, frame by frame.
    """

    def __init__(
        self, config: VideoTransformerConfig, *, temporal: bool = True, init: Init, rngs: nnx.Rngs
    ):
        dtype, width = jnp.dtype(config.dtype), config.encoder.width
        super().__init__(
            config.patch**2 * 3,
            1 + int(np.prod(config.grid[1:])),
            width,
            frames=config.frames if temporal else 0,
            dtype=dtype,
            rngs=rngs,
        )
        self.config = config
        self.blocks = stacked_blocks(
            config.block(), config.encoder.depth, init=init, dtype=dtype, rngs=rngs
        )
        # Norm and projection of one token work in float32: they cost nothing.
        self.norm_post = layer_norm(width, dtype=jnp.dtype("float32"), rngs=rngs, eps=NORM_EPS)
        self.proj = projection(width, config.embedding, rngs=rngs)

    def positions(self, frames: int) -> jax.Array:
        """(N, D) float32, what is added to the patches: their place's vector and their frame's.

        A single frame gets the mean over all frames. The class token has a place but no frame.
        """
        places, temporal = self.pos_embed.table[...][1:], self.pos_embed.temporal
        if temporal is None:
            return jnp.tile(places, (frames, 1))
        of_frames = temporal[...]
        if frames == 1:
            of_frames = of_frames.mean(axis=0, keepdims=True)
        return (of_frames[:, None] + places).reshape(-1, places.shape[-1])

    def tokens(self, video: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        """Class token, then patches, with positions: (B, T, H, W, 3) -> (B, 1 + N or V, D)."""
        x = self.patch_embed(self.config.pixels(video, visible, image=True))
        positions = self.positions(video.shape[1])[None]
        if visible is not None:
            # NaN for a patch that the clip does not have
            positions = jnp.take(positions[0], visible, axis=0, mode="fill")
        x = x + positions.astype(x.dtype)
        cls = (self.cls_token[...] + self.pos_embed.table[...][0]).astype(x.dtype)
        cls = jnp.broadcast_to(cls, (len(x), 1, x.shape[-1]))
        return jnp.concatenate([cls, x], axis=1)

    def first(self, video: jax.Array, visible: jax.Array | None = None) -> jax.Array:
        """What the first block takes, (B, 1 + N or V, D)."""
        return constrain(self.normalised(self.tokens(video, visible)), "batch", "tokens")

    def __call__(
        self,
        video: jax.Array,
        visible: jax.Array | None = None,
        *,
        keys: jax.Array | None = None,
        intermediate_layers: Sequence[int] = (),
    ) -> tuple[jax.Array, jax.Array | None]:
        """Tokens after the last block (B, 1 + N or V, D), and after `intermediate_layers`."""
        config = self.config
        x = self.first(video, visible)
        return config.run(self.blocks, x, keys, config.drop_path, intermediate_layers)

    def embed_token(self, x: jax.Array) -> jax.Array:
        """(B, 1 + N or V, D) after the last block -> (B, E) float32: the class token projected."""
        return self.proj(self.norm_post(x[:, 0]))


class ViCLIP(nnx.Module):
    """Two encoders and a temperature.

    The published models start from CLIP. From nothing, linear layers start Xavier-uniform with zero
    bias and all else as in CLIP.
    """

    def __init__(self, config: ViCLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        init = Init("xavier")
        self.encoder = VideoTransformer(config, init=init, rngs=rngs)
        self.text = TextTransformer(
            config.text_block(),
            depth=config.text.depth,
            vocab=config.vocab,
            context=config.context,
            embedding=config.embedding,
            init=init,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            scan=config.scan,
            rngs=rngs,
        )
        self.temperature = nnx.Param(jnp.float32(config.temperature))
        self.bias = nnx.Param(jnp.float32(SIGLIP_BIAS)) if config.logit_bias else None

    def __call__(
        self,
        video: jax.Array,
        text_ids: jax.Array,
        keys: jax.Array | None = None,
        visible: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Embeddings of clips and captions, and the temperature () as it is, not clamped."""
        return (
            self.encode_video(video, keys, visible),
            self.encode_text(text_ids),
            self.temperature[...],
        )

    def encode_video(
        self, video: jax.Array, keys: jax.Array | None = None, visible: jax.Array | None = None
    ) -> jax.Array:
        """(B, E) float32, not normalised.

        Args:
          video: (B, T, H, W, 3) uint8, or float in 0..1; T = 1 for images.
          keys: (B,) keys for drop path in training; None in evaluation.
          visible: (B, V) int32 increasing numbers of the patch tokens that are kept, time-major,
            then row, then column (the reference counts time fastest); None keeps all.
        """
        x, _ = self.encoder(video, visible, keys=keys)
        return self.encoder.embed_token(x)

    def encode_text(self, text_ids: jax.Array) -> jax.Array:
        """(B, E) float32, not normalised, of (B, S) int32 ids of CLIP's tokenizer, 0 = padding."""
        return self.text(text_ids)

    def features(self, video: jax.Array) -> jax.Array:
        """Normalised tokens (B, 1 + N, D), class token first, for probes and nearest neighbours."""
        return self.encoder.norm_post(self.encoder(video)[0])
