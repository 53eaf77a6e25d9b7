"""The two blocks that UniFormerV2 adds to an image transformer: local and global."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import Attention
from internvideo_jax.layers.batch_norm import BatchNorm
from internvideo_jax.layers.block import Block, BlockConfig
from internvideo_jax.layers.depthwise_conv import DepthwiseConv
from internvideo_jax.layers.drop_path import drop_path
from internvideo_jax.layers.init import Init, torch_uniform
from internvideo_jax.layers.linear import Linear
from internvideo_jax.layers.mlp import MLP


class LocalMHRA(nnx.Module):
    """Local multi-head relation aggregator: norm, fewer channels, mix three frames, back.

    Starts as zero, so that a model begins as the image transformer that it was made from.
    """

    def __init__(self, width: int, inner: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = BatchNorm(width, dtype=dtype)
        self.reduce = Linear(
            width,
            inner,
            dtype=dtype,
            rngs=rngs,
            kernel_init=lambda key, shape, _=None: torch_uniform(key, shape, width),
        )
        self.temporal = DepthwiseConv(inner, (3, 1, 1), dtype=dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.expand = Linear(inner, width, dtype=dtype, rngs=rngs, kernel_init=zeros)

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Patch tokens (B, T, N, D) -> the same shape, and running statistics in training."""
        y, running = self.norm(x, train)
        y = self.temporal(self.reduce(y)[:, :, :, None])[:, :, :, 0]
        return self.expand(y), running


class LocalUniBlock(Block):
    """A transformer block on every frame, with local MHRA before its two halves.

    Drop path of attention and MLP drops single tokens, each at its place in all frames of a clip.
    That is what the reference's rate does, whose first axis is the token there; it draws once for
    the whole batch, here every clip draws. Local MHRA is dropped whole.
    """

    def __init__(
        self,
        config: BlockConfig,
        local: Sequence[int],
        *,
        dropping: bool,
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """`local` are the inner widths of its local MHRA, none to two; `dropping` drops paths."""
        super().__init__(config, init=init, dtype=dtype, rngs=rngs)
        self.dropping = dropping
        layers = [LocalMHRA(config.width, inner, dtype=dtype, rngs=rngs) for inner in local]
        self.local1, self.local2 = (*layers, None, None)[:2]

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: jax.Array, keys: jax.Array | None = None, rate: jax.Array | float = 0.0
    ) -> tuple[jax.Array, dict[str, Any]]:
        """One layer.

        Args:
          x: (B, T, 1 + N, D), the class token of a frame first.
          keys: (B,) keys in training, None in evaluation.
          rate: of drop path.

        Returns:
          The same shape, and in training {"local1": {"mean": (D,), "var": (D,)}, ...}.
        """
        running = {}
        x = self._local("local1", x, keys, rate, 2, running)
        x = x + self._drop(self._per_frame(self.norm1(x)), keys, rate, 0)
        x = self._local("local2", x, keys, rate, 3, running)
        x = x + self._drop(self.mlp(self.norm2(x)), keys, rate, 1)
        return x, running

    def _per_frame(self, x: jax.Array) -> jax.Array:
        return self.attn(x.reshape(-1, *x.shape[2:]), frames=True).reshape(x.shape)

    def _drop(self, y, keys, rate, which):
        if keys is None or not self.dropping:
            return y
        return drop_path(y, keys, rate, which, (1, y.shape[2]))

    def _local(self, name, x, keys, rate, which, running):
        layer = vars(self)[name]
        if layer is None:
            return x
        y, statistics = layer(x[:, :, 1:], keys is not None)
        if statistics:
            running[name] = {"norm": statistics}
        if keys is not None and self.dropping:
            y = drop_path(y, keys, rate, which)
        return x.at[:, :, 1:].add(y)


class GlobalUniBlock(nnx.Module):
    """One query token attends to all tokens of a layer, positions encoded by a convolution (DPE).

    Attention and MLP start as zero: a fresh block hands the query on.
    """

    def __init__(
        self,
        config: BlockConfig,
        grid: tuple[int, int, int],
        *,
        dropping: bool,
        mlp_dropout: float,
        init: Init,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """`grid` of the patches; `dropping` drops paths, `mlp_dropout` hidden units."""
        width, options = config.width, cast(dict[str, Any], {"dtype": dtype, "rngs": rngs})
        self.dropping, self.mlp_dropout, self.grid = dropping, mlp_dropout, grid
        self.dpe = DepthwiseConv(width, (3, 3, 3), **options)
        self.norm1 = config.norm.make(width, **options)
        self.norm_context = config.norm.make(width, **options)
        self.attn = Attention(width, config.attention, init=init, **options)
        self.norm2 = config.norm.make(width, **options)
        self.mlp = MLP(width, config.mlp, init=init, **options)
        for last in (self.attn.proj, self.mlp.fc2):
            last.kernel[...] = jnp.zeros_like(last.kernel[...])

    def __call__(
        self, q: jax.Array, keys: jax.Array | None, rate: jax.Array | float, x: jax.Array
    ) -> jax.Array:
        """Query (B, 1, D) and tokens of the layer (B, T, 1 + N, D) -> query (B, 1, D)."""
        context = x.at[:, :, 1:].add(self.positions(x)).reshape(len(x), -1, x.shape[-1])
        y = self.attn(self.norm1(q), self.norm_context(context))
        q = q + self._drop(y, keys, rate, 0)
        unit_keys = None
        if keys is not None and self.mlp_dropout > 0:
            unit_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
        return q + self._drop(self.mlp(self.norm2(q), unit_keys, self.mlp_dropout), keys, rate, 1)

    def positions(self, x: jax.Array) -> jax.Array:
        """Dynamic position encoding of the patch tokens: (B, T, 1 + N, D) -> (B, T, N, D)."""
        patches = x[:, :, 1:]
        video = patches.reshape(len(x), *self.grid, x.shape[-1])
        return self.dpe(video).reshape(patches.shape)

    def _drop(self, y, keys, rate, which):
        return drop_path(y, keys, rate, which) if keys is not None and self.dropping else y
