"""InternVideo2's classifier: fine-tuned, or a probe on a frozen encoder.

Wang et al. 2024 (InternVideo2). The head reads the attention-pooled vector. Attentive probing may
put an MLP between them; linear probing on Something-Something concatenates the class token and the
mean of the patches of every frame.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from data_pipelines.limits import limited
from internvideo_jax.families.internvideo2.model import EncoderConfig, InternVideo2
from internvideo_jax.layers.batch_norm import BatchNorm
from internvideo_jax.layers.block import layer_norm
from internvideo_jax.layers.drop_path import head_dropout
from internvideo_jax.layers.functional import FunctionalModel, WithStatistics, classifier
from internvideo_jax.layers.init import Init
from internvideo_jax.layers.mlp import MLP, MLPConfig
from internvideo_jax.ops.activations import gelu
from internvideo_jax.protocols import Classes, Traits
from internvideo_jax.registry import suggest

NORM_EPS = 1e-5
PLAIN_EPS = 1e-6  # of kaiming_BN
MERGES = ("proj", "cls_avg1", "cls_avgN", "cls_avg1_proj", "cls_avgN_proj")
MERGE_NORMS = ("LN", "BN", "kaiming_BN")
EXTRA_RATIO = 4  # hidden units over width of the extra MLP
FLOAT32 = jnp.dtype("float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InternVideo2ClassifierConfig(EncoderConfig):
    """Factory: `InternVideo2ClassifierConfig.of_size("1b", classes=400)`."""

    name: str = "internvideo2_classifier"
    classes: int = 0  # 0 = as many as the dataset has
    head_dropout: float = limited(0.0, least=0, below=1)
    head_scale: float = 0.001  # factor on the initial head
    extra_mlp: bool = False  # a residual MLP on the pooled vector (attentive probing)
    # What the head reads: the pooled vector (proj); the class token and the mean of all patches
    # (cls_avg1) or of each time step, made as wide as the pooled vector (cls_avgN); or both.
    merge: str = "proj"
    merge_norm: str = "LN"  # of the merged tokens: LN | BN | kaiming_BN (BN, nothing learnt)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, found, known in (
            ("merge", self.merge, MERGES),
            ("merge_norm", self.merge_norm, MERGE_NORMS),
        ):
            if found not in known:
                raise ValueError(
                    f"config.model.{field}: unknown {found!r}: {suggest(found, known)}"
                )
        if self.extra_mlp and self.merge != "proj":
            raise ValueError(
                f"config.model.extra_mlp stands between pooled vector and head; with merge = "
                f"{self.merge!r} the head reads other tokens too. Set one of them to its default"
            )

    @property
    def traits(self) -> Traits:
        """Those of the encoder, and a head."""
        classifier = Classes(self.classes, self.running_statistics)
        return dataclasses.replace(super().traits, classifier=classifier)

    def model(self) -> FunctionalModel:
        """The network; ValueError where `classes` is not known yet."""
        return classifier(self, InternVideo2Classifier)

    @property
    def running_statistics(self) -> bool:
        """Whether training goes through `train`, which also gives statistics to go on with."""
        return self.merge != "proj" and self.merge_norm != "LN"

    @property
    def merged_tokens(self) -> int:
        """Tokens that the head reads beside the pooled vector."""
        if self.merge == "proj":
            return 0
        return 1 + (self.grid[0] if "avgN" in self.merge else 1)

    @property
    def merged_width(self) -> int:
        """Channels of a token that the head reads beside the pooled vector."""
        return self.embedding if "avgN" in self.merge else self.encoder.width

    @property
    def head_width(self) -> int:
        """Values that the head reads."""
        pooled = self.embedding if self.merge.endswith("proj") else 0
        return pooled + self.merged_tokens * self.merged_width

    def forward_flops(self, visible: int | None = None) -> float:
        """Of one clip; a classifier sees all tokens."""
        head = 2.0 * self.head_width * self.classes
        if self.extra_mlp:
            head += 4.0 * EXTRA_RATIO * self.embedding**2
        if "avgN" in self.merge:
            head += 2.0 * self.merged_tokens * self.encoder.width * self.embedding
        return super().forward_flops(visible) + head


class ExtraMLP(MLP):
    """y + MLP(LN(y)); at the start it changes nothing."""

    def __init__(self, width: int, *, init: Init, rngs: nnx.Rngs):
        super().__init__(width, MLPConfig(EXTRA_RATIO * width), init=init, dtype=FLOAT32, rngs=rngs)
        self.norm = layer_norm(width, dtype=FLOAT32, rngs=rngs, eps=NORM_EPS)
        self.fc2.kernel[...] = jnp.zeros_like(self.fc2.kernel[...])

    def __call__(self, x: jax.Array, keys: jax.Array | None = None, rate: float = 0.0) -> jax.Array:
        """(B, E) -> (B, E)."""
        return x + super().__call__(self.norm(x), keys, rate)


def merge_norm(config: InternVideo2ClassifierConfig, rngs: nnx.Rngs) -> nnx.LayerNorm | BatchNorm:
    """The norm of the merged tokens, over their values (LN) or over batch and tokens."""
    width = config.merged_width
    if config.merge_norm == "LN":
        return layer_norm(width, dtype=FLOAT32, rngs=rngs, eps=NORM_EPS)
    plain = config.merge_norm == "kaiming_BN"
    eps = PLAIN_EPS if plain else NORM_EPS
    return BatchNorm(width, dtype=FLOAT32, eps=eps, affine=not plain)


class InternVideo2Classifier(WithStatistics, InternVideo2):
    """Encoder, attention pooling, what the probes add, linear head.

    All after the pooling works in float32: it costs nothing and logits feed the loss. The exact
    GELU of the parts after it is the reference's, whatever the encoder has.
    """

    def __init__(self, config: InternVideo2ClassifierConfig, *, rngs: nnx.Rngs):
        InternVideo2.__init__(self, config, rngs=rngs)
        self.config = config
        init = Init("normal")
        self.fc_norm = layer_norm(config.embedding, dtype=FLOAT32, rngs=rngs, eps=NORM_EPS)
        self.extra_mlp = (
            ExtraMLP(config.embedding, init=init, rngs=rngs) if config.extra_mlp else None
        )
        self.down = (
            init.layer(config.encoder.width, config.embedding, dtype=FLOAT32, rngs=rngs)
            if "avgN" in config.merge
            else None
        )
        self.down_norm = merge_norm(config, rngs) if config.merged_tokens else None
        self.head = init.head(config.head_width, config.classes, config.head_scale, rngs=rngs)

    def train(
        self, video: jax.Array, keys: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and new values of the running statistics by parameter path."""
        x, _ = self.encoder(video, keys=keys)
        return self.classify(x, keys)

    def classify(
        self, x: jax.Array, keys: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Last tokens (B, 1 + N, D), class token first -> as `train`."""
        config = cast(InternVideo2ClassifierConfig, self.config)
        z, running = self.merged(x, keys is not None)
        if config.merge.endswith("proj"):
            pooled = self.normed_pool(x)
            z = pooled if z is None else jnp.concatenate([z, pooled], axis=-1)
        # Layer keys fold in 0..depth-1; the head takes the next number.
        z = head_dropout(z, keys, config.head_dropout, config.encoder.depth)
        return self.head(z), running

    def normed_pool(self, x: jax.Array) -> jax.Array:
        """(B, 1 + N, D) -> (B, E) float32: pooled, the extra MLP where there is one, `fc_norm`."""
        pooled = self.pool(x).astype(jnp.float32)
        if self.extra_mlp is not None:
            pooled = self.extra_mlp(pooled)
        return self.fc_norm(pooled)

    def merged(self, x: jax.Array, train: bool) -> tuple[Any, dict[str, jax.Array]]:
        """Class token and means of patches as one vector (B, M * width), None for `proj`.

        With a LayerNorm all values of the class token come first; with a batch norm the first value
        of all tokens. The reference leaves out to transpose back, and weights are made for that.
        """
        config = cast(InternVideo2ClassifierConfig, self.config)
        if self.down_norm is None:
            return None, {}
        x = x.astype(jnp.float32)
        steps = config.merged_tokens - 1
        means = x[:, 1:].reshape(len(x), steps, -1, x.shape[-1]).mean(axis=2)
        z = jnp.concatenate([x[:, :1], means], axis=1)
        if self.down is not None:
            z = gelu(self.down(z))
        if not isinstance(self.down_norm, BatchNorm):
            return self.down_norm(z).reshape(len(z), -1), {}
        z, running = self.down_norm(z, train)
        z = z.swapaxes(1, 2).reshape(len(z), -1)
        return z, {f"down_norm/{name}": value for name, value in running.items()}
