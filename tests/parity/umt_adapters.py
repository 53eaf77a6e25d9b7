"""Unmasked Teacher: the student with its losses and gradients, the classifier, export."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.families.umt import weights as umt
from internvideo_jax.families.umt.model import CLASSIFIER, UMTStudentConfig
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.layers.pos_embed import fixed_table
from internvideo_jax.layers.tower import tower
from internvideo_jax.ops.alignment import alignment_loss
from tests.parity.cases import Case, adapter
from tests.parity.internvideo2_adapters import aligned
from tests.parity.model_adapters import export, import_weights, indices
from tests.parity.viclip_adapters import unit

GROUP = "internvideo2_stage1"
KIND = "umt_student"


def clip(case: Case) -> jax.Array:
    """(B, 3, T, H, W) normalised as in training -> (B, T, H, W, 3) in 0..1."""
    return unit(case.io["video"].transpose(0, 2, 1, 3, 4))


def student_config(case: Case, **changes) -> UMTStudentConfig:
    config = case.config
    layers = tower(
        config["encoder_embed_dim"],
        config["encoder_depth"],
        config["encoder_num_heads"],
        config["mlp_ratio"],
    )
    return UMTStudentConfig(
        encoder=layers,
        frames=config["num_frames"],
        resolution=config["img_size"],
        patch=config["patch_size"],
        tubelet=config["tubelet_size"],
        qkv_bias=config["qkv_bias"],
        layer_scale=config.get("init_values", 0.0) or 0.0,
        pos_table="learnable" if "encoder.pos_embed" in case.weights else "sincos",
        clip_width=config["clip_output_dim"],
        clip_layers=aligned({**config, "depth": config["encoder_depth"]}, "clip"),
        dtype="float32",
        **changes,
    )


@adapter(GROUP, "umt_pretrain")
def student(case: Case) -> None:
    config = student_config(case)
    model = config.model()
    params = import_weights(case, KIND, model.shapes(), umt)
    video, visible = clip(case), indices(case.io["mask"], 0)
    target = jnp.asarray(case.io["target"]).swapaxes(0, 1)  # examples first

    @jax.jit
    def activations(params):
        network = nnx.merge(model._graph, params)
        _, blocks = network.encoder(video, visible, intermediate_layers=range(config.encoder.depth))
        return {
            "blocks_in": network.encoder.embed(video, visible),
            **{f"block_{i}": block for i, block in enumerate(blocks)},
            "encoder_clip": network.normed(video, visible),
            "aligned": network(video, visible)["clip_middle"],
        }

    found = activations(params)
    case.features(found)
    for name in ("encoder_clip", "aligned"):
        case.close(name, found[name])
    for name in {"mse", "smooth_l1"} & set(case.io):
        case.close(name, alignment_loss(found["aligned"], target, name).value())

    def loss(params):
        aligned = model.apply(params, video, visible)["clip_middle"]
        return alignment_loss(aligned, target, "cosine").value()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    case.close("loss", value)
    ours = export(gradients, case, KIND, umt)
    expected = case.outputs("grad.")
    assert expected
    for name in expected:
        case.close(f"grad.{name}", ours[name])


@adapter(GROUP, "umt_finetune")
def classifier(case: Case) -> None:
    model_config = classifier_config(case)
    model = model_config.model()
    params = import_weights(case, "videomae_classifier", model.shapes())
    video = clip(case)

    @jax.jit
    def activations(params):
        network = nnx.merge(model._graph, params)
        return {"features": network.pool(network.encoder(video)[0]), "logits": network(video)}

    found = activations(params)
    for name in found:
        case.close(name, found[name])
    if "sincos_table_init" in case.io:
        base = model_config.base_grid()
        table = fixed_table("resized", model_config.grid, model_config.encoder.width, base)
        case.close("sincos_table_init", table)
    export_of = export(params, case, "videomae_classifier")
    assert {name: value.tobytes() for name, value in export_of.items()} == {
        name: value.tobytes() for name, value in case.weights.items()
    }


def classifier_config(case: Case) -> VideoMAEClassifierConfig:
    """Tables of other grids are made of that of 8 x 14 x 14 tokens, whatever the patch."""
    config = case.config
    layers = tower(config["embed_dim"], config["depth"], config["num_heads"], config["mlp_ratio"])
    tubelet, patch = config["tubelet_size"], config["patch_size"]
    base = {"pos_frames": 8 * tubelet, "pos_size": 14 * patch}
    settings = {**CLASSIFIER, "tubelet": tubelet, **base}
    if "pos_embed" in case.weights:  # the table as a parameter, which the reference detaches
        settings["pos_table"] = "learnable"
    return VideoMAEClassifierConfig(
        encoder=layers,
        frames=config["all_frames"],
        resolution=config["img_size"],
        patch=config["patch_size"],
        qkv_bias=config["qkv_bias"],
        layer_scale=1.0 if "blocks.0.gamma_1" in case.weights else 0.0,
        classes=config["num_classes"],
        dtype="float32",
        **settings,
    )
