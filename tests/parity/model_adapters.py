"""Model cases: forward, losses, gradients, optimizer updates, export."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.config import OptimConfig
from internvideo_jax.families.videomae import weights as videomae
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.layers.pos_embed import sincos
from internvideo_jax.layers.tower import TowerConfig, tower
from internvideo_jax.ops.losses import smooth_labels, soft_cross_entropy
from internvideo_jax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from internvideo_jax.ops.reconstruction import hidden_weight, pixel_loss, pixel_targets
from internvideo_jax.optim.factory import (
    decay_mask,
    layer_scales,
    layer_values,
    make_optimizer,
)
from internvideo_jax.optim.schedules import Schedule, cosine
from internvideo_jax.types import Params, flatten_paths, unflatten_paths
from internvideo_jax.weights.family import recognise
from internvideo_jax.weights.rules import to_ours, to_torch
from tests.parity.cases import Case, adapter


def import_weights(case: Case, kind: str, shapes: Params, family: ModuleType = videomae) -> Params:
    """Through the importer; every tensor must be used, shapes and the way back must agree."""
    found = recognise(case.weights)
    assert found is not None and found.kind.name == kind
    rules = family.RULES[kind]
    flat, coverage = to_ours(case.weights, rules, family.IGNORED[kind])
    assert set(coverage.consumed) | set(coverage.ignored) == set(case.weights)
    expected = {path: leaf.shape for path, leaf in flatten_paths(shapes).items()}
    file_only = getattr(family, "FILE_ONLY", ())
    found = {path: x for path, x in flat.items() if path.rsplit("/", 1)[-1] not in file_only}
    assert {path: value.shape for path, value in found.items()} == expected
    back = to_torch(flat, rules, family.geometry(case.weights))
    assert set(back) == set(coverage.consumed)
    for name, value in back.items():
        assert value.tobytes() == case.weights[name].tobytes(), f"{name} changed on the way back"
    return unflatten_paths({path: jnp.asarray(value) for path, value in found.items()})


def export(
    params: Params, case: Case, kind: str, family: ModuleType = videomae
) -> dict[str, np.ndarray]:
    flat = {path: np.asarray(value) for path, value in flatten_paths(params).items()}
    return to_torch(flat, family.RULES[kind], family.geometry(case.weights))


def unit_video(
    case: Case, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> jax.Array:
    """The stored clip is normalised and channel-first; ours is 0..1 and channel-last."""
    video = case.io["in.video"].astype(np.float64).transpose(0, 2, 3, 4, 1)
    return jnp.asarray(video * np.array(std) + np.array(mean), jnp.float32)


def indices(mask: np.ndarray, value: int) -> jax.Array:
    """(B, N) mask -> (B, M) increasing positions that hold `value`."""
    return jnp.asarray(np.stack([np.flatnonzero(row == value) for row in mask]), jnp.int32)


def options(case: Case) -> dict:
    config = case.config
    return {
        "frames": config["frames"],
        "resolution": config["img_size"],
        "patch": config["patch_size"],
        "tubelet": config.get("tubelet", 2),
        "qkv_bias": config["qkv_bias"],
        "layer_scale": config["init_values"],
        "cosine": config["cos_attn"],
        "dtype": "float32",
    }


@adapter("videomae", "pretrain_")
def pretrain(case: Case) -> None:
    config = case.config
    model_config = PretrainConfig(
        encoder=_tower(config, "enc"), decoder=_tower(config, "dec"), **options(case)
    )
    model = model_config.model()
    params = import_weights(case, "videomae_pretrain", model.shapes())
    video = unit_video(case)
    visible = indices(case.io["in.mask"], 0)
    if "in.decode_mask" in case.io:
        decoded = indices(case.io["in.decode_mask"], 0)
    else:
        decoded = indices(case.io["in.mask"], 1)

    _pretrain_activations(case, model, params, video, visible, decoded)
    normalized = bool(config["normlize_target"])

    def loss(params, normalized=normalized):
        predicted = model.apply(params, video, visible, decoded)
        return pixel_loss(
            predicted,
            video,
            visible,
            decoded,
            tubelet=model_config.tubelet,
            patch=model_config.patch,
            normalized=normalized,
        ).value()

    for name, normal in (("out.target_norm", True), ("out.target_raw", False)):
        target = pixel_targets(
            video,
            decoded,
            tubelet=model_config.tubelet,
            patch=model_config.patch,
            normalized=normal,
        )
        case.close(name, target)
    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    case.close("out.loss", value)
    if "out.loss_other_target" in case.io and "in.decode_mask" not in case.io:
        case.close("out.loss_other_target", loss(params, not normalized))
    norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradients)))
    case.close("out.grad_norm", norm)
    _compare_gradients(case, gradients, "videomae_pretrain")


def _tower(config: dict, prefix: str) -> TowerConfig:
    return tower(
        config[f"{prefix}_dim"],
        config[f"{prefix}_depth"],
        config[f"{prefix}_heads"],
        config["mlp_ratio"],
    )


def _pretrain_activations(case, model, params, video, visible, decoded) -> None:
    depth = case.config["enc_depth"]

    @jax.jit
    def activations(params):
        network = nnx.merge(model._graph, params)
        encoded, intermediates = network.encoder(video, visible, intermediate_layers=range(depth))
        return {
            "enc_pos_embed": network.encoder.table(),
            "dec_pos_embed": network.decoder_table(),
            "enc_input_visible": network.encoder.embed(video, visible),
            **{f"enc_block{i}": intermediates[i] for i in range(depth)},
            "enc_visible": encoded,
            "dec_input": network.decoder_input(encoded, visible, decoded),
            "pred": network(video, visible, decoded),
        }

    for name, value in activations(params).items():
        case.close(f"out.{name}", value)
    if "out.loss_token_weight" in case.io:
        case.close("out.loss_token_weight", hidden_weight(visible, decoded))


def _compare_gradients(case: Case, gradients: Params, kind: str) -> None:
    ours = export(gradients, case, kind)
    expected = case.outputs("out.grad.")
    for name in expected:
        case.close(f"out.grad.{name}", ours[name], gradient=True)


def classifier_config(case: Case) -> VideoMAEClassifierConfig:
    config = case.config
    style = config["style"]
    resized = config.get("interp", False) and style == "internvideo1"
    table = "learnable" if config["learnable_pos"] else "resized" if resized else "sincos"
    return VideoMAEClassifierConfig(
        encoder=tower(config["dim"], config["depth"], config["heads"], config["mlp_ratio"]),
        classes=config["classes"],
        pooling="mean" if config["mean_pool"] else "first_token",
        clips=config["num_segment"],
        pos_table=table,
        **options(case),
    )


@adapter("videomae", "finetune_")
def finetune(case: Case) -> None:
    model_config = classifier_config(case)
    model = model_config.model()
    params = import_weights(case, "videomae_classifier", model.shapes())
    video = unit_video(case)
    depth = model_config.encoder.depth
    keys = jax.random.split(jax.random.key(0), len(video))

    @jax.jit
    def activations(params):
        network = nnx.merge(model._graph, params)
        encoded, intermediates = network.encoder(video, intermediate_layers=range(depth))
        return {
            "pos_embed": network.encoder.table(),
            **{f"block{i}": intermediates[i] for i in range(depth)},
            "features": network.pool(encoded),
            "logits": network(video),
            "logits_train_segment_mean": network(video, keys),
        }

    for name, value in activations(params).items():
        if name != "logits_train_segment_mean" or f"out.{name}" in case.io:
            case.close(f"out.{name}", value)

    def soft_loss(params):
        logits = model.apply(params, video)
        return soft_cross_entropy(logits, jnp.asarray(case.io["in.soft_target"])).mean()

    if "out.loss_soft" in case.io:
        value, gradients = jax.jit(jax.value_and_grad(soft_loss))(params)
        case.close("out.loss_soft", value)
        _compare_gradients(case, gradients, "videomae_classifier")
    if "out.loss_label_smooth" in case.io:
        target = smooth_labels(jnp.asarray(case.io["in.label"]), model_config.classes, 0.1)
        logits = jax.jit(model.apply)(params, video)
        case.close("out.loss_label_smooth", soft_cross_entropy(logits, target).mean())


@adapter("videomae", "sincos")
def sincos_tables(case: Case) -> None:
    for query in case.meta["queries"]:
        table = sincos(query["n_position"], query["d_hid"])
        case.close(query["key"], table[query["rows"]] if "rows" in query else table)


@adapter("videomae", "layer_decay_adamw")
def layer_decay_adamw(case: Case) -> None:
    config = case.config
    model_config = classifier_config(case)
    model = model_config.model()
    kind = "videomae_classifier"
    params = import_weights(case, kind, model.shapes())
    optim = OptimConfig(
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=config["weight_decay"],
        layer_decay=config["layer_decay"],
        clip_norm=config["clip_grad"] or 0.0,
    )
    case.close("out.layer_values", layer_values(config["layer_decay"], config["depth"]))
    schedule, total = stated_schedule(case)
    case.close("out.lr_schedule", schedule(np.arange(total)))
    optimizer = make_optimizer(optim, model.shapes(), schedule)
    _check_parameter_table(case, optim, model.shapes(), kind)

    video, target = unit_video(case), jnp.asarray(case.io["in.soft_target"])
    state = optimizer.init(params)

    def loss(params):
        return soft_cross_entropy(model.apply(params, video), target).mean()

    gradient = jax.jit(jax.value_and_grad(loss))
    update = jax.jit(optimizer.update)
    for i, step in enumerate(config["steps"]):
        value, gradients = gradient(params)
        case.close(f"out.loss_step{i}", value)
        params, state, report = update(gradients, state, params, jnp.int32(step))
        if f"out.grad_norm_step{i}" in case.io:
            case.close(f"out.grad_norm_step{i}", report["grad_norm"])
    ours = export(params, case, kind)
    expected = case.outputs("out.after.")
    for name in expected:
        case.close(f"out.after.{name}", ours[name])
    case.close("out.logits_after", jax.jit(model.apply)(params, video))


def stated_schedule(case: Case) -> tuple[Schedule, int]:
    """The rates of a case and their number, as it says how they were called for."""
    call = case.meta["outputs"]["lr_schedule"]
    found = re.search(r"\(lr,([\d.e+-]+),epochs=(\d+),niter=(\d+),warmup_epochs=(\d+)\)", call)
    assert found, call
    epochs, each, warmup = (int(value) for value in found.groups()[1:])
    return cosine(case.config["lr"], float(found[1]), epochs * each, warmup * each), epochs * each


def _check_parameter_table(case: Case, optim: OptimConfig, shapes: Params, kind: str) -> None:
    """Learning-rate factor and weight decay of every parameter, in the reference's names."""

    def spread(path, leaf):  # one value per layer or per tensor -> the full shape
        return np.broadcast_to(flat_scales[path], leaf.shape).astype(np.float64)

    flat_scales = flatten_paths(layer_scales(optim, shapes))
    scales = {path: spread(path, leaf) for path, leaf in flatten_paths(shapes).items()}
    decayed = flatten_paths(decay_mask(shapes))
    decays = {
        path: np.full(leaf.shape, optim.weight_decay if decayed[path] else 0.0)
        for path, leaf in flatten_paths(shapes).items()
    }
    geometry = videomae.geometry(case.weights)
    scales = to_torch(scales, videomae.RULES[kind], geometry)
    decays = to_torch(decays, videomae.RULES[kind], geometry)
    for name, row in case.meta["parameter_table"].items():
        np.testing.assert_allclose(scales[name], row["lr_scale"], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(decays[name], row["weight_decay"], err_msg=name)
