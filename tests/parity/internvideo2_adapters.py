"""InternVideo2, stage 1: the student's forward pass step by step, losses, gradients, export."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.families.internvideo2 import weights as internvideo2
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.layers.block import Block
from internvideo_jax.layers.pos_embed import (
    fixed_table,
    halves_sincos,
    image_sincos,
    joint_sincos,
    sincos,
)
from internvideo_jax.layers.tower import TowerConfig, last_layers
from internvideo_jax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from internvideo_jax.types import Params
from tests.parity.cases import Case, adapter
from tests.parity.model_adapters import export, import_weights, indices

STUDENT = "internvideo2_student"


def unit_pixels(video: np.ndarray) -> jax.Array:
    """(B, 3, T, H, W) normalised as in training -> (B, T, H, W, 3) in 0..1."""
    video = video.astype(np.float64).transpose(0, 2, 3, 4, 1)
    return jnp.asarray(video * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN), jnp.float32)


def encoder_tower(config: dict) -> TowerConfig:
    width = config["embed_dim"]
    hidden = config.get("mlp_hidden", int(width * config["mlp_ratio"]))
    return TowerConfig(width, config["depth"], config["num_heads"], hidden)


def pooled_encoder(config: dict) -> dict[str, Any]:
    """Settings of InternVideo2's encoder and pool; a case leaves out what it has by default."""
    settings = {
        "encoder": encoder_tower(config),
        "embedding": config["clip_embed_dim"],
        "pool_heads": config["attn_pool_num_heads"],
        "resolution": config["img_size"],
        "tubelet": config.get("tubelet_size", 1),
        "patch": config["patch_size"],
        "qkv_bias": config.get("qkv_bias", False),
        "qk_norm": config.get("qk_normalization", True),
        "layer_scale": config.get("init_values", 1e-5) or 0.0,
        "activation": "gelu_tanh" if config.get("fused_path") else "gelu",
        "pos_table": "separable" if config.get("sep_pos_embed") else "joint",
        "dtype": "float32",
    }
    frames = {"frames": config["num_frames"]} if "num_frames" in config else {}
    return settings | frames


def aligned(config: dict, branch: str) -> tuple[int, ...]:
    """Aligned blocks of a branch, `clip` or `mae`: the case lists them, or says how many."""
    for name in (f"{branch}_return_index", "return_index"):
        if name in config:
            return tuple(sorted(config[name]))
    intervals = [
        value
        for name, value in config.items()
        if name.startswith(f"{branch}_") and name.endswith("return_interval")
    ]
    count = config.get(f"{branch}_return_layer", 0)
    return last_layers(config["depth"], count, *intervals[:1])


def student_config(config: dict, **changes: Any) -> StudentConfig:
    """The student of a case, from its `config`."""
    clip, mae = (config.get(f"{kind}_teacher_embed_dim", 0) for kind in ("clip", "mae"))
    settings = {
        **pooled_encoder(config),
        "clip_width": clip,
        "clip_layers": aligned(config, "clip") if clip else (),
        "final_width": config["clip_teacher_final_dim"],
        "mae_width": mae,
        "mae_layers": aligned(config, "mae") if mae else (),
    }
    return StudentConfig(**{**settings, **changes})


def cosine_losses(found: dict[str, jax.Array], targets: dict[str, jax.Array]) -> dict:
    """2 - 2 cos, mean over layers, clips and tokens, of each branch."""
    return {name: (2 - 2 * (x * targets[name]).sum(axis=-1)).mean() for name, x in found.items()}


@adapter("internvideo2_stage1", "stage1_pretrain")
def stage1_pretrain(case: Case) -> None:
    model_config = student_config(case.config)
    model = model_config.model()
    params = import_weights(case, STUDENT, model.shapes(), internvideo2)
    video = unit_pixels(case.io["video"])
    assert not case.io["mask"][:, 0].any()
    visible = indices(case.io["mask"][:, 1:], 0)
    _activations(case, model_config, params, video, visible)

    targets = {name: jnp.asarray(x) for name, x in case.outputs("target_").items()}
    clip_ratio = case.config.get("clip_loss_ratio", (1, 1))
    mae_ratio = case.config.get("mae_loss_ratio", 1)
    ratios = {"clip_middle": clip_ratio[0], "clip_final": clip_ratio[1], "mae": mae_ratio}

    def loss(params):
        found = model.apply(params, video, visible)
        losses = cosine_losses(found, targets)
        return sum(ratios[name] * value for name, value in losses.items()), (found, losses)

    (value, (found, losses)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for name in ("clip_middle", "clip_final", "mae"):
        if name in found:
            case.close(name, found[name])
            case.close(f"loss_{name}", losses[name])
        else:
            assert case.io.get(f"loss_{name}", 0.0) == 0.0
    case.close("loss", value)
    exported = export(gradients, case, STUDENT, internvideo2)
    expected = case.outputs("grad.")
    assert expected
    for name in expected:
        case.close(f"grad.{name}", exported[name])


def _activations(
    case: Case, config: StudentConfig, params: Params, video: jax.Array, visible: jax.Array
) -> None:
    depth, graph = config.encoder.depth, config.model()._graph

    @jax.jit
    def activations(params):
        network = nnx.merge(graph, params)
        encoder = network.encoder
        first = encoder.embed(video, visible)
        x, intermediates = encoder(video, visible, intermediate_layers=range(depth))
        blocks, layers = nnx.split(encoder.blocks)
        inside = [
            _inside(nnx.merge(blocks, jax.tree.map(lambda leaf, i=i: leaf[i], layers)), before)
            for i, before in enumerate([first, *intermediates[:-1]])
        ]
        fused = case.config.get("fused_path", False)
        return {
            "patch_embed": encoder.patch_embed(config.pixels(video)),
            "blocks_in": first,
            # A fused block returns its last branch apart from the stream.
            **{
                f"block_{i}": inside[i]["branch"] if fused else intermediates[i]
                for i in range(depth)
            },
            **{f"block0_{name}": value for name, value in inside[0].items()},
            "pool": network.pool(x),
        }

    case.features(activations(params))


def _inside(block: Block, x: jax.Array) -> dict[str, jax.Array]:
    normed = block.norm1(x)
    attention = block.attn(normed)
    gamma1, gamma2 = (1.0 if g is None else g[...] for g in (block.gamma1, block.gamma2))
    scaled = attention * gamma1
    mlp = block.mlp(block.norm2(x + scaled))
    found = {
        "norm1": normed,
        "attn": attention,
        "ls1": scaled,
        "mlp": mlp,
        "branch": mlp * gamma2,
    }
    if block.attn.q_norm is not None:
        q, k, _ = block.attn.qkv(normed)
        found |= {"q_norm": block.attn.q_norm(q), "k_norm": block.attn.k_norm(k)}
    return found


@adapter("internvideo2_stage1", "sincos_tables")
def sincos_tables(case: Case) -> None:
    config, width = case.config, case.config["dim"]
    frames, side = config["pos3d"]["t"], config["pos3d"]["grid"]
    joint = joint_sincos((frames, side, side), width)
    case.close("pos3d_cls", np.pad(joint, [(1, 0), (0, 0)]))
    case.close("pos2d", image_sincos(side, side, width))
    case.close("pos1d", halves_sincos(np.arange(config["pos1d_len"]), width))

    # Unmasked Teacher's table, and what its classifier makes of it for other grids.
    flat = case.io["umt_sinusoid"]
    case.close("umt_sinusoid", sincos(*flat.shape))
    base = (8, 14, 14)
    for name in case.io:
        if found := re.fullmatch(r"umt_finetune_sinusoid_(\d+)f_(\d+)x\2(_.*)?", name):
            frames, side, part = int(found[1]), int(found[2]), found[3]
            expected = case.io[name]
            table = fixed_table("resized", (frames, side, side), expected.shape[1], base)
            if part:
                # Corners of the first frame, the seam of frames, of halves, and the end.
                one, half = side * side, len(table) // 2
                table = table[[0, 1, side - 1, one - 1, one, half - 1, half, -1]]
            case.close(name, table)
