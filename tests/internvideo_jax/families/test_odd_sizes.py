"""Odd but legal configs of every model: they are built, and their passes traced, not compiled.

A check must not refuse what a config does not use: base grids of tables that are not resized,
widths whose table comes from a file, heads of other parts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax.config import OptimConfig
from internvideo_jax.families.clip.teacher import CLIPTeacherConfig, ViCLIPTeacherConfig
from internvideo_jax.families.internvideo2.classifier import MERGE_NORMS, MERGES
from internvideo_jax.families.internvideo2.classifier import (
    InternVideo2ClassifierConfig as InternVideo2Classifier,
)
from internvideo_jax.families.internvideo2.model import EncoderConfig
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.families.internvideo2.teacher import InternVideo2TeacherConfig, InternVLConfig
from internvideo_jax.families.probe.model import ProbeConfig
from internvideo_jax.families.umt.model import UMTStudentConfig
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.viclip.model import ViCLIPConfig
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.families.videomae.teacher import VideoMAETeacherConfig
from internvideo_jax.layers.pos_embed import joint_sincos, start_table
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.optim.factory import layer_scales, make_optimizer
from internvideo_jax.types import flatten_paths, unflatten_paths
from tests.parity.cases import quick

# (frames, tubelet, size, patch): none of the patches but 7 divides 224, tubelets 3 and 5 not 16.
CLIPS = [
    {"frames": 1, "tubelet": 1, "resolution": 18, "patch": 9},
    {"frames": 4, "tubelet": 2, "resolution": 24, "patch": 6},
    {"frames": 6, "tubelet": 3, "resolution": 33, "patch": 11},
    {"frames": 5, "tubelet": 5, "resolution": 21, "patch": 7},
    {"frames": 10, "tubelet": 2, "resolution": 5, "patch": 5},
]
# Widths, layers, heads and MLPs: none is a multiple of 16, one is odd.
TOWERS = [tower(24, 1, 2), tower(20, 2, 5), tower(36, 3, 3, 2.5), tower(10, 1, 1, 1.0)]
ODD = tower(9, 2, 3, 1.7)
PLAIN: dict[str, Any] = {"dtype": "float32"}


def mixed(*lists: list) -> list[tuple]:
    """Every entry of every list at least once, side by side."""
    count = max(len(each) for each in lists)
    return [tuple(each[i % len(each)] for each in lists) for i in range(count)]


def videomae() -> list[Any]:
    tables = ["sincos", "separable", "learnable", "sincos", "separable"]
    found: list[Any] = []
    for clip, encoder, table in mixed(CLIPS, [*TOWERS, ODD], tables):
        options = {"encoder": encoder, "pos_table": table, **clip, **PLAIN}
        kinds = [
            lambda o: VideoMAEClassifierConfig(classes=3, pooling="first_token", **o),
            lambda o: PretrainConfig(decoder=ODD, cosine=True, layer_scale=0.1, **o),
            lambda o: VideoMAEClassifierConfig(classes=1, clips=2, qkv_bias=False, **o),
            lambda o: UMTStudentConfig(clip_width=7, **o),
        ]
        found += [make(options) for make in (kinds[len(found) % 4], kinds[(len(found) + 1) % 4])]
    # A base that is used and fits, for another grid.
    base = {"pos_table": "resized", "pos_frames": 6, "pos_size": 44, **CLIPS[2], **PLAIN}
    return [*found, VideoMAEClassifierConfig(encoder=ODD, classes=2, **base)]


def internvideo2() -> list[Any]:
    found: list[Any] = []
    tables, heads = ["joint", "separable"], [1, 2, 3, 5]
    for clip, encoder, table in mixed(CLIPS, TOWERS, tables):
        fitting = max(head for head in heads if encoder.width % head == 0)
        options = {"encoder": encoder, "pool_heads": fitting, "pos_table": table, **clip, **PLAIN}
        if len(found) % 2:
            found.append(EncoderConfig(embedding=7, qkv_bias=True, qk_norm=False, **options))
        else:
            found.append(InternVideo2Classifier(embedding=5, classes=2, extra_mlp=True, **options))
    for merge, norm in mixed(list(MERGES), list(MERGE_NORMS)):
        small = {"encoder": TOWERS[1], "pool_heads": 5, "embedding": 6, **CLIPS[1], **PLAIN}
        found.append(InternVideo2Classifier(classes=2, merge=merge, merge_norm=norm, **small))
    for clip, encoder, table, stride in mixed(
        CLIPS, [tower(48, 1, 3), tower(20, 3, 5)], ["joint", "separable"], [1, 2, 3]
    ):
        options = {"encoder": encoder, "pool_heads": 2, "stride": stride, **clip, **PLAIN}
        found.append(
            StudentConfig(
                embedding=5, clip_width=13, final_width=7, mae_width=11, pos_table=table, **options
            )
        )
    bare = {"encoder": tower(32, 1, 2), "pool_heads": 2, **CLIPS[3], **PLAIN}
    return [*found, StudentConfig(clip_width=0, final_width=0, **bare)]


def uniformerv2() -> list[Any]:
    found = []
    for clip, encoder, local, reduction, form in mixed(
        CLIPS, TOWERS, [0, 1, 2], [1.5, 3, 9.0, 1.0], ["clip", "vit"]
    ):
        clip = {name: clip[name] for name in ("frames", "resolution", "patch")}
        options = {"encoder": encoder, "classes": 3, "backbone": form, **clip, **PLAIN}
        found.append(
            UniFormerV2Config(
                global_layers=(encoder.depth - 1,),
                local_blocks=local,
                local_reduction=reduction,
                mlp_factor=1.3,
                temporal_downsample=clip["frames"] % 2 == 0,
                frozen=bool(local),
                **options,
            )
        )
    return found


def viclip() -> list[Any]:
    found = []
    for clip, encoder, text, context, vocab in mixed(
        CLIPS, TOWERS, [ODD, *TOWERS], [2, 5, 77], [2, 49408, 50001]
    ):
        clip = {name: clip[name] for name in ("frames", "resolution", "patch")}
        options = {"context": context, "vocab": vocab, "logit_bias": vocab == 2, **clip, **PLAIN}
        found.append(ViCLIPConfig(encoder=encoder, text=text, embedding=3, **options))
    return found


def teachers() -> list[Any]:
    found: list[Any] = []
    for clip, encoder in mixed(CLIPS[1:4], [TOWERS[0], TOWERS[1], ODD]):
        frames = {name: clip[name] for name in ("frames", "resolution", "patch")}
        one = {"encoder": encoder, "layers": (encoder.depth - 1,), **PLAIN}
        found.append(CLIPTeacherConfig(embedding=3, **one, **frames))
        found.append(ViCLIPTeacherConfig(embedding=3, **one, **frames))
        heads = {"embedding": 3, "pool_heads": 1}
        found.append(InternVLConfig(**heads, **one, **frames))
        found.append(InternVideo2TeacherConfig(**heads, **one, **clip))
        found.append(VideoMAETeacherConfig(**one, **clip))
    return found


def probes() -> list[Any]:
    backbones = [
        VideoMAEClassifierConfig(encoder=TOWERS[1], **CLIPS[2], **PLAIN),
        EncoderConfig(encoder=TOWERS[1], pool_heads=5, embedding=8, **CLIPS[1], **PLAIN),
        uniformerv2()[1],
        viclip()[1],
        UMTStudentConfig(encoder=TOWERS[2], clip_width=3, **CLIPS[3], **PLAIN),
    ]
    return [
        # `heads` divides no width here; only `attentive` looks at it.
        ProbeConfig(backbone=backbone, head=head, classes=2, heads=7 if head != "attentive" else 1)
        for backbone, head in mixed(backbones, ["linear", "attentive", "concat"])
    ]


KINDS = {
    "videomae": videomae,
    "internvideo2": internvideo2,
    "uniformerv2": uniformerv2,
    "viclip": viclip,
    "teachers": teachers,
    "probes": probes,
}
CONFIGS = {
    f"{kind}-{number}": config for kind in KINDS for number, config in enumerate(KINDS[kind]())
}


def inputs(config: Any) -> tuple[Any, ...]:
    """Abstract arguments of a pass over two clips."""

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    frames = getattr(config, "clip_frames", config.frames)
    video = array(2, frames, config.resolution, config.resolution, 3, dtype=jnp.uint8)
    some = array(2, max(1, int(np.prod(config.grid)) // 2))
    if isinstance(config, PretrainConfig):
        return video, some, some
    if isinstance(config, StudentConfig | UMTStudentConfig):
        return video, some
    return (video, array(2, config.context)) if isinstance(config, ViCLIPConfig) else (video,)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_odd_model_is_built_and_runs(name):
    config = CONFIGS[name]
    model = config.model()
    outputs = jax.eval_shape(model.apply, model.shapes(), *inputs(config))
    assert all(0 not in leaf.shape for leaf in jax.tree.leaves(outputs))
    if hasattr(config, "forward_flops") and not isinstance(config, PretrainConfig):
        assert config.forward_flops() > 0


OBJECTIVES = [
    MaskedPixels(mask_ratio=0.5, mask="random"),
    Classification(mixup=0.0, cutmix=0.0),
    # Ranges of erasing that lead nowhere are nobody's business while nothing is erased.
    Classification(erasing=0.0, erasing_area=(0.0, 0.0), erasing_ratio=(3.0,)),
    Contrastive(mask_ratio=0.5),
    Contrastive(kind="sigmoid", form="ring"),
    Alignment(mask="random", mask_ratio=0.5, final=0.0, mae=0.0),
]


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_objectives_take_the_models_they_are_made_for(number):
    objective = OBJECTIVES[number]
    fitting = {
        "masked_pixels": PretrainConfig,
        "classification": VideoMAEClassifierConfig | InternVideo2Classifier | UniFormerV2Config,
        "contrastive": ViCLIPConfig,
        "alignment": StudentConfig | UMTStudentConfig,
    }[objective.name]
    taken = 0
    for config in CONFIGS.values():
        masked = objective.name in ("masked_pixels", "alignment") or getattr(
            objective, "mask_ratio", 0
        )
        if not isinstance(config, fitting) or (masked and np.prod(config.grid) < 2):
            continue
        if objective.name == "alignment" and not config.clip_layers:
            continue
        objective.check(config)
        taken += 1
    assert taken


@pytest.mark.parametrize("name", ["joint", "separable"])
def test_a_table_of_any_width_starts_from_the_sines_that_fit(name):
    """Bit for bit as before where they fit; what is left over starts at zero."""
    grid = (3, 2, 2)
    for width, even in ((32, 32), (40, 32), (15, 0)) if name == "joint" else ((32, 32), (22, 20)):
        for table, fitting in zip(
            start_table(name, grid, width), start_table(name, grid, even), strict=True
        ):
            assert table.shape[1] == width and table.dtype == np.float32
            np.testing.assert_array_equal(table[:, :even], fitting)
            assert not table[:, even:].any() and np.isfinite(table).all()
    np.testing.assert_array_equal(start_table("joint", grid, 32)[0], joint_sincos(grid, 32))


def drawn(config: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), config.model().shapes()
    )


CLIP = np.random.default_rng(1).random((1, 2, 28, 28, 3)).astype(np.float32)


def test_a_teacher_of_any_width_gives_unit_targets():
    small = {"embedding": 8, "pool_heads": 4, "frames": 2, "resolution": 28, "patch": 14, **PLAIN}
    config = InternVLConfig(encoder=tower(40, 1, 4), layers=(0,), **small)
    found = quick(config.model().apply)(drawn(config), CLIP)
    assert found["middle"].shape == (1, 1, 1 + 2 * 4, 40)
    np.testing.assert_allclose(np.linalg.norm(found["middle"], axis=-1), 1.0, rtol=1e-5)


def test_a_teacher_of_one_block_is_one_of_two_whose_first_does_nothing():
    """Its class token looks from the embedded patches, which are what the last block takes."""
    small = {"embedding": 8, "frames": 2, "resolution": 28, "patch": 14, **PLAIN}
    one = CLIPTeacherConfig(encoder=tower(20, 1, 2), layers=(0,), **small)
    two = dataclasses.replace(one, encoder=tower(20, 2, 2), layers=(1,))
    params = flatten_paths(drawn(one))
    more = {}
    for path, value in params.items():
        more[path] = value
        if path.startswith("encoder/blocks/"):
            silent = path.startswith(("encoder/blocks/attn/proj", "encoder/blocks/mlp/fc2"))
            more[path] = np.concatenate([value * (0.0 if silent else 1.0), value])
    found, expected = (
        quick(config.model().apply)(unflatten_paths(weights), CLIP)
        for config, weights in ((one, params), (two, more))
    )
    for name in ("middle", "attention"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_what_is_used_is_still_checked():
    """The base of a table that is resized, with the names of its settings; sines of a student."""
    resized = {"encoder": TOWERS[0], "pos_table": "resized", "classes": 2, **PLAIN}
    config = VideoMAEClassifierConfig(**resized, **CLIPS[1])
    with pytest.raises(ValueError, match=r"pos_frames = 16 and pos_size = 224: image size 224"):
        config.fixed_positions()
    with pytest.raises(ValueError, match=r"pos_frames = 16 .*16 frames cannot be cut"):
        VideoMAEClassifierConfig(**resized, **CLIPS[2]).fixed_positions()
    fitting = dataclasses.replace(config, pos_frames=4, pos_size=36)
    assert fitting.fixed_positions().shape == (fitting.tokens, 24)
    with pytest.raises(ValueError, match="width 40 is no multiple of 16, which the sines"):
        StudentConfig(encoder=tower(40, 1, 4), pool_heads=4, **CLIPS[0])


def test_patterns_of_what_is_off_are_not_looked_up():
    shapes = (
        VideoMAEClassifierConfig(encoder=TOWERS[0], classes=2, **CLIPS[1], **PLAIN).model().shapes()
    )
    elsewhere = ("^text/token_embed$",)
    off = OptimConfig(weight_decay=0.0, decay_also=elsewhere, layer_decay_free=elsewhere)
    make_optimizer(off, shapes, lambda step: 0.1)
    assert layer_scales(off, shapes) is None
    for changes in ({"weight_decay": 0.1}, {"layer_decay": 0.5}):
        with pytest.raises(ValueError, match="token_embed.' matches no parameter"):
            make_optimizer(dataclasses.replace(off, **changes), shapes, lambda step: 0.1)
