"""Teachers: their features, their attention, and what they are given."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.models.layers.clip import inflate
from internvideo_jax.models.layers.pos_embed import fixed_table, resize_picture
from internvideo_jax.models.layers.tower import tower
from internvideo_jax.models.teachers.clip import CLIPTeacherConfig
from internvideo_jax.models.teachers.internvideo2 import InternVLConfig
from internvideo_jax.models.teachers.videomae import VideoMAETeacherConfig
from internvideo_jax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from internvideo_jax.ops.resize import resize_frames
from internvideo_jax.weights import clip, internvideo2, videomae
from tests.parity.cases import Case, adapter
from tests.parity.model_adapters import import_weights

GROUP = "internvideo2_stage1"


def unit_video(pixels: np.ndarray) -> jax.Array:
    """(B, 3, T, H, W) normalised as in training -> (B, T, H, W, 3) in 0..1."""
    video = pixels.astype(np.float64).transpose(0, 2, 3, 4, 1)
    return jnp.asarray(video * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN), jnp.float32)


def layers(config: dict[str, Any]) -> tuple[int, ...]:
    return tuple(sorted(config["return_index"]))


@adapter(GROUP, "teacher_internvl")
def internvl_teacher(case: Case) -> None:
    """The weights are stored as the loader leaves them, with an axis of one frame."""
    config = case.config
    video = unit_video(case.io["video"])
    teacher = InternVLConfig(
        encoder=tower(
            config["embed_dim"], config["depth"], config["num_heads"], config["mlp_ratio"]
        ),
        embedding=config["clip_embed_dim"],
        pool_heads=config["attn_pool_num_heads"],
        layers=layers(config),
        frames=video.shape[1],
        size=config["img_size"],
        patch=config["patch_size"],
        layer_scale=config["init_values"],
        qk_norm=config["qk_normalization"],
        activation="gelu",
        dtype="float32",
    )
    model = teacher.model()
    params = import_weights(case, "internvideo2", model.shapes(), internvideo2)
    targets = jax.jit(model.apply)(params, video)
    case.close("middle", targets["middle"])
    case.close("final", targets["final"])
    case.close("attn", targets["attention"])
    every = dataclasses.replace(teacher, layers=tuple(range(config["depth"]))).model()
    for i, value in enumerate(every.apply(params, video, method="read").tapped):
        case.close(f"feat.block_{i}", value)


@adapter(GROUP, "teacher_videomae")
def videomae_teacher(case: Case) -> None:
    config = case.config
    video = unit_video(case.io["video"])
    for name, literal in (("middle_standard", False), ("middle_as_written", True)):
        teacher = VideoMAETeacherConfig(
            encoder=tower(
                config["embed_dim"], config["depth"], config["num_heads"], config["mlp_ratio"]
            ),
            layers=layers(config),
            frames=config["all_frames"],
            size=config["img_size"],
            patch=config["patch_size"],
            tubelet=config["tubelet_size"],
            pos_table="learnable",  # not that of 224 pixels, so it is among the weights
            literal=literal,
            dtype="float32",
        )
        model = teacher.model()
        params = import_weights(case, "videomae_classifier", model.shapes(), videomae)
        case.close(name, jax.jit(model.apply)(params, video)["middle"])
        if not literal:
            every = dataclasses.replace(teacher, layers=tuple(range(config["depth"]))).model()
            for i, value in enumerate(every.apply(params, video, method="read").tapped):
                case.close(f"feat_standard.block_{i}", value)
    # The published table has 8 steps of 14 x 14 places wherever a patch is not of 14 pixels.
    grid = teacher.grid
    table = fixed_table("resized", grid, config["embed_dim"], (8, 14, 14))
    case.close("sincos_table_init", table)


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
    video = unit_video(case.io["video"])
    teacher = CLIPTeacherConfig(
        encoder=tower(config["width"], config["layers"], config["heads"]),
        embedding=config["output_dim"],
        layers=layers(config),
        frames=video.shape[1],
        size=config["input_resolution"],
        patch=config["patch_size"],
        dtype="float32",
    )
    model = teacher.model()
    params = import_weights(case, "clip_frames", model.shapes(), clip)
    targets = jax.jit(model.apply)(params, video)
    case.close("aligned", targets["middle"])
    case.close("attn", targets["attention"])


@adapter(GROUP, "internvl_process_checkpoint")
def internvl_file(case: Case) -> None:
    """The parts of the loader: a picture's table and its patch embedding for frames."""
    side = case.config["new_grid"]
    table = resize_picture(case.io["in.pos_embed"][0], side)
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
