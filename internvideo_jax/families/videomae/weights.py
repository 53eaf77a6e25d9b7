"""Names of the VideoMAE family: VideoMAE, VideoMAE V2, InternVideo1 (all three use the same)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.weights.rules import (
    LINEAR,
    PER_HEAD,
    QKV,
    TABLE,
    TOKEN,
    TUBELET,
    Rule,
    linear,
    norm,
)


def _block_rules(torch: str, path: str) -> list[Rule]:
    t, p = f"{torch}blocks.{{i}}.", f"{path}blocks/"
    return [
        *norm(t + "norm1", p + "norm1"),
        *norm(t + "norm2", p + "norm2"),
        Rule(t + "attn.q_bias", p + "attn/qkv/q_bias"),
        Rule(t + "attn.v_bias", p + "attn/qkv/v_bias"),
        Rule(t + "attn.qkv.weight", p + "attn/qkv/kernel", QKV),
        Rule(t + "attn.scale", p + "attn/scale", PER_HEAD),
        *linear(t + "attn.proj", p + "attn/proj"),
        *linear(t + "mlp.fc1", p + "mlp/fc1"),
        *linear(t + "mlp.fc2", p + "mlp/fc2"),
        Rule(t + "gamma_1", p + "gamma1"),
        Rule(t + "gamma_2", p + "gamma2"),
    ]


def encoder_rules(torch: str) -> list[Rule]:
    """Of the encoder, whose torch names begin with `torch`."""
    return [
        *linear(torch + "patch_embed.proj", "encoder/patch_embed", TUBELET),
        *_block_rules(torch, "encoder/"),
        *norm(torch + "norm", "encoder/norm"),
    ]


PRETRAIN = (
    *encoder_rules("encoder."),
    Rule("encoder_to_decoder.weight", "encoder_to_decoder/kernel", LINEAR),
    Rule("mask_token", "mask_token", TOKEN),
    *_block_rules("decoder.", "decoder/"),
    *norm("decoder.norm", "decoder/norm"),
    *linear("decoder.head", "decoder/head"),
)

FINETUNE = (
    *encoder_rules(""),
    Rule("pos_embed", "encoder/pos_embed", TABLE),
    *norm("fc_norm", "fc_norm"),
    *linear("head", "head"),
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
