"""Teachers: their features, their attention, and what they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from internvideo_jax.families.clip import weights as clip
from internvideo_jax.families.clip.teacher import CLIPTeacherConfig
from internvideo_jax.families.internvideo2 import weights as internvideo2
from internvideo_jax.families.internvideo2.teacher import InternVLConfig
from internvideo_jax.families.videomae import weights as videomae
from internvideo_jax.families.videomae.teacher import VideoMAETeacherConfig
from internvideo_jax.layers.clip import inflate
from internvideo_jax.layers.pos_embed import fixed_table
from internvideo_jax.layers.tower import tower
from internvideo_jax.ops.position_tables import resize_image
from internvideo_jax.ops.resize import resize_frames
from internvideo_jax.types import Params
from tests.parity.cases import Case, adapter
from tests.parity.internvideo2_adapters import aligned, encoder_tower, pooled_encoder, unit_pixels
from tests.parity.model_adapters import import_weights

GROUP = "internvideo2_stage1"


@adapter(GROUP, "teacher_internvl")
def internvl_teacher(case: Case) -> None:
    """The weights are stored as the loader leaves them, with an axis of one frame."""
    config = case.config
    video = unit_pixels(case.io["video"])
    settings = {**pooled_encoder(config), "frames": video.shape[1]}
    teacher = InternVLConfig(**settings, layers=aligned(config, "clip"))
    model = teacher.model()
    params = import_weights(case, "internvideo2", model.shapes(), internvideo2)
    targets = jax.jit(model.apply)(params, video)
    case.close("middle", targets["middle"])
    case.close("final", targets["final"])
    if "attn" in case.io:  # return_attn
        case.close("attn", targets["attention"])
    case.features(blocks(teacher, params, video))


def blocks(teacher: Any, params: Params, video: jax.Array) -> dict[str, jax.Array]:
    """Raw outputs of all blocks."""
    every = dataclasses.replace(teacher, layers=tuple(range(teacher.encoder.depth))).model()
    intermediates = every.apply(params, video, method="read").intermediates
    return {f"block_{i}": value for i, value in enumerate(intermediates)}


@adapter(GROUP, "teacher_videomae")
def videomae_teacher(case: Case) -> None:
    config = case.config
    video = unit_pixels(case.io["video"])
    for name, literal in (("middle_standard", False), ("middle_as_written", True)):
        teacher = videomae_config(config, case.weights, literal=literal)
        model = teacher.model()
        params = import_weights(case, "videomae_classifier", model.shapes(), videomae)
        case.close(name, jax.jit(model.apply)(params, video)["middle"])
        if not literal:
            case.features(blocks(teacher, params, video), "feat_standard.")
    if "sincos_table_init" in case.io:
        # Wherever a patch is not of 14 pixels the published table has 14 x 14 places.
        side = 16 if teacher.patch == 14 else 14
        table = fixed_table("resized", teacher.grid, teacher.encoder.width, (8, side, side))
        case.close("sincos_table_init", table)


def videomae_config(config: dict[str, Any], weights: Mapping[str, Any], **changes: Any):
    """Of 224 pixels and 16 frames the table is fixed; else it is among the weights."""
    return VideoMAETeacherConfig(
        encoder=encoder_tower(config),
        layers=aligned(config, "mae"),
        frames=config["all_frames"],
        resolution=config["img_size"],
        patch=config["patch_size"],
        tubelet=config.get("tubelet_size", 2),
        qkv_bias=config.get("qkv_bias", True),
        layer_scale=config.get("init_values", 0.0) or 0.0,
        pos_table="learnable" if "pos_embed" in weights else "sincos",
        dtype="float32",
        **changes,
    )


@adapter(GROUP, "teacher_input_resize")
def input_resize(case: Case) -> None:
    video = jnp.asarray(case.io["video"].transpose(0, 2, 3, 4, 1))
    stride = case.config["td_ratio"]
    resized = resize_frames(video[:, ::stride], case.config["clip_input_resolution"])
    case.close("clip_videos", resized.transpose(0, 4, 1, 2, 3))
    same = resize_frames(video[:, ::stride], video.shape[2])
    case.equal("student_videos", same.transpose(0, 4, 1, 2, 3))


@adapter(GROUP, "umt_clip_teacher")
def clip_teacher(case: Case) -> None:
    config = case.config
    video = unit_pixels(case.io["video"])
    teacher = CLIPTeacherConfig(
        encoder=tower(config["width"], config["layers"], config["heads"]),
        embedding=config["output_dim"],
        layers=aligned({**config, "depth": config["layers"]}, "clip"),
        frames=video.shape[1],
        resolution=config["input_resolution"],
        patch=config["patch_size"],
        dtype="float32",
    )
    model = teacher.model()
    params = import_weights(case, "clip_frames", model.shapes(), clip)
    targets = jax.jit(model.apply)(params, video)
    case.close("aligned", targets["middle"])
    if "attn" in case.io:
        case.close("attn", targets["attention"])


@adapter(GROUP, "internvl_process_checkpoint")
def internvl_file(case: Case) -> None:
    """The parts of the loader: an image's table and its patch embedding for frames."""
    side = case.config["new_grid"]
    table = resize_image(case.io["in.pos_embed"][0], side)
    case.close("out.pos_embed", table)
    kernel = case.io["in.patch_embed.proj.weight"]
    ours = clip.IMAGE.to_ours(kernel)
    shape = {"patch": kernel.shape[-1]}
    case.equal("out.patch_embed.proj.weight", clip.FRAMES.to_torch(ours, shape))
    for name in case.io:
        if name.startswith("inflate_"):
            _, how, frames = name.split("_")
            inflated = inflate(ours, int(frames[1:]), centre=how == "center")
            case.close(name, clip.FRAMES.to_torch(inflated, shape))
