"""Names of UniFormerV2, and of the CLIP image transformer that it starts from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.weights.rules import LINEAR, QKV, TOKEN, Layout, Rule


def _frames_to_torch(x: np.ndarray, shape: Mapping[str, int]) -> np.ndarray:
    patch = shape["patch"]
    return x.reshape(-1, patch, patch, 3, x.shape[1]).transpose(4, 3, 0, 1, 2)


# (D, 3, 1 or 3, p, p) -> matmul kernel (frames * p * p * 3, D).
FRAMES = Layout(lambda x: x.transpose(2, 3, 4, 1, 0).reshape(-1, x.shape[0]), _frames_to_torch)
# The same of an image model: (D, 3, p, p).
IMAGE = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x, shape: _frames_to_torch(x, shape)[:, :, 0],
)
# Biases of query, key and value in one vector: (3 * D,) -> (3, D).
QKV_BIAS = Layout(lambda x: x.reshape(3, -1), lambda x, _: x.reshape(-1))
# Convolution over single places: (out, in, 1, 1, 1) -> (in, out).
POINTWISE = Layout(lambda x: x[:, :, 0, 0, 0].T, lambda x, _: x.T[:, :, None, None, None])
# One kernel per channel: (D, 1, t, h, w) -> (t, h, w, D).
DEPTHWISE = Layout(
    lambda x: x[:, 0].transpose(1, 2, 3, 0), lambda x, _: x.transpose(3, 0, 1, 2)[:, None]
)


def _attention_rules(t: str, p: str) -> list[Rule]:
    """Norms, attention and MLP of a block in CLIP's names."""
    return [
        Rule(t + "ln_1.weight", p + "norm1/scale"),
        Rule(t + "ln_1.bias", p + "norm1/bias"),
        Rule(t + "ln_2.weight", p + "norm2/scale"),
        Rule(t + "ln_2.bias", p + "norm2/bias"),
        Rule(t + "attn.in_proj_weight", p + "attn/qkv/kernel", QKV),
        Rule(t + "attn.in_proj_bias", p + "attn/qkv/bias", QKV_BIAS),
        Rule(t + "attn.out_proj.weight", p + "attn/proj/kernel", LINEAR),
        Rule(t + "attn.out_proj.bias", p + "attn/proj/bias"),
        Rule(t + "mlp.c_fc.weight", p + "mlp/fc1/kernel", LINEAR),
        Rule(t + "mlp.c_fc.bias", p + "mlp/fc1/bias"),
        Rule(t + "mlp.c_proj.weight", p + "mlp/fc2/kernel", LINEAR),
        Rule(t + "mlp.c_proj.bias", p + "mlp/fc2/bias"),
    ]


def _image_rules(prefix: str, layout: Layout) -> list[Rule]:
    """The image transformer."""
    return [
        Rule(prefix + "conv1.weight", "encoder/patch_embed/kernel", layout),
        Rule(prefix + "class_embedding", "encoder/cls_token"),
        Rule(prefix + "positional_embedding", "encoder/pos_embed/table"),
        Rule(prefix + "ln_pre.weight", "encoder/norm_pre/scale"),
        Rule(prefix + "ln_pre.bias", "encoder/norm_pre/bias"),
        *_attention_rules(prefix + "transformer.resblocks.{i}.", "encoder/blocks/"),
    ]


def _local_rules(number: int) -> list[Rule]:
    t = f"transformer.resblocks.{{i}}.lmhra{number}.pos_embed."
    p = f"encoder/blocks/local{number}/"
    return [
        Rule(t + "0.weight", p + "norm/scale"),
        Rule(t + "0.bias", p + "norm/bias"),
        Rule(t + "0.running_mean", p + "norm/mean"),
        Rule(t + "0.running_var", p + "norm/var"),
        Rule(t + "0.num_batches_tracked", p + "norm/count"),
        Rule(t + "1.weight", p + "reduce/kernel", POINTWISE),
        Rule(t + "1.bias", p + "reduce/bias"),
        Rule(t + "2.weight", p + "temporal/kernel", DEPTHWISE),
        Rule(t + "2.bias", p + "temporal/bias"),
        Rule(t + "3.weight", p + "expand/kernel", POINTWISE),
        Rule(t + "3.bias", p + "expand/bias"),
    ]


UNIFORMERV2 = (
    *_image_rules("", FRAMES),
    *_local_rules(1),
    *_local_rules(2),
    Rule("transformer.temporal_cls_token", "temporal_cls_token", TOKEN),
    Rule("transformer.balance", "balance"),
    Rule("transformer.dpe.{i}.weight", "global_blocks/dpe/kernel", DEPTHWISE),
    Rule("transformer.dpe.{i}.bias", "global_blocks/dpe/bias"),
    *_attention_rules("transformer.dec.{i}.", "global_blocks/"),
    Rule("transformer.dec.{i}.ln_3.weight", "global_blocks/norm_context/scale"),
    Rule("transformer.dec.{i}.ln_3.bias", "global_blocks/norm_context/bias"),
    Rule("transformer.proj.0.weight", "norm/scale"),
    Rule("transformer.proj.0.bias", "norm/bias"),
    Rule("transformer.proj.2.weight", "head/kernel", LINEAR),
    Rule("transformer.proj.2.bias", "head/bias"),
)

# `clip_visual` is the image half cut out of a CLIP file, `clip` the whole file.
RULES = {
    "uniformerv2": UNIFORMERV2,
    "clip_visual": tuple(_image_rules("", IMAGE)),
    "clip": tuple(_image_rules("visual.", IMAGE)),
}

_NO_PROJECTION = "projection to the text space, UniFormerV2 has a head of its own"
IGNORED = {
    "uniformerv2": {},
    "clip_visual": {r"proj|ln_post\.(weight|bias)": _NO_PROJECTION},
    "clip": {
        r"visual\.(proj|ln_post\.(weight|bias))": _NO_PROJECTION,
        r"(?!visual\.).*": "the text half of CLIP",
    },
}

# What a file may lack, always as a whole (rules.check_complete).
OPTIONAL = {
    "uniformerv2": (
        r".*/norm/count",
        r"encoder/blocks/local1/.*",
        r"encoder/blocks/local2/.*",
        r"balance",
        r"head/.*",
    ),
    "clip_visual": (),
    "clip": (),
}

# Leaves that files have and models have not: torch counts batches, nothing reads the number.
FILE_ONLY = ("count",)


def recognise(tensors: Mapping[str, np.ndarray]) -> str | None:
    """`uniformerv2`, `clip_visual`, `clip`, or None when it is none of them."""
    for prefix in ("", "visual."):
        layer = prefix + "transformer.resblocks.0.attn.in_proj_weight"
        kernel = tensors.get(prefix + "conv1.weight")
        if kernel is None or layer not in tensors or prefix + "class_embedding" not in tensors:
            continue
        if kernel.ndim == 4:
            return "clip" if prefix else "clip_visual"
        if not prefix and kernel.ndim == 5 and "transformer.temporal_cls_token" in tensors:
            return "uniformerv2"
    return None


def geometry(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Patch size of a torch file."""
    for name in ("conv1.weight", "visual.conv1.weight"):
        if name in tensors:
            return {"patch": tensors[name].shape[-1]}
    raise ValueError("no patch embedding in the file, cannot tell the patch size")
