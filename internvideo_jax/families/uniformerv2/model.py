"""UniFormerV2: a CLIP image transformer that is made to see time.

Li et al. 2022 (UniFormerV2), the classifier of Wang et al. 2022 (InternVideo). The image
transformer runs on every frame. Two things are added: local blocks that mix neighbouring frames at
the same place (local MHRA), and global blocks in which one query token attends to all tokens of
some layers and collects what the video shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from data_pipelines.limits import limited
from internvideo_jax.families.uniformerv2.blocks import GlobalUniBlock, LocalUniBlock
from internvideo_jax.layers.block import BlockConfig, layer_norm
from internvideo_jax.layers.block_stack import run_layers, stacked
from internvideo_jax.layers.clip import IMAGE_FORMS, NORM_EPS, ImageTokens, clip_block, inflate
from internvideo_jax.layers.drop_path import head_dropout
from internvideo_jax.layers.functional import FunctionalModel, WithStatistics, classifier
from internvideo_jax.layers.init import Init, torch_uniform
from internvideo_jax.layers.linear import Linear
from internvideo_jax.layers.tower import (
    TowerConfig,
    VideoTowerConfig,
    check_layers,
    preset_size,
    tower,
)
from internvideo_jax.ops.pixels import normalize, patchify
from internvideo_jax.parallel.mesh import constrain
from internvideo_jax.protocols import Adaptation, Classes, TokenFeatures, Traits
from internvideo_jax.registry import suggest
from internvideo_jax.types import flatten_paths

GLOBAL_KEY, HEAD_KEY = 0x47, 0x48  # folded into the keys, apart from the layers' numbers


@dataclasses.dataclass(frozen=True)
class UniFormerV2Size:
    """A published size: the image transformer of CLIP, and the pixels that it takes."""

    encoder: TowerConfig
    resolution: int
    patch: int


SIZES = {
    "tiny": UniFormerV2Size(tower(96, 4, 4), 48, 8),
    "base": UniFormerV2Size(tower(768, 12, 12), 224, 16),
    "large": UniFormerV2Size(tower(1024, 24, 16), 224, 14),
    "large336": UniFormerV2Size(tower(1024, 24, 16), 336, 14),
}
STYLES = ("kinetics", "something")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniFormerV2Config(VideoTowerConfig):
    """Factory: `UniFormerV2Config.of_size("base", style="kinetics", classes=400)`."""

    name: str = "uniformerv2"
    classes: int = 0  # 0 = as many as the dataset has
    # Frames are embedded in overlapping threes, two frames apart: half as many tokens in time.
    temporal_downsample: bool = False
    local_blocks: int = 0  # local MHRA per layer: 0, 1 (before attention), 2 (before the MLP too)
    local_reduction: float = limited(1.5, above=0)  # width over the width of a local block
    global_layers: Sequence[int] = ()  # layers (from 0) whose output a global block reads
    mlp_factor: float = limited(4.0, above=0)  # hidden over width in the global blocks
    # Form of the image transformer: clip (all published models) | vit (DINO, DeiT).
    backbone: str = "clip"
    # The head of the published models with a frozen backbone: class tokens of the frames unused.
    frozen: bool = False
    drop_path: float = limited(0.0, least=0, below=1)  # of the last layer; the others have less
    global_drop_path: float = limited(0.0, least=0, below=1)  # of the last global block
    mlp_dropout: float = limited(0.5, least=0, below=1)  # of the hidden units of the global blocks
    head_dropout: float = limited(0.5, least=0, below=1)
    pixel_mean: Sequence[float] = (0.45, 0.45, 0.45)
    pixel_std: Sequence[float] = (0.225, 0.225, 0.225)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone not in IMAGE_FORMS:
            raise ValueError(
                f"config.model.backbone: unknown form {self.backbone!r}: "
                f"{suggest(self.backbone, IMAGE_FORMS)}"
            )
        check_layers("config.model.global_layers", self.global_layers, self.encoder.depth)
        if self.local_blocks not in (0, 1, 2):
            raise ValueError(
                f"config.model.local_blocks = {self.local_blocks}: expected 0, 1 or 2 per layer"
            )

    @classmethod
    def of_size(cls, name: str, /, *, style: str = "kinetics", **changes: Any) -> UniFormerV2Config:
        """A published variant.

        Args:
          name: one of SIZES.
          style: `kinetics` is the image transformer with global blocks behind its last four
            layers; `something` (Something-Something) has local blocks, halves the frames and has
            global blocks behind the upper two thirds of its layers.

        Raises:
          ValueError: unknown name or style.
        """
        preset = preset_size(SIZES, name)
        if style not in STYLES:
            raise ValueError(f"unknown style {style!r}: {suggest(style, STYLES)}")
        depth = preset.encoder.depth
        settings: dict[str, Any] = {"resolution": preset.resolution, "patch": preset.patch}
        if style == "kinetics":
            settings["global_layers"] = tuple(range(max(depth - 4, 0), depth))
        else:
            settings.update(
                global_layers=tuple(range(depth // 3, depth)),
                local_blocks=2,
                temporal_downsample=True,
                frames=16,
                drop_path=0.2,
                global_drop_path=0.4,
            )
        return cls(encoder=preset.encoder, **{**settings, **changes})

    def smallest(self) -> Self:
        """The same kind of model with two thin layers, four tokens a frame and few frames."""
        return self.shrunk(8, global_layers=(0, 1))

    def model(self) -> FunctionalModel:
        """The network; ValueError where `classes` is not known yet."""
        return classifier(self, UniFormerV2)

    @property
    def tubelet(self) -> int:
        """Frames per token, as far as tokens are counted; see `kernel_frames`."""
        return 2 if self.temporal_downsample else 1

    @property
    def tokens(self) -> int:
        """Tokens of a clip: the patches and the class token of every frame."""
        time, height, width = self.grid
        return time * (1 + height * width)

    @property
    def kernel_frames(self) -> int:
        """Frames that the patch embedding covers."""
        return 3 if self.temporal_downsample else 1

    @property
    def local_width(self) -> int:
        """Channels of a local block: the reference's floor division, 1024 // 1.5 = 682."""
        return int(self.encoder.width // self.local_reduction)

    @property
    def global_hidden(self) -> int:
        """Channels inside the MLP of a global block."""
        return round(self.mlp_factor * self.encoder.width)

    @property
    def running_statistics(self) -> bool:
        """Whether training goes through `train`, which also gives statistics to go on with."""
        return self.local_blocks > 0

    @property
    def traits(self) -> Traits:
        """It starts from CLIP; a classifier whose features probes can read."""
        return dataclasses.replace(
            super().traits,
            per_frame=True,
            adaptation=Adaptation(lambda source, _: self.adapt_weights(source)),
            classifier=Classes(self.classes, self.running_statistics),
            features=TokenFeatures(self.tokens, self.encoder.width, self.forward_flops()),
        )

    def stack_options(self) -> dict[str, Any]:
        """How `run_layers` goes through the blocks; tokens of a frame stay together."""
        return {**super().stack_options(), "axes": ("batch", "frames")}

    def block(self) -> BlockConfig:
        """Of the image transformer."""
        return clip_block(self.encoder, self.attention, form=IMAGE_FORMS[self.backbone])

    def global_block(self) -> BlockConfig:
        """Of the query's blocks: of CLIP's form whatever the image transformer has."""
        tower = dataclasses.replace(self.encoder, hidden=self.global_hidden)
        return clip_block(tower, self.attention)

    def forward_flops(self) -> float:
        """Of one clip."""
        (time, height, width), channels = self.grid, self.encoder.width
        patches = time * height * width
        embed = 2.0 * patches * self.kernel_frames * self.patch**2 * 3 * channels
        layers = time * self.encoder.flops(1 + height * width)
        local = 2.0 * patches * self.local_width * (2 * channels + 3)
        local *= self.local_blocks * self.encoder.depth
        reading = 2.0 * 27 * patches * channels + self.tokens * (4.0 * channels**2 + 4 * channels)
        query = 2.0 * channels * (2 * channels + 2 * self.global_hidden)
        heads = 2.0 * channels * self.classes
        return embed + layers + local + len(self.global_layers) * (reading + query) + heads

    def adapt_weights(self, source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Weights of an image model as those of a video model.

        A patch embedding of single frames becomes the middle of one over three, the others zero.

        Raises:
          ValueError: weights of the other form of image transformer.
        """
        if any(path.startswith("encoder/patch_embed/") for path in source):
            form = "clip" if "encoder/norm_pre/scale" in source else "vit"
            if form != self.backbone:
                raise ValueError(
                    f"the weights are those of an image transformer of the form {form!r}, "
                    f"config.model.backbone is {self.backbone!r}; set it to {form!r}"
                )
        adapted, path = dict(source), "encoder/patch_embed/kernel"
        rows = self.patch**2 * 3
        if path in source and self.kernel_frames > 1 and source[path].shape[0] == rows:
            adapted[path] = inflate(source[path], self.kernel_frames)
        return adapted


class UniFormerV2Encoder(ImageTokens):
    """The image transformer: patch embedding, class token, positions, norm, blocks.

    Positions are never resized: the reference leaves a table of another size fresh and has CLIP
    weights for both of its resolutions.
    """

    def __init__(self, config: UniFormerV2Config, *, init: Init, rngs: nnx.Rngs):
        dtype, values = jnp.dtype(config.dtype), config.kernel_frames * config.patch**2 * 3
        rows, form = 1 + int(np.prod(config.grid[1:])), IMAGE_FORMS[config.backbone]
        super().__init__(values, rows, config.encoder.width, form=form, dtype=dtype, rngs=rngs)
        self.config = config
        self.blocks = stacked(
            lambda rngs: LocalUniBlock(
                config.block(),
                [config.local_width] * config.local_blocks,
                dropping=config.drop_path > 0,
                init=init,
                dtype=dtype,
                rngs=rngs,
            ),
            config.encoder.depth,
            rngs,
        )

    def patches(self, video: jax.Array) -> jax.Array:
        """Embedded patches without positions: (B, T, H, W, 3) -> (B, T', N, D)."""
        config = self.config
        expected = (config.frames, config.resolution, config.resolution, 3)
        if video.shape[1:] != expected:
            raise ValueError(f"video is {video.shape[1:]} (T, H, W, 3), model expects {expected}")
        x = normalize(patchify(video, 1, config.patch), config.pixel_mean, config.pixel_std)
        x = x.reshape(len(x), config.frames, -1, x.shape[-1])
        if config.temporal_downsample:
            # Frames 2t - 1, 2t, 2t + 1; before the first there is grey, zero after normalising.
            before = jnp.pad(x[:, 1:-1:2], [(0, 0), (1, 0), (0, 0), (0, 0)])
            x = jnp.concatenate([before, x[:, ::2], x[:, 1::2]], axis=-1)
        return self.patch_embed(x)

    def embed(self, video: jax.Array) -> jax.Array:
        """Input of the first block: (B, T, H, W, 3) -> (B, T', 1 + N, D)."""
        x = self.patches(video)
        cls = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (*x.shape[:2], 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=2) + self.pos_embed.table[...].astype(x.dtype)
        return constrain(self.normalised(x), "batch", "frames")

    def __call__(
        self,
        video: jax.Array,
        keys: jax.Array | None = None,
        intermediate_layers: Sequence[int] = (),
    ) -> tuple[jax.Array, jax.Array | None, dict[str, Any]]:
        """Tokens (B, T', 1 + N, D), intermediates, running statistics in training."""
        config = self.config
        return run_layers(
            self.blocks,
            self.embed(video),
            keys=keys,
            drop_path=config.drop_path,
            intermediate_layers=intermediate_layers,
            **config.stack_options(),
        )


class UniFormerV2(WithStatistics):
    """Image transformer, global blocks, and a head on the query and the frames' class tokens.

    Without CLIP weights linear layers start Xavier-uniform with zero bias; nobody has trained this
    model from there.
    """

    def __init__(self, config: UniFormerV2Config, *, rngs: nnx.Rngs):
        self.config = config
        dtype, init, width = jnp.dtype(config.dtype), Init("xavier"), config.encoder.width
        self.encoder = UniFormerV2Encoder(config, init=init, rngs=rngs)
        self.temporal_cls_token = nnx.Param(jnp.zeros(width))
        self.global_blocks = stacked(
            lambda rngs: GlobalUniBlock(
                config.global_block(),
                config.grid,
                dropping=config.global_drop_path > 0,
                mlp_dropout=config.mlp_dropout,
                init=init,
                dtype=dtype,
                rngs=rngs,
            ),
            len(config.global_layers),
            rngs,
        )
        self.balance = None if config.frozen else nnx.Param(jnp.zeros(width))
        # Norm and head work in float32: they cost nothing and logits feed the loss.
        self.norm = layer_norm(width, dtype=jnp.dtype("float32"), rngs=rngs, eps=NORM_EPS)

        def uniform(key: jax.Array, shape: Sequence[int], _: DTypeLike | None = None) -> jax.Array:
            return torch_uniform(key, shape, width)

        self.head = Linear(width, config.classes, rngs=rngs, kernel_init=uniform, bias_init=uniform)

    def train(
        self, video: jax.Array, keys: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and new values of the running statistics by parameter path."""
        x, intermediates, running = self.encoder(video, keys, self.config.global_layers)
        logits = self.classify(self.query(intermediates, keys)[0], x, keys)
        return logits, {f"encoder/blocks/{k}": v for k, v in flatten_paths(running).items()}

    def query(
        self,
        intermediates: jax.Array | None,
        keys: jax.Array | None = None,
        intermediate_layers: Sequence[int] = (),
    ) -> tuple[jax.Array, jax.Array | None]:
        """The query token after the global blocks (B, 1, D), and after `intermediate_layers`.

        Args:
          intermediates: (number of global blocks, B, T', 1 + N, D), what each of them reads.
        """
        assert intermediates is not None  # noqa: S101  (global_layers is not empty)
        config = self.config
        token = self.temporal_cls_token[...].astype(intermediates.dtype)
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.fold_in(key, GLOBAL_KEY))(keys)
        q, outputs, _ = run_layers(
            self.global_blocks,
            jnp.broadcast_to(token, (intermediates.shape[1], 1, token.shape[-1])),
            inputs=(intermediates,),
            keys=keys,
            drop_path=config.global_drop_path,
            intermediate_layers=intermediate_layers,
            **config.stack_options(),
        )
        return q, outputs

    def classify(self, q: jax.Array, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Query (B, 1, D) or (B, D) and last tokens (B, T', 1 + N, D) -> logits (B, classes)."""
        z = q.reshape(len(x), -1).astype(jnp.float32)
        if self.balance is not None:
            weight = jax.nn.sigmoid(self.balance[...])
            frames = x[:, :, 0].astype(jnp.float32).mean(axis=1)
            z = (1.0 - weight) * z + weight * frames
        z = self.norm(z)
        return self.head(head_dropout(z, keys, self.config.head_dropout, HEAD_KEY))

    def features(self, video: jax.Array) -> jax.Array:
        """Tokens of the image transformer (B, N, D), for probes and nearest neighbours."""
        x = self.encoder(video)[0]
        return x.reshape(len(x), -1, x.shape[-1])
