"""InternVideo2's student of stage 1, and of the distillation of the small sizes.

Wang et al. 2024 (InternVideo2). The encoder sees the patches that the teacher attends to. Outputs
of its last blocks, each through a decoder of its own, and its pooled vector are compared with those
of an image or video teacher (CLIP branch), and of VideoMAE V2 (MAE branch, without class token).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipelines.limits import limited
from internvideo_jax.families.internvideo2.model import (
    EncoderConfig,
    InternVideo2Encoder,
    Positions,
    attention_pool,
)
from internvideo_jax.layers.block_stack import stacked
from internvideo_jax.layers.decoders import (
    DECODER_SHARDING,
    KINDS,
    FeatureDecoder,
    decode,
    decoder_flops,
)
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.pos_embed import check_sincos_width
from internvideo_jax.layers.tower import SMALLEST, check_layers, last_layers
from internvideo_jax.protocols import Inputs, ShardingRules, Traits
from internvideo_jax.types import Tree

DECODER_EPS = 1e-5
CLIP_COUNT, MAE_COUNT = 6, 4  # aligned layers of the published models


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig(EncoderConfig):
    """Factory: `StudentConfig.of_size("1b", stride=2, mae_width=1408)`."""

    name: str = "internvideo2_student"
    # The batch has stride * frames frames, of which the student takes every stride-th: 2 where a
    # VideoMAE teacher of tubelet 2 sees them all.
    stride: int = limited(1, least=1)
    clip_width: int = 3200  # of the teacher's aligned features; 0 = none are aligned
    clip_layers: Sequence[int] = ()  # aligned blocks, ascending; empty: the last six
    clip_decoder: str = "linear"  # linear | mlp, the one of the pooled vector too
    final_width: int = 768  # of the teacher's pooled vector; 0 = not aligned
    mae_width: int = 0  # of the second teacher's features; 0 = there is none
    mae_layers: Sequence[int] = ()  # aligned blocks, ascending; empty: the last four

    class_token: ClassVar[bool] = True  # the first of the aligned tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        # Its tables start from sines: there are no weights of a student before it.
        check_sincos_width(self.encoder.width, self.pos_table)
        depth = self.encoder.depth
        for branch, count, width, layers in (
            ("clip", CLIP_COUNT, self.clip_width, self.clip_layers),
            ("mae", MAE_COUNT, self.mae_width, self.mae_layers),
        ):
            layers = tuple(layers) or (last_layers(depth, min(depth, count)) if width else ())
            object.__setattr__(self, f"{branch}_layers", layers)
            if bool(layers) != (width > 0):
                raise ValueError(
                    f"config.model.{branch}_layers = {layers} with {branch}_width = {width}: "
                    "expected no layers without a width"
                )
            if layers:
                check_layers(f"config.model.{branch}_layers", layers, depth)
        if self.clip_decoder not in KINDS:
            raise ValueError(
                f"config.model.clip_decoder = {self.clip_decoder!r}; known: {', '.join(KINDS)}"
            )
        if self.stride < 1:
            raise ValueError(f"config.model.stride = {self.stride}: expected 1 at least")

    @property
    def inputs(self) -> Inputs:
        """Clips of `stride` times as many frames as it sees: teachers see the others too."""
        return Inputs(self.clip_input(stride=self.stride))

    @property
    def traits(self) -> Traits:
        """Those of the encoder, and it can be taught."""
        return dataclasses.replace(super().traits, student=self)

    @property
    def clip_frames(self) -> int:
        """Frames of a clip in the batch."""
        return self.stride * self.frames

    @property
    def intermediate_layers(self) -> tuple[int, ...]:
        """Blocks whose outputs are kept, ascending."""
        return tuple(sorted({*self.clip_layers, *self.mae_layers}))

    def smallest(self) -> Self:
        """Two thin layers; of a branch as many are aligned as were, at most both."""
        depth = SMALLEST.depth
        layers = {
            name: last_layers(depth, min(depth, len(found)))
            for name, found in (("clip_layers", self.clip_layers), ("mae_layers", self.mae_layers))
        }
        return super(StudentConfig, dataclasses.replace(self, **layers)).smallest()

    def model(self) -> FunctionalModel:
        """Encoder and a decoder for every aligned layer."""
        return FunctionalModel(self, InternVideo2Student)

    @property
    def sharding_rules(self) -> ShardingRules:
        """Which axes of its parameters are split over which axes of the mesh."""
        first, second = DECODER_SHARDING
        if not (self.clip_width or self.final_width or self.mae_width):
            return super().sharding_rules
        mlp = self.mae_width > 0 or self.clip_decoder == "mlp"
        return (*super().sharding_rules, first, *([second] if mlp else []))

    def forward_flops(self, visible: int | None = None) -> float:
        """Of one clip of which the student sees `visible` patch tokens; None = all."""
        tokens, width = self.tokens if visible is None else visible, self.encoder.width
        clip = decoder_flops(self.clip_decoder, width, self.clip_width, 1 + tokens)
        mae = decoder_flops("mlp", width, self.mae_width, tokens)
        total = super().forward_flops(visible)
        total += len(self.clip_layers) * clip + len(self.mae_layers) * mae
        if self.final_width:
            total += decoder_flops(self.clip_decoder, self.embedding, self.final_width, 1)
        return total


class InternVideo2Student(nnx.Module):
    """Encoder and pool on visible tokens, and the decoders of what is aligned."""

    def __init__(self, config: StudentConfig, *, rngs: nnx.Rngs):
        self.config = config
        grid, width, table = config.grid, config.encoder.width, config.pos_table
        clip, mae = config.clip_width > 0, config.mae_width > 0
        options: dict[str, Any] = {
            "eps": DECODER_EPS,
            "init": Init("normal"),
            "dtype": jnp.dtype(config.dtype),
        }

        def decoders(layers: Sequence[int], out: int, kind: str) -> FeatureDecoder:
            return stacked(
                lambda rngs: FeatureDecoder(width, out, kind=kind, **options, rngs=rngs),
                len(layers),
                rngs,
            )

        kind = config.clip_decoder
        self.encoder = InternVideo2Encoder(config, rngs=rngs)
        self.pool = attention_pool(config, rngs=rngs)
        self.clip_pos_embed = Positions(table, grid, width) if clip else None
        self.clip_decoder = decoders(config.clip_layers, config.clip_width, kind) if clip else None
        self.final_decoder = (
            FeatureDecoder(config.embedding, config.final_width, kind=kind, **options, rngs=rngs)
            if config.final_width
            else None
        )
        self.mae_pos_embed = Positions(table, grid, width, class_token=False) if mae else None
        self.mae_decoder = decoders(config.mae_layers, config.mae_width, "mlp") if mae else None

    def __call__(
        self, video: jax.Array, visible: jax.Array, keys: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Features to compare with the teachers', float32 of length one.

        Args:
          video: (B, stride * T, H, W, 3) uint8, or float in 0..1; or the student's T frames alone.
          visible: (B, V) int32 increasing numbers of the patches that the encoder sees.
          keys: (B,) keys for drop path in training; None in evaluation.

        Returns:
          `clip_middle` (K, B, 1 + V, C), class token first, `clip_final` (B, E) and `mae`
          (K, B, V, C), aligned blocks in ascending order; without those that are not aligned.
        """
        x, intermediates = self.encoder(
            self.frames(video),
            visible,
            keys=keys,
            intermediate_layers=self.config.intermediate_layers,
        )
        found = {}
        if self.clip_decoder is not None and self.clip_pos_embed is not None:
            kept = self.intermediates_of(intermediates, self.config.clip_layers)
            found["clip_middle"] = self.decoded(
                self.clip_decoder, kept, self.clip_pos_embed(visible)
            )
        if self.final_decoder is not None:
            found["clip_final"] = self.final_decoder(self.pool(x))
        if self.mae_decoder is not None and self.mae_pos_embed is not None:
            kept = self.intermediates_of(intermediates, self.config.mae_layers)[:, :, 1:]
            found["mae"] = self.decoded(self.mae_decoder, kept, self.mae_pos_embed(visible))
        return found

    def decoded(self, decoders: FeatureDecoder, kept: jax.Array, positions: jax.Array) -> jax.Array:
        """Each layer through its decoder: (K, B, V, D) and (B, V, D) -> (K, B, V, C) float32."""
        graph, params = nnx.split(decoders)

        def run(params: Tree, kept: jax.Array, positions: jax.Array) -> jax.Array:
            return decode(nnx.merge(graph, params), kept + positions.astype(kept.dtype))

        if self.config.remat != "none":
            # Six layers of 3200 channels in float32 are more than a layer of the encoder keeps.
            run = jax.checkpoint(run)
        return run(params, kept, positions)

    def intermediates_of(self, intermediates: jax.Array | None, layers: Sequence[int]) -> jax.Array:
        """Those of the kept outputs that are of `layers`, (K, B, 1 + V, D)."""
        assert intermediates is not None  # noqa: S101  (a branch has layers)
        rows = [self.config.intermediate_layers.index(layer) for layer in layers]
        if rows == list(range(rows[0], rows[-1] + 1)):  # as published: no copy
            return intermediates[rows[0] : rows[-1] + 1]
        return jnp.stack([intermediates[row] for row in rows])

    def frames(self, video: jax.Array) -> jax.Array:
        """The student's frames of a clip of the batch; a clip of as many is taken as it is."""
        config = self.config
        return video[:, :: config.stride] if video.shape[1] == config.clip_frames else video

    def features(self, video: jax.Array) -> jax.Array:
        """Tokens (B, 1 + N, D) after the last block, class token first, not normalised."""
        return self.encoder(self.frames(video))[0]
