"""UniFormerV2: forward, loss, gradients, running statistics, export, and the frame rules."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.clips import sampling
from internvideo_jax.families.uniformerv2 import weights as uniformerv2
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.layers.tower import tower
from internvideo_jax.ops.losses import smooth_labels, soft_cross_entropy
from internvideo_jax.types import flatten_paths, unflatten_paths
from tests.parity.cases import Case, adapter
from tests.parity.model_adapters import export, import_weights, unit_video

KIND = "uniformerv2"


def model_config(case: Case, *, scan: bool = True) -> UniFormerV2Config:
    config = case.config
    return UniFormerV2Config(
        encoder=tower(config["width"], config["layers"], config["heads"]),
        frames=config["t"],
        resolution=config["res"],
        patch=config["patch"],
        classes=config["classes"],
        temporal_downsample=config["temporal_downsample"],
        local_blocks=0 if config["no_lmhra"] else 2 if config["double_lmhra"] else 1,
        local_reduction=config["dw_reduction"],
        global_layers=tuple(config["return_list"]),
        mlp_factor=config["mlp_factor"],
        frozen=config["frozen"],
        mlp_dropout=0.0,
        head_dropout=0.0,
        dtype="float32",
        scan=scan,
    )


@adapter("videomae", "uniformerv2_")
def classifier(case: Case) -> None:
    config = model_config(case)
    model = config.model()
    params = import_weights(case, KIND, model.shapes(), uniformerv2)
    video = unit_video(case, config.pixel_mean, config.pixel_std)
    keys = jax.random.split(jax.random.key(0), len(video))
    depth, blocks = config.encoder.depth, len(config.global_layers)

    @jax.jit
    def activations(params):
        network = nnx.merge(model._graph, params)
        x, intermediates, _ = network.encoder(video, intermediate_layers=range(depth))
        read = intermediates[np.array(config.global_layers)]
        q, queries = network.query(read, intermediate_layers=range(blocks))
        graph, stack = nnx.split(network.global_blocks)
        dpe = [
            nnx.merge(graph, jax.tree.map(lambda leaf, j=j: leaf[j], stack)).positions(read[j])
            for j in range(blocks)
        ]
        return {
            "conv1": channels_first(network.encoder.patches(video)),
            "ln_pre": network.encoder.embed(video),
            **{f"resblock{i}": tokens_first(intermediates[i]) for i in range(depth)},
            **{f"dpe{j}": channels_first(dpe[j]) for j in range(blocks)},
            **{f"global{j}": queries[j] for j in range(blocks)},
            "logits": network.classify(q, x),
        }

    for name, value in activations(params).items():
        if f"out.{name}" in case.io:
            case.close(f"out.{name}", value)
    case.close("out.logits", jax.jit(model.apply)(params, video))

    label = jnp.asarray(case.io["in.label"])

    def loss(params):
        logits, statistics = model.apply(params, video, keys, method="train")
        target = smooth_labels(label, config.classes, 0.0)
        return soft_cross_entropy(logits, target).mean(), (logits, statistics)

    (value, (logits, statistics)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        params
    )
    case.close("out.loss_train_mode", value)
    case.close("out.logits_train_mode", logits)
    ours = export(gradients, case, KIND, uniformerv2)
    expected = case.outputs("out.grad.")
    assert expected
    for name in expected:
        case.close(f"out.grad.{name}", ours[name], gradient=True)
    after = unflatten_paths({**flatten_paths(params), **statistics})
    ours = export(after, case, KIND, uniformerv2)
    for name in case.outputs("out.after_train."):
        case.close(f"out.after_train.{name}", ours[name])


def channels_first(x: jax.Array) -> jax.Array:
    """(B, T, N, D) -> (B, D, T, N), the reference's order of a convolution."""
    return x.transpose(0, 3, 1, 2)


def tokens_first(x: jax.Array) -> jax.Array:
    """(B, T, 1 + N, D) -> (1 + N, B * T, D), the reference's order in the blocks."""
    return x.transpose(2, 0, 1, 3).reshape(x.shape[2], -1, x.shape[3])


@adapter("videomae", "frames_uniformerv2")
def frames(case: Case) -> None:
    assert case.meta["queries"]
    for query in case.meta["queries"]:
        key, clips = query["key"], query["num_clips"]
        if re.match("sparse", key):
            views = sampling.stepped_views(query["video_size"], query["num_frames"], clips)
            case.equal(f"{key}.frames", views)
        elif re.match("sth", key):  # files are numbered from one
            views = sampling.stepped_views(query["num_frames"], query["T"], clips)
            case.equal(f"{key}.file_numbers", views + 1)
        else:
            views = sampling.window_views(
                query["video_size"],
                query["num_frames"],
                query["rate"],
                clips,
                to_end=query["use_offset"],
            )
            case.equal(f"{key}.frames", views)
