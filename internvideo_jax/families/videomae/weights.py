"""Names of the VideoMAE family: VideoMAE, VideoMAE V2, InternVideo1 (all three use the same)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.weights.rules import LINEAR, PER_HEAD, QKV, TABLE, TOKEN, TUBELET, Rule


def _block_rules(torch: str, path: str) -> list[Rule]:
    t, p = f"{torch}blocks.{{i}}.", f"{path}blocks/"
    return [
        Rule(t + "norm1.weight", p + "norm1/scale"),
        Rule(t + "norm1.bias", p + "norm1/bias"),
        Rule(t + "norm2.weight", p + "norm2/scale"),
        Rule(t + "norm2.bias", p + "norm2/bias"),
        Rule(t + "attn.q_bias", p + "attn/qkv/q_bias"),
        Rule(t + "attn.v_bias", p + "attn/qkv/v_bias"),
        Rule(t + "attn.qkv.weight", p + "attn/qkv/kernel", QKV),
        Rule(t + "attn.scale", p + "attn/scale", PER_HEAD),
        Rule(t + "attn.proj.weight", p + "attn/proj/kernel", LINEAR),
        Rule(t + "attn.proj.bias", p + "attn/proj/bias"),
        Rule(t + "mlp.fc1.weight", p + "mlp/fc1/kernel", LINEAR),
        Rule(t + "mlp.fc1.bias", p + "mlp/fc1/bias"),
        Rule(t + "mlp.fc2.weight", p + "mlp/fc2/kernel", LINEAR),
        Rule(t + "mlp.fc2.bias", p + "mlp/fc2/bias"),
        Rule(t + "gamma_1", p + "gamma1"),
        Rule(t + "gamma_2", p + "gamma2"),
    ]


def encoder_rules(torch: str) -> list[Rule]:
    """Of the encoder, whose torch names begin with `torch`."""
    return [
        Rule(torch + "patch_embed.proj.weight", "encoder/patch_embed/kernel", TUBELET),
        Rule(torch + "patch_embed.proj.bias", "encoder/patch_embed/bias"),
        *_block_rules(torch, "encoder/"),
        Rule(torch + "norm.weight", "encoder/norm/scale"),
        Rule(torch + "norm.bias", "encoder/norm/bias"),
    ]


PRETRAIN = (
    *encoder_rules("encoder."),
    Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", LINEAR),
    Rule("mask_token", "mask_token", TOKEN),
    *_block_rules("decoder.", "decoder/"),
    Rule("decoder.norm.weight", "decoder/norm/scale"),
    Rule("decoder.norm.bias", "decoder/norm/bias"),
    Rule("decoder.head.weight", "decoder/head/kernel", LINEAR),
    Rule("decoder.head.bias", "decoder/head/bias"),
)

FINETUNE = (
    *encoder_rules(""),
    Rule("pos_embed", "encoder/pos_embed", TABLE),
    Rule("fc_norm.weight", "fc_norm/scale"),
    Rule("fc_norm.bias", "fc_norm/bias"),
    Rule("head.weight", "head/kernel", LINEAR),
    Rule("head.bias", "head/bias"),
)

RULES = {"videomae_pretrain": PRETRAIN, "videomae_classifier": FINETUNE}

# Fixed sine tables are rebuilt from the config; some files carry them as buffers.
IGNORED = {
    "videomae_pretrain": {r"(encoder|decoder)\.pos_embed": "fixed position table, rebuilt"},
    "videomae_classifier": {},
}


# What a file may lack, always as a whole (rules.check_complete). MCG-NJU's huge pre-trained file is
# said to have no decoder.
def encoder_optional(tower: str) -> tuple[str, ...]:
    """Of the tower `encoder` or `decoder`: what its options bring along."""
    return tuple(
        tower + part for part in (r"/.*/gamma[12]", r"/.*/attn/scale", r"/.*/attn/qkv/[qv]_bias")
    )


OPTIONAL = {
    "videomae_pretrain": (
        *encoder_optional("encoder"),
        *encoder_optional("decoder"),
        r"decoder/.*|encoder_to_decoder/.*|mask_token",
    ),
    "videomae_classifier": (
        *encoder_optional("encoder"),
        r"encoder/pos_embed",
        r"fc_norm/.*",
        r"encoder/norm/.*",
        r"head/.*",
    ),
}


def geometry(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Tubelet and patch size of a torch file."""
    for name in ("encoder.patch_embed.proj.weight", "patch_embed.proj.weight"):
        if name in tensors:
            return {"tubelet": tensors[name].shape[2], "patch": tensors[name].shape[3]}
    raise ValueError("no patch embedding in the file, cannot tell tubelet and patch size")
