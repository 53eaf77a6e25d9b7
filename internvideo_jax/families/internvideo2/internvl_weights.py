"""Names of InternVL-C's vision tower: InternVideo2's, with a patch embedding of single images.

The published file `internvl_c_13b_224px.pth` has the language half beside it, under `module`.
"""

from __future__ import annotations

from internvideo_jax.families.clip.weights import IMAGE
from internvideo_jax.families.internvideo2.weights import encoder_rules, pool_rules

KIND = "internvl"
RULES = {KIND: (*encoder_rules(patch=IMAGE), *pool_rules())}
IGNORED = {
    KIND: {
        r"transformer\..*|text_projection": "language half",
        r"logit_scale": "temperature of images and captions",
    }
}
# The pool belongs to the tower: a teacher without it would have neither attention nor embedding.
OPTIONAL = {KIND: (r"encoder/blocks/attn/qkv/bias", r"encoder/pos_embed/(spatial|temporal|cls)")}
