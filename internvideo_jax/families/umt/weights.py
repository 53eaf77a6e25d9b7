"""Names of Unmasked Teacher's pre-trained student; its classifier is named as VideoMAE's."""

from __future__ import annotations

from internvideo_jax.families.videomae import weights as videomae
from internvideo_jax.weights.rules import LINEAR, TABLE, Rule

KIND = "umt_student"
RULES = {
    KIND: (
        *videomae.encoder_rules("encoder."),
        Rule("encoder.pos_embed", "encoder/pos_embed", TABLE),
        Rule("clip_decoder.{i}.head.weight", "clip_decoder/head/kernel", LINEAR),
        Rule("clip_decoder.{i}.head.bias", "clip_decoder/head/bias"),
        Rule("clip_decoder.{i}.norm.weight", "clip_decoder/norm/scale"),
        Rule("clip_decoder.{i}.norm.bias", "clip_decoder/norm/bias"),
    )
}
IGNORED: dict[str, dict[str, str]] = {KIND: {}}
OPTIONAL = {KIND: (*videomae.encoder_optional("encoder"), r"encoder/pos_embed")}
geometry = videomae.geometry
