"""Names of InternVideo2's video encoder, its attention pool, students and classifiers.

Files of stage 2 have the encoder below `vision_encoder.`, beside the other encoders, tables for
images, and decoders that nothing after stage 1 reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from internvideo_jax.families.clip.weights import QKV_BIAS
from internvideo_jax.families.internvideo2 import classifier_weights as internvideo2_classifier
from internvideo_jax.weights.rules import (
    LINEAR,
    QKV,
    SAME,
    TABLE,
    TOKEN,
    TUBELET,
    Layout,
    Rule,
    linear,
    norm,
)

STAGE_2 = "vision_encoder."
# A key of every encoder, and what it is kept under in files made for fine-tuning, beside a head.
ENCODER = "clip_projector.norm1_q.weight"
HOLDERS = ("encoder.", "backbone.")


def position_rules(torch: str, path: str) -> list[Rule]:
    """A learned table of either form, by its torch name; one without class token has no `cls`."""
    return [
        Rule(torch, f"{path}/table", TABLE),
        Rule(f"{torch}_spatial", f"{path}/spatial", TABLE),
        Rule(f"{torch}_temporal", f"{path}/temporal", TABLE),
        Rule(f"{torch}_cls", f"{path}/cls", TOKEN),
    ]


def block_rules(torch: str, path: str = "encoder/blocks/") -> list[Rule]:
    """Blocks below `torch`. LayerScale has three spellings, of which the first is written."""
    t = torch + "blocks.{i}."
    scales = [
        Rule(f"{t}ls{n}{end}", f"{path}gamma{n}")
        for end in (".gamma", ".weight", "")  # the code's; two that transformers wants
        for n in (1, 2)
    ]
    return [
        Rule(t + "norm1.weight", path + "norm1/scale"),
        Rule(t + "norm2.weight", path + "norm2/scale"),
        Rule(t + "attn.qkv.weight", path + "attn/qkv/kernel", QKV),
        Rule(t + "attn.qkv.bias", path + "attn/qkv/bias", QKV_BIAS),
        Rule(t + "attn.q_norm.weight", path + "attn/q_norm/scale"),
        Rule(t + "attn.k_norm.weight", path + "attn/k_norm/scale"),
        *linear(t + "attn.proj", path + "attn/proj"),
        *linear(t + "mlp.fc1", path + "mlp/fc1"),
        *linear(t + "mlp.fc2", path + "mlp/fc2"),
        *scales,
    ]


def encoder_rules(torch: str = "", patch: Layout = TUBELET) -> list[Rule]:
    """Patch embedding, class token, positions and blocks; `patch` is the layout of the kernel."""
    return [
        *linear(torch + "patch_embed.proj", "encoder/patch_embed", patch),
        Rule(torch + "cls_token", "encoder/cls_token", TOKEN),
        *position_rules(torch + "pos_embed", "encoder/pos_embed"),
        *block_rules(torch),
    ]


def pool_rules(torch: str = "") -> list[Rule]:
    """The attention pool; biases of query, key and value are named apart from their matrices."""
    t = torch + "clip_projector."
    rules = []
    for part in "qkv":
        rules += [
            *norm(f"{t}norm1_{part}", f"pool/norm_{part}"),
            Rule(f"{t}cross_attn.{part}.weight", f"pool/{part}/kernel", LINEAR),
            Rule(f"{t}cross_attn.{part}_bias", f"pool/{part}/bias"),
        ]
    return [*rules, *linear(t + "cross_attn.proj", "pool/proj")]


def decoder_rules(torch: str, path: str) -> list[Rule]:
    """A linear decoder or one of two matrices, or a stack of them where `torch` has `{i}`."""
    names = {"head.": "head", "head.0.": "fc1", "head.2.": "fc2"}
    parts = [("weight", "kernel", LINEAR), ("bias", "bias", SAME)]
    return [
        *(
            Rule(f"{torch}{theirs}{leaf}", f"{path}{ours}/{name}", layout)
            for theirs, ours in names.items()
            for leaf, name, layout in parts
        ),
        *norm(torch + "norm", path + "norm"),
    ]


BACKBONE, STUDENT = "internvideo2", "internvideo2_student"
CLASSIFIER = "internvideo2_classifier"
RULES = {
    # What an encoder is called in a file of its own comes first: that is written.
    BACKBONE: (*encoder_rules(), *pool_rules(), *encoder_rules(STAGE_2), *pool_rules(STAGE_2)),
    STUDENT: (
        *encoder_rules(),
        *pool_rules(),
        *position_rules("clip_pos_embed", "clip_pos_embed"),
        *position_rules("mae_pos_embed", "mae_pos_embed"),
        *decoder_rules("clip_decoder.{i}.", "clip_decoder/"),
        *decoder_rules("mae_decoder.{i}.", "mae_decoder/"),
        *decoder_rules("final_clip_decoder.", "final_decoder/"),
    ),
    CLASSIFIER: (*encoder_rules(), *pool_rules(), *internvideo2_classifier.HEAD),
}

IMAGES = {r"(vision_encoder\.)?(clip_)?img_pos_embed": "positions of single images (stage 2)"}
IGNORED = {
    BACKBONE: {
        **IMAGES,
        r"vision_encoder\.((final_)?clip_decoder|mae_decoder)\..*": "decoders of pre-training",
        r"vision_encoder\.(clip|mae)_pos_embed.*": "positions of the decoders of pre-training",
        r"(text|audio)_encoder\..*": "text and audio encoder of stage 2",
        r"((text|vision|audio|av_concat_(vision|audio))_proj|av_fusion|(itm|atm|avtm)_head)\..*"
        "|temp": "heads of stage 2",
    },
    STUDENT: IMAGES,
    CLASSIFIER: {},
}
# Leaves that files have and models have not: torch counts batches, nothing reads the number.
FILE_ONLY = ("count",)

# What a file may lack, always as a whole (rules.check_complete).
_BACKBONE = (
    r"encoder/blocks/gamma[12]",
    r"encoder/blocks/attn/qkv/bias",
    r"encoder/blocks/attn/[qk]_norm/scale",
    r"encoder/pos_embed/table",
    r"encoder/pos_embed/.*",
    r"pool/.*",
)
_DECODER = (r"{}_decoder/head/.*", r"{}_decoder/fc[12]/.*", r"{}_decoder/norm/.*")
OPTIONAL = {
    BACKBONE: _BACKBONE,
    STUDENT: (
        *_BACKBONE,
        *(rf"{name}_pos_embed/{end}" for name in ("clip", "mae") for end in ("table", "cls", ".*")),
        *(part.format(name) for name in ("clip", "mae", "final") for part in _DECODER),
    ),
    CLASSIFIER: (*_BACKBONE, *internvideo2_classifier.OPTIONAL),
}


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Name -> name as in a file of the classifier: without what the encoder is kept under."""
    found = {name: name for name in names}
    for holder in HOLDERS:
        if holder + ENCODER in found:
            return {name: name.removeprefix(holder) for name in found}
    return found


def geometry(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Patch size of a torch file, and tubelet where it is no model of images."""
    for prefix in ("", STAGE_2):
        if (kernel := tensors.get(prefix + "patch_embed.proj.weight")) is not None:
            tubelet = {"tubelet": kernel.shape[2]} if kernel.ndim == 5 else {}
            return {**tubelet, "patch": kernel.shape[-1]}
    raise ValueError("no patch embedding in the file, cannot tell tubelet and patch size")
