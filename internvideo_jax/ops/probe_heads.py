"""Heads of a probe as functions of explicit parameters: what they read, how they start, logits.

Three kinds. `linear`: one vector of a clip, then a linear layer. `attentive`: one learned query
attends to all tokens, then a linear layer (V-JEPA, Bardes et al. 2024; a MLP after the attention
where asked for, as in V-JEPA 2). `concat`: class token, means of the patches (of the clip or of
every frame) and the backbone's pooled vector side by side, then a linear layer (the plain form of
the concatenation probe of InternVideo2).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from internvideo_jax.registry import suggest

KINDS = ("linear", "attentive", "concat")
POOLINGS = ("mean", "class", "pooled")
MLP_RATIO = 4
NORM_EPS = 1e-6

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """Which head.

    Attributes:
      kind: one of KINDS.
      pooling: what `linear` reads: the mean over all tokens, the class token, or the vector that
        the backbone itself pools.
      per_frame: `concat` takes the mean of every frame, not one of the clip.
      heads: of the attention of `attentive`.
      mlp: `attentive` has a MLP after its attention.
    """

    kind: str = "linear"
    pooling: str = "mean"
    per_frame: bool = False
    heads: int = 4
    mlp: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown probe head {self.kind!r}: {suggest(self.kind, KINDS)}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {self.pooling!r}: {suggest(self.pooling, POOLINGS)}")

    @property
    def wants_pooled(self) -> bool:
        """Whether it reads the backbone's pooled vector, where there is one."""
        return self.kind == "concat" or (self.kind == "linear" and self.pooling == "pooled")


def read(
    spec: HeadSpec, tokens: jax.Array, grid: tuple[int, int, int], pooled: jax.Array | None = None
) -> jax.Array:
    """What a head is given of a clip.

    Args:
      tokens: (B, N, D), patches time-major; class tokens before them: one of the clip, or one
        before the patches of every frame (UniFormerV2).
      grid: patches in time, height, width.
      pooled: (B, E), the vector that the backbone pools its tokens to, if it has one.

    Returns:
      (B, N, D) all tokens in their own dtype for `attentive`, else (B, F) float32.

    Raises:
      ValueError: the head reads what this backbone does not have, or N is of no known layout.
    """
    if spec.kind == "attentive":
        return tokens
    if spec.kind == "linear" and spec.pooling == "mean":
        return tokens.mean(axis=1, dtype=jnp.float32)
    if spec.kind == "linear" and spec.pooling == "pooled":
        if pooled is None:
            raise ValueError("pooling = 'pooled', but this backbone pools nothing; take mean")
        return pooled.astype(jnp.float32)
    first, patches = split_tokens(tokens, grid)
    if spec.kind == "linear":
        if first is None:
            raise ValueError("pooling = 'class', but this backbone has no class token; take mean")
        return first
    means = patches.mean(axis=2, dtype=jnp.float32)  # (B, T, D)
    means = means if spec.per_frame else means.mean(axis=1, keepdims=True)
    parts = [means.reshape(len(means), -1)]
    parts = parts if first is None else [first, *parts]
    parts = parts if pooled is None else [*parts, pooled.astype(jnp.float32)]
    return jnp.concatenate(parts, axis=-1)


def split_tokens(
    tokens: jax.Array, grid: tuple[int, int, int]
) -> tuple[jax.Array | None, jax.Array]:
    """Class token (B, D) float32 or None, and patches (B, T, L, D); class tokens are averaged."""
    batch, count, width = tokens.shape
    time, positions = grid[0], grid[1] * grid[2]
    extra = count - time * positions
    if extra == 0:
        return None, tokens.reshape(batch, time, positions, width)
    if extra == 1:
        return tokens[:, 0].astype(jnp.float32), tokens[:, 1:].reshape(
            batch, time, positions, width
        )
    if extra == time:
        frames = tokens.reshape(batch, time, 1 + positions, width)
        return frames[:, :, 0].mean(axis=1, dtype=jnp.float32), frames[:, :, 1:]
    raise ValueError(
        f"features have {count} tokens for a grid of {grid}: expected {time * positions} patches "
        "with no class token, one of the clip, or one of every frame"
    )


def layer_normed(x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the last axis, without scale and bias; float32 statistics."""
    values = x.astype(jnp.float32)
    values = values - values.mean(axis=-1, keepdims=True)
    return values * jax.lax.rsqrt(jnp.square(values).mean(axis=-1, keepdims=True) + NORM_EPS)


def init_head(spec: HeadSpec, key: jax.Array, width: int, classes: int) -> Params:
    """Initial parameters of one head; the last layer starts at zero.

    Args:
      width: last axis of what `read` gives.

    Raises:
      ValueError: the heads of an attentive probe do not divide the width.
    """
    last = {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    if spec.kind != "attentive":
        return {"head": last}
    if width % spec.heads:
        raise ValueError(f"{spec.heads} probe heads do not divide the width {width}")
    query, kv, out, up = jax.random.split(key, 4)
    scale = width**-0.5
    params: Params = {
        "query": 0.02 * jax.random.normal(query, (width,)),
        "kv": {"kernel": scale * jax.random.normal(kv, (2, width, width))},
        "proj": {
            "kernel": scale * jax.random.normal(out, (width, width)),
            "bias": jnp.zeros(width),
        },
        "head": last,
    }
    if spec.mlp:
        hidden = MLP_RATIO * width
        params["mlp"] = {
            "fc1": {
                "kernel": scale * jax.random.normal(up, (width, hidden)),
                "bias": jnp.zeros(hidden),
            },
            "fc2": {"kernel": jnp.zeros((hidden, width)), "bias": jnp.zeros(width)},
        }
    return params


def apply_head(spec: HeadSpec, params: Params, x: jax.Array) -> jax.Array:
    """(B, classes) float32 logits of one head from (normalised) `read`s."""
    if spec.kind == "attentive":
        x = _attend(spec, params, x)
        if spec.mlp:
            x = x + _linear(
                params["mlp"]["fc2"],
                jax.nn.gelu(_linear(params["mlp"]["fc1"], layer_normed(x)), approximate=False),
            )
    return _linear(params["head"], x.astype(jnp.float32))


def _linear(params: Params, x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"]


def _attend(spec: HeadSpec, params: Params, tokens: jax.Array) -> jax.Array:
    """(B, N, D) -> (B, D): attention of one learned query, and its projection.

    The query is the same for all clips, so keys and values of the tokens are never made: the query
    goes through the key matrix once, and the weighted mean of the tokens through the value matrix.
    That is 4 N D operations per attention head instead of 4 N D^2, which is what makes many probes
    on one batch affordable. Biases would change nothing: a key's is the same for all tokens, a
    value's is that of the projection.
    """
    if tokens.dtype == jnp.float16:  # as kept in host memory; sums need more
        tokens = tokens.astype(jnp.float32)
    width = tokens.shape[-1]
    split = (width, spec.heads, width // spec.heads)
    keys, values = (kernel.reshape(split) for kernel in params["kv"]["kernel"])
    query = params["query"].reshape(split[1:]) * split[2] ** -0.5
    asked = jnp.einsum("chd,hd->ch", keys, query).astype(tokens.dtype)
    logits = jnp.einsum("bnc,ch->bnh", tokens, asked, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=1).astype(tokens.dtype)
    mean = jnp.einsum("bnh,bnc->bhc", weights, tokens, preferred_element_type=jnp.float32)
    out = jnp.einsum("bhc,chd->bhd", mean, values).reshape(len(tokens), width)
    return _linear(params["proj"], out)


def head_flops(spec: HeadSpec, width: int, tokens: int, classes: int) -> float:
    """Of one head on one clip; `width` as in `init_head`."""
    last = 2.0 * width * classes
    if spec.kind != "attentive":
        return last
    attention = 4.0 * tokens * width * spec.heads + 4.0 * width * width
    return attention + last + (4.0 * MLP_RATIO * width * width if spec.mlp else 0.0)
