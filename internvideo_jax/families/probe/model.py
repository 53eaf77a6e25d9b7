"""A frozen backbone under many small heads, one for every learning rate and weight decay.

The backbone runs once per batch, the heads are stacked on a leading axis and run side by side, as
in the evaluation of V-JEPA 2 (Assran et al. 2025). That makes a probe ordinary training: any number
of clips, with augmentation.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.limits import limited
from internvideo_jax.config import component
from internvideo_jax.layers.functional import check_classes
from internvideo_jax.ops.probe_heads import (
    HeadSpec,
    apply_head,
    head_flops,
    init_head,
    layer_normed,
    read,
)
from internvideo_jax.ops.quantized import is_kernel
from internvideo_jax.protocols import (
    Adaptation,
    Classes,
    ClipInput,
    Grid,
    Inputs,
    Model,
    ModelConfig,
    ShardingRules,
    TokenFeatures,
    Traits,
)
from internvideo_jax.types import HeadGrid, Params, flatten_paths, unflatten_paths

BACKBONE, HEADS, SCALE = "backbone/", "heads/", "scale"
# Of the mean square of a channel: what rounding leaves of the variance of one that never changes.
EPS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Any model with `features(video)` under linear, attentive or concatenating heads."""

    name: str = "probe"
    backbone: ModelConfig = component("model")
    classes: int = 0  # 0 = as many as the dataset has
    head: str = "attentive"  # linear | attentive | concat; see ops/probe_heads.py
    # Every pair is one head.
    learning_rates: Sequence[float] = limited((5e-3, 3e-3, 1e-3, 3e-4, 1e-4), least=0)
    weight_decays: Sequence[float] = limited((0.01, 0.1, 0.4, 0.8), least=0)
    pooling: str = "mean"  # linear: mean | class | pooled
    per_frame: bool = False  # concat: the means of all frames, not one of the clip
    heads: int = limited(4, least=1)  # attentive: heads of its attention
    mlp: bool = False  # attentive: a MLP after it
    # Every so many-th record of the training split teaches no head and may choose between them;
    # 0 = all records teach.
    hold_out: int = 0

    def __post_init__(self) -> None:
        self.spec  # noqa: B018  (raises for an unknown head)
        if not self.learning_rates or not self.weight_decays:
            raise ValueError(
                "config.model.learning_rates and weight_decays: expected one of each at least"
            )
        if self.hold_out < 0 or self.hold_out == 1:
            raise ValueError(
                f"config.model.hold_out = {self.hold_out}: expected 0 (none) or 2 and more"
            )

    @property
    def spec(self) -> HeadSpec:
        """What a head reads and what it is made of."""
        return HeadSpec(self.head, self.pooling, self.per_frame, self.heads, self.mlp)

    @property
    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(learning rate, weight decay) of every head, the decay changing fastest."""
        return tuple(itertools.product(self.learning_rates, self.weight_decays))

    @property
    def head_grid(self) -> HeadGrid:
        """Learning rates and weight decays of the heads, for the optimizer."""
        rates, decays = zip(*self.pairs, strict=True)
        return HeadGrid(HEADS, rates, decays)

    @property
    def inputs(self) -> Inputs:
        """The clips that the backbone's features are made of."""
        return Inputs(dataclasses.replace(self._clip, stride=1, media=("video",)))

    @property
    def traits(self) -> Traits:
        """A classifier with several heads on the features of its backbone."""
        return Traits(
            clip_tables=self.backbone.traits.clip_tables,
            adaptation=Adaptation(self.adapt_weights, BACKBONE, self.backbone),
            classifier=Classes(self.classes, self.running_statistics),
            features=self.backbone.traits.features,
            heads=self,
            frozen=(BACKBONE,),
        )

    @property
    def _clip(self) -> ClipInput:
        if self.backbone.inputs.clip is None:
            raise ValueError(f"config.model.backbone = {self.backbone.name!r} reads no clips")
        return self.backbone.inputs.clip

    @property
    def _features(self) -> TokenFeatures:
        if self.backbone.traits.features is None:
            raise ValueError(f"config.model.backbone = {self.backbone.name!r} gives no features")
        return self.backbone.traits.features

    # What the rest asks a model: the backbone's own.

    @property
    def frames(self) -> int:
        """Of a clip."""
        return self._clip.frames

    @property
    def resolution(self) -> int:
        """Height and width of a frame, pixels."""
        return self._clip.resolution

    @property
    def grid(self) -> Grid:
        """Tokens of a clip: time, height, width."""
        return self._clip.grid

    @property
    def running_statistics(self) -> bool:
        """Whether training goes through `train`, which also gives statistics to go on with."""
        return self.head != "attentive"

    @property
    def sharding_rules(self) -> ShardingRules:
        """The backbone's. Heads follow the general rule: large ones are split over `fsdp`."""
        return tuple(
            (
                f"^{BACKBONE}{pattern[1:]}" if pattern[0] == "^" else f"^{BACKBONE}.*({pattern})",
                spec,
            )
            for pattern, spec in self.backbone.sharding_rules
        )

    def smallest(self) -> ProbeConfig:
        """The same kind of probe on the smallest backbone of its kind."""
        return dataclasses.replace(self, backbone=self.backbone.smallest(), heads=2)

    def model(self) -> ProbeModel:
        """The network; ValueError where `classes` is not known yet."""
        check_classes(self.classes)
        return ProbeModel(self)

    def backbone_flops(self) -> float:
        """Of the features of one clip."""
        return self._features.flops

    def head_flops(self) -> float:
        """Of all heads on one clip, what the backbone pools itself not counted."""
        width = self._features.width
        if self.head == "concat":
            width *= 1 + (self.grid[0] if self.per_frame else 1)
        return len(self.pairs) * head_flops(self.spec, width, self._features.tokens, self.classes)

    def forward_flops(self) -> float:
        """Of one clip, backbone and all heads."""
        return self.backbone_flops() + self.head_flops()

    def adapt_weights(
        self, source: Mapping[str, np.ndarray], frames: int = 0
    ) -> dict[str, np.ndarray]:
        """Weights of a model of the backbone's kind, or of a probe, as those of this probe.

        The backbone makes of them what it makes of weights for itself. Parts that its features do
        not go through (decoders, heads, text encoders) stay unused and are reported as such.

        Args:
          frames: time steps of position tables in the source, for backbones that ask; 0 = unknown.
        """
        probe = {path: value for path, value in source.items() if path.startswith(BACKBONE)}
        found = {path.removeprefix(BACKBONE): value for path, value in probe.items()}
        own = {path: value for path, value in source.items() if probe and path not in probe}
        found = found or dict(source)
        if adaptation := self.backbone.traits.adaptation:
            found = adaptation.weights(found, frames)
        return {**own, **{BACKBONE + path: value for path, value in found.items()}}


class ProbeModel:
    """Has what a `Model` has: config, init, shapes, apply.

    Parameters: `backbone/...`, only those that its features go through; `heads/...`, each with a
    leading axis of P heads, which all start alike; for vectors `scale/{mean,square,count}`.

    Features are normalised without learned parameters, so that one range of learning rates does for
    all backbones. Vectors (linear, concat) are standardised channel by channel with the mean and
    variance of all training batches before; the first batch reads zeros. Some channels of a
    transformer are a hundred times larger than others, and a vector that is a mean over tokens
    differs little from clip to clip, so LayerNorm would leave a linear head ill-conditioned. As the
    backbone is frozen, these statistics only grow more exact; training and evaluation use the same
    ones. Tokens (attentive) get a LayerNorm each, which needs no statistics; the head's own
    matrices can weigh the channels.
    """

    def __init__(self, config: ProbeConfig):
        self.config = config
        backbone = config.backbone
        classifier = backbone.traits.classifier
        if classifier and not classifier.classes:  # its own head stays unused
            backbone = dataclasses.replace(backbone, classes=1)
        self.backbone: Model = backbone.model()
        if not self.backbone.has("features"):
            raise ValueError(f"config.model.backbone = {backbone.name!r} gives no features")
        self._pools = config.spec.wants_pooled and self.backbone.has("pool")
        everything = flatten_paths(self.backbone.shapes())
        self._unused: dict[str, Any] = {}
        clip = jax.ShapeDtypeStruct(
            (1, config.frames, config.resolution, config.resolution, 3), jnp.uint8
        )
        used = _touched(self._read, everything, clip)
        self._used = {path: everything[path] for path in used}
        self._unused = {path: leaf for path, leaf in everything.items() if path not in used}
        self.width: int = jax.eval_shape(self._read, self._used, clip).shape[-1]
        self._shapes: Params = jax.eval_shape(self.init, jax.random.key(0))

    def shapes(self) -> Params:
        """The parameter tree as `jax.ShapeDtypeStruct`s."""
        return self._shapes

    @property
    def kernels(self) -> frozenset[str]:
        """Paths of the backbone's kernels that products may round to eight bits."""
        return frozenset(f"backbone/{path}" for path in self.backbone.kernels & {*self._used})

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, float32; the backbone's are those it would start from itself."""
        config = self.config
        backbone = flatten_paths(self.backbone.init(key))
        head = init_head(config.spec, jax.random.fold_in(key, 1), self.width, config.classes)
        count = len(config.pairs)
        params = {
            "backbone": unflatten_paths({path: backbone[path] for path in self._used}),
            "heads": jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), head),
        }
        if config.running_statistics:
            width = jnp.zeros(self.width)
            params[SCALE] = {"mean": width, "square": width, "count": jnp.float32(0.0)}
        return params

    def has(self, method: str) -> bool:
        """Whether `apply` knows this method."""
        return method in ("__call__", "train", "features")

    def apply(self, params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """`__call__`, `train` or `features`; pure, safe under jit and grad."""
        methods = {"__call__": self.logits, "train": self.train, "features": self.features}
        return methods[method](params, *args, **kwargs)

    def features(self, params: Params, video: jax.Array) -> jax.Array:
        """The backbone's own, (B, N, D)."""
        values = self._filled(flatten_paths(params["backbone"], is_kernel))
        return self.backbone.apply(values, video, method="features")

    def logits(self, params: Params, video: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """(P, B, classes) float32 of all heads.

        Args:
          video: (B, T, H, W, 3) uint8, or float in 0..1.
          keys: not used; the backbone is in evaluation mode in training too.
        """
        del keys
        x = self._features(params, video)
        scale = params.get(SCALE)
        return self._heads(params["heads"], layer_normed(x) if scale is None else _scaled(x, scale))

    def train(
        self, params: Params, video: jax.Array, keys: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, and new values of the features' statistics by parameter path."""
        del keys
        x, old = self._features(params, video), params[SCALE]
        share = 1.0 / (old["count"] + 1.0)  # of this batch in the mean over all
        new = {
            "mean": old["mean"] + share * (x.mean(axis=0) - old["mean"]),
            "square": old["square"] + share * (jnp.square(x).mean(axis=0) - old["square"]),
            "count": old["count"] + 1.0,
        }
        new = jax.lax.stop_gradient(new)
        # With the old ones an example does not depend on others of its batch or microbatch.
        logits = self._heads(params["heads"], _scaled(x, old))
        return logits, {f"{SCALE}/{name}": value for name, value in new.items()}

    def _features(self, params: Params, video: jax.Array) -> jax.Array:
        values = jax.lax.stop_gradient(flatten_paths(params["backbone"], is_kernel))
        return jax.lax.stop_gradient(self._read(values, video))

    def _read(self, values: Mapping[str, Any], video: jax.Array) -> jax.Array:
        """What the heads read, from flat parameters of the backbone."""
        params = self._filled(values)
        tokens = self.backbone.apply(params, video, method="features")
        pooled = self.backbone.apply(params, tokens, method="pool") if self._pools else None
        return read(self.config.spec, tokens, self.config.grid, pooled)

    def _filled(self, values: Mapping[str, Any]) -> Params:
        """All parameters of the backbone; what nothing goes through is zero and costs nothing."""
        zeros = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in self._unused.items()}
        return unflatten_paths({**zeros, **values})

    def _heads(self, heads: Params, x: jax.Array) -> jax.Array:
        spec = self.config.spec
        return jax.vmap(lambda params: apply_head(spec, params, x))(heads)


def _scaled(x: jax.Array, scale: Params) -> jax.Array:
    """(B, F) with mean 0 and variance 1 in every channel, by these statistics; 0 without any."""
    variance = jnp.maximum(scale["square"] - jnp.square(scale["mean"]), 0.0)
    floor = EPS * scale["square"] + jnp.finfo(jnp.float32).tiny
    scaled = (x - scale["mean"]) * jax.lax.rsqrt(variance + floor)
    return jnp.where(scale["count"] > 0, scaled, 0.0)


def _touched(
    function: Callable[..., Any], shapes: Mapping[str, Any], *args: Any
) -> tuple[str, ...]:
    """Paths of the parameters that the result of `function(parameters by path, *args)` needs."""
    paths = list(shapes)
    traced = jax.make_jaxpr(
        lambda values, *rest: function(dict(zip(paths, values, strict=True)), *rest)
    )([shapes[path] for path in paths], *args).jaxpr
    # Identity, since literals among the inputs of an equation have no hash.
    read = {id(x) for equation in traced.eqns for x in equation.invars}
    read |= {id(x) for x in traced.outvars}
    inputs = traced.invars[: len(paths)]
    return tuple(path for path, x in zip(paths, inputs, strict=True) if id(x) in read)
