"""Names of ViCLIP: those of CLIP below `vision_encoder.` and `text_encoder.`, and a temperature.

Training runs (`.pth`, wrapped) and the published `-hf` files (safetensors, flat) have the same.
"""

from __future__ import annotations

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
