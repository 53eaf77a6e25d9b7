"""Stacks of transformer blocks on the patches of a clip: sizes, settings, what they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import jax
import numpy as np

from data_pipelines.limits import limited
from internvideo_jax.layers.block import BLOCK_SHARDING, Block
from internvideo_jax.layers.block_stack import check_remat, run_stack
from internvideo_jax.ops.attention import check_form
from internvideo_jax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize, patchify, token_grid
from internvideo_jax.ops.tokens import take
from internvideo_jax.protocols import ClipInput, Inputs, ShardingRules, Traits
from internvideo_jax.registry import suggest

Size = TypeVar("Size")

# What activations may be. Without JAX_ENABLE_X64 jax would make float64 float32, silently.
FLOATS = (
    "bfloat16",
    "float16",
    "float32",
    *(("float64",) if jax.config.read("jax_enable_x64") else ()),
)


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """One stack of transformer blocks."""

    width: int = limited(least=1)
    depth: int = limited(least=1)
    heads: int = limited(least=1)
    hidden: int = limited(least=1)  # units of the MLP

    def flops(self, tokens: int) -> float:
        """Multiply-adds of a forward pass over `tokens` tokens of one example, times two."""
        linear = 2 * tokens * self.width * (4 * self.width + 2 * self.hidden)
        attention = 4 * tokens * tokens * self.width
        return float(self.depth * (linear + attention))


SMALLEST = TowerConfig(width=32, depth=2, heads=2, hidden=64)


def tower(width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> TowerConfig:
    """A tower whose hidden size truncates like the reference's `int(width * mlp_ratio)`."""
    return TowerConfig(width, depth, heads, int(width * mlp_ratio))


def preset_size(sizes: Mapping[str, Size], name: str) -> Size:
    """The entry of a table of sizes; ValueError with the near matches when there is none."""
    if name not in sizes:
        raise ValueError(f"unknown model size {name!r}: {suggest(name, sizes)}")
    return sizes[name]


def last_layers(depth: int, count: int, interval: float = 1.0) -> tuple[int, ...]:
    """The `count` blocks that are aligned, ascending: depth - 1 - trunc(i * interval).

    Raises:
      ValueError: the blocks do not exist, or one would be taken twice.
    """
    layers = tuple(depth - 1 - int(i * interval) for i in reversed(range(count)))
    if layers and (layers[0] < 0 or len(set(layers)) < count):
        raise ValueError(
            f"{count} layers at intervals of {interval} are blocks {layers} of 0 to {depth - 1}; "
            "take fewer, or another interval"
        )
    return layers


def check_layers(field: str, layers: Sequence[int], depth: int) -> None:
    """ValueError that names `field` unless `layers` are some of the blocks, in ascending order."""
    if not layers or list(layers) != sorted(set(layers)) or not set(layers) <= set(range(depth)):
        raise ValueError(
            f"{field} = {tuple(layers)}: expected ascending numbers of blocks, one at least, "
            f"0 to {depth - 1}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTowerConfig:
    """What the encoders of clips have in common; models add the form of their blocks and tables."""

    encoder: TowerConfig
    frames: int = limited(8, least=1)
    resolution: int = limited(224, least=1)  # pixels, height and width
    patch: int = limited(16, least=1)  # pixels per token, height and width
    pixel_mean: Sequence[float] = IMAGENET_MEAN
    pixel_std: Sequence[float] = IMAGENET_STD
    # Of activations and matmuls; parameters stay float32.
    dtype: str = limited("bfloat16", known=FLOATS, note="jax computes in 32 bits at most")
    attention: str = "auto"  # auto | xla | flash | blocked | cudnn; see ops/attention.py
    remat: str = "none"  # none | full | attention | dots; see layers/block_stack.py
    scan: bool = True

    def __post_init__(self) -> None:
        token_grid(
            self.frames, self.resolution, self.tubelet, self.patch
        )  # raises where it does not fit
        check_form(self.attention)
        check_remat(self.remat)

    @property
    def tubelet(self) -> int:
        """Frames per token; a setting of the models that have tubelets."""
        return 1

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patch tokens in time, height, width."""
        return token_grid(self.frames, self.resolution, self.tubelet, self.patch)

    @property
    def tokens(self) -> int:
        """Patch tokens of a clip; a class token, where there is one, comes on top."""
        return int(np.prod(self.grid))

    @property
    def inputs(self) -> Inputs:
        """Clips; models that read more say so."""
        return Inputs(self.clip_input())

    def clip_input(self, **changes: Any) -> ClipInput:
        """Its clips, with changes."""
        return ClipInput(
            self.frames,
            self.resolution,
            self.grid,
            self.tubelet,
            self.patch,
            self.pixel_mean,
            self.pixel_std,
            **changes,
        )

    @property
    def traits(self) -> Traits:
        """What all encoders of clips can do; models add their own."""
        return Traits(stacks={"encoder": self.encoder}, remat=self.remat)

    @property
    def sharding_rules(self) -> ShardingRules:
        """Which axes of its parameters are split over which axes of the mesh."""
        return BLOCK_SHARDING

    @property
    def token_pixels(self) -> int:
        """Values of one tubelet: frames * rows * columns * colours."""
        return self.tubelet * self.patch**2 * 3

    def embed_flops(self, tokens: int) -> float:
        """Of the patch embedding of so many tokens."""
        return 2.0 * tokens * self.token_pixels * self.encoder.width

    def shrunk(self, frames: int, **changes: Any) -> Self:
        """With two thin layers, at most so many frames and four patches each, and changes."""
        small: dict[str, Any] = {"encoder": SMALLEST, "dtype": "float32", **changes}
        frames, resolution = min(self.frames, frames), 2 * self.patch
        return dataclasses.replace(self, frames=frames, resolution=resolution, **small)

    def stack_options(self) -> dict[str, Any]:
        """How `run_stack` goes through the blocks."""
        return {"remat": self.remat, "scan": self.scan, "axes": ("batch", "tokens")}

    def run(
        self,
        blocks: Block,
        x: jax.Array,
        keys: jax.Array | None = None,
        drop_path: float = 0.0,
        intermediate_layers: Sequence[int] = (),
    ) -> tuple[jax.Array, jax.Array | None]:
        """`run_stack` as the config says."""
        return run_stack(
            blocks,
            x,
            keys=keys,
            drop_path=drop_path,
            intermediate_layers=intermediate_layers,
            **self.stack_options(),
        )

    def pixels(
        self, video: jax.Array, visible: jax.Array | None = None, *, image: bool = False
    ) -> jax.Array:
        """What the patch embedding reads: (B, T, H, W, 3) -> (B, V or N, token_pixels).

        Patches are picked before they are embedded, so hidden ones cost nothing. One that the clip
        does not have is NaN.

        Args:
          video: uint8, or float in 0..1.
          visible: (B, V) int32 numbers of the patches that are kept; None keeps all.
          image: whether a clip may also have a single frame.

        Raises:
          ValueError: a clip of other frames or pixels.
        """
        expected = (self.frames, self.resolution, self.resolution, 3)
        single = image and video.shape[1:] == (1, *expected[1:])
        if video.shape[1:] != expected and not single:
            hint = ", or T = 1 for an image" if image else ""
            raise ValueError(
                f"video is {video.shape[1:]} (T, H, W, 3), model expects {expected}{hint}"
            )
        patches = patchify(video, self.tubelet, self.patch)
        if visible is not None:
            patches = take(patches, visible)
        return normalize(patches, self.pixel_mean, self.pixel_std)
