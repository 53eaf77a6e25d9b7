"""Names of Unmasked Teacher's pre-trained student; its classifier is named as VideoMAE's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.families.videomae.weights import encoder_optional, encoder_rules, geometry
from internvideo_jax.weights.rules import LINEAR, TABLE, Rule

__all__ = ["IGNORED", "OPTIONAL", "RULES", "geometry", "recognise"]

KIND = "umt_student"
RULES = {
    KIND: (
        *encoder_rules("encoder."),
        Rule("encoder.pos_embed", "encoder/pos_embed", TABLE),
        Rule("clip_decoder.{i}.head.weight", "clip_decoder/head/kernel", LINEAR),
        Rule("clip_decoder.{i}.head.bias", "clip_decoder/head/bias"),
        Rule("clip_decoder.{i}.norm.weight", "clip_decoder/norm/scale"),
        Rule("clip_decoder.{i}.norm.bias", "clip_decoder/norm/bias"),
    )
}
IGNORED: dict[str, dict[str, str]] = {KIND: {}}
OPTIONAL = {KIND: (*encoder_optional("encoder"), r"encoder/pos_embed")}


def recognise(tensors: Mapping[str, np.ndarray]) -> str | None:
    """`umt_student`, or None when it is something else."""
    kernel = tensors.get("encoder.patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 5:
        return None
    return KIND if "clip_decoder.0.head.weight" in tensors else None
