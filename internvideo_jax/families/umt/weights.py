"""Names of Unmasked Teacher's pre-trained student; its classifier is named as VideoMAE's."""

from __future__ import annotations

from internvideo_jax.families.videomae import weights as videomae
from internvideo_jax.weights.rules import TABLE, Rule, linear, norm

KIND = "umt_student"
RULES = {
    KIND: (
        *videomae.encoder_rules("encoder."),
        Rule("encoder.pos_embed", "encoder/pos_embed", TABLE),
        *linear("clip_decoder.{i}.head", "clip_decoder/head"),
        *norm("clip_decoder.{i}.norm", "clip_decoder/norm"),
    )
}
IGNORED: dict[str, dict[str, str]] = {KIND: {}}
OPTIONAL = {KIND: (*videomae.encoder_optional("encoder"), r"encoder/pos_embed")}
geometry = videomae.geometry
