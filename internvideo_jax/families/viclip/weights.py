"""Names of ViCLIP: those of CLIP below `vision_encoder.` and `text_encoder.`, and a temperature.

Training runs (`.pth`, wrapped) and the published `-hf` files (safetensors, flat) have the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.families.clip import weights as clip
from internvideo_jax.weights.rules import TABLE, Rule

VIDEO, CAPTION = "vision_encoder.", "text_encoder."
RULES = {
    "viclip": (
        Rule("temp", "temperature"),
        *clip.image_rules(VIDEO, clip.FRAMES),
        Rule(VIDEO + "temporal_positional_embedding", "encoder/pos_embed/temporal", TABLE),
        *clip.image_head_rules(VIDEO),
        *clip.text_rules(CAPTION),
    )
}
IGNORED: dict[str, dict[str, str]] = {"viclip": {}}
OPTIONAL = {"viclip": (r"text/.*", r"encoder/.*", r"temperature")}
geometry = clip.geometry


def recognise(tensors: Mapping[str, np.ndarray]) -> str | None:
    """`viclip` for a file of both encoders or of one, else None."""
    kernel = clip.image_kernel(tensors, VIDEO)
    video = kernel is not None and kernel.ndim == 5
    layer = CAPTION + "transformer.resblocks.0.attn.in_proj_weight"
    text = CAPTION + "token_embedding.weight" in tensors and layer in tensors
    return "viclip" if video or text else None
