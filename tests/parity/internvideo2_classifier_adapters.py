"""InternVideo2's classifier, and what it is trained, loaded and tested with."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.clips import sampling
from internvideo_jax.config import OptimConfig
from internvideo_jax.evaluators.metrics import merge_views, top_k
from internvideo_jax.families.internvideo2 import weights as internvideo2
from internvideo_jax.families.internvideo2.classifier import InternVideo2ClassifierConfig
from internvideo_jax.families.internvideo2.student import StudentConfig
from internvideo_jax.families.videomae import model as videomae_model
from internvideo_jax.families.videomae import weights as videomae
from internvideo_jax.layers.tower import last_layers
from internvideo_jax.ops.losses import soft_cross_entropy
from internvideo_jax.ops.position_tables import adapt_tables
from internvideo_jax.optim.factory import decay_mask, layer_scales, layer_values
from internvideo_jax.optim.schedules import cosine
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights.rules import to_torch
from tests.parity.cases import Case, adapter, quick
from tests.parity.internvideo2_adapters import encoder_tower, pooled_encoder, unit_pixels
from tests.parity.model_adapters import export, import_weights

GROUP = "internvideo2_stage1"
KIND = "internvideo2_classifier"


@adapter(GROUP, "lr_schedule")
def lr_schedule(case: Case) -> None:
    assert case.config
    for key, query in case.config.items():
        steps = query["steps_per_epoch"]
        total, warmup = query["epochs"] * steps, query["warmup_epochs"] * steps
        if warmup and query["warmup_steps"] > 0:
            warmup = query["warmup_steps"]
        rate = cosine(query["base"], query["final"], total, warmup, query["start_warmup_value"])
        case.close(key, rate(np.arange(total)))


class Legacy:
    """The one method of `numpy.random.Generator` that the rule calls, from the old generator."""

    def __init__(self, seed: int):
        self._state = np.random.RandomState(seed)

    def integers(self, high, size):
        return self._state.randint(high, size=size)


@adapter(GROUP, "frame_indices")
def frame_indices(case: Case) -> None:
    """Fine-tuning's test views and pre-training's draws.

    Released pre-training takes the frame before each drawn one, -1 before the first: the loader's
    mistake, which we do not repeat; here it is put back by subtraction.
    """
    assert case.meta["tables"] and case.meta["pretrain"]
    for key, expected in case.meta["tables"].items():
        found = re.fullmatch(r"(?:val|test)_len(\d+)_frames(\d+)(?:_segs(\d+))?", key)
        assert found, key
        n, frames, segments = (int(value or 1) for value in found.groups())
        views = sampling.VIEWS["stepped"](n, frames, 1, segments)
        np.testing.assert_array_equal(views, expected, err_msg=key)
    for key, expected in case.meta["pretrain"].items():
        found = re.fullmatch(r"pretrain(\d+)_len(\d+)_numpyseed(\d+)", key)
        assert found, key
        frames, n, seed = map(int, found.groups())
        drawn = sampling.TRAIN["parts"](n, frames, 1, Legacy(seed))  # pyright: ignore[reportArgumentType]
        np.testing.assert_array_equal(drawn, expected["offsets"], err_msg=key)
        np.testing.assert_array_equal(drawn - 1, expected["frame_ids"], err_msg=key)


@adapter(GROUP, "multiview_merge")
def multiview_merge(case: Case) -> None:
    logits, labels = case.io["logits"], case.io["labels"]
    videos, chunks, crops, classes = logits.shape
    rows = np.arange(videos * chunks * crops)
    rows = np.concatenate([rows, rows[: chunks * crops + 1]])  # repeats do not count twice
    record, view = rows // (chunks * crops), rows % (chunks * crops)
    _, scores = merge_views(record, view, logits.reshape(-1, classes)[rows], "probability")
    case.close("mean_prob", scores)
    case.close("top1", 100 * top_k(scores, labels, 1))
    case.close("top5", 100 * top_k(scores, labels, 5))


@adapter(GROUP, "pos_interp_")
def pos_interp(case: Case) -> None:
    """Tables of a file for another clip. The reference takes 8 frames for every file."""
    config = case.config
    time = config["num_frames"] // config["tubelet_size"]
    side = round((config["num_patches"] / time) ** 0.5)
    stored = {name: value[0] for name, value in case.outputs("in.").items()}
    form = "joint" if "pos_embed" in stored else "separable"
    paths = {
        "pos_embed": "pos_embed/table",
        "pos_embed_spatial": "pos_embed/spatial",
        "pos_embed_temporal": "pos_embed/temporal",
        "pos_embed_cls": "pos_embed/cls",
    }
    source = {paths[name]: value for name, value in stored.items()}
    adapted = adapt_tables(
        source,
        "pos_embed",
        form=form,
        grid=(time, side, side),
        frames=config.get("orig_t_size", 8),
    )
    expected = case.outputs("out.")
    assert {paths[name] for name in expected} == set(adapted)
    for name in expected:
        case.close(f"out.{name}", adapted[paths[name]])


def classifier_config(config: dict, **changes: Any) -> InternVideo2ClassifierConfig:
    return InternVideo2ClassifierConfig(
        **pooled_encoder(config),
        classes=config["num_classes"],
        merge=config.get("merge_method", "proj"),
        merge_norm=config.get("merge_norm", "LN"),
        **changes,
    )


@adapter(GROUP, "finetune", "probe_")
def classifier(case: Case) -> None:
    config = classifier_config(case.config, extra_mlp="extra_mlp.1.fc1.weight" in case.weights)
    model = config.model()
    params = import_weights(case, KIND, model.shapes(), internvideo2)
    video, target = unit_pixels(case.io["video"]), jnp.asarray(case.io["soft_target"])
    depth = config.encoder.depth

    def activations(params):
        network: Any = nnx.merge(model._graph, params)
        x, intermediates = network.encoder(video, intermediate_layers=range(depth))
        return {
            "blocks_in": network.encoder.embed(video),
            **{f"block_{i}": intermediates[i] for i in range(depth)},
            "pool": network.pool(x),
            "fc_norm": network.normed_pool(x),
            "logits": network(video),
        }

    def loss(params):
        found = activations(params)
        return soft_cross_entropy(found["logits"], target).mean(), found

    # One program: the activations are those of the pass that is differentiated.
    run = quick(jax.value_and_grad(loss, has_aux=True))
    (value, found), gradients = run(params)
    case.features(found)
    case.close("logits", found["logits"])
    case.close("loss", value)
    ours, names = export(gradients, case, KIND, internvideo2), case.outputs("grad.")
    assert names
    for name in names:
        case.close(f"grad.{name}", ours[name])


@adapter(GROUP, "param_groups")
def param_groups(case: Case) -> None:
    """Rate factor and weight decay of every parameter, by the reference's names.

    The reference gives separable tables the full rate although they are embeddings; ours have the
    embeddings' unless `layer_decay_free` names them.
    """
    base, checked = case.config["finetune_joint"], 0
    for name, table in case.meta["tables"].items():
        if found := re.fullmatch(r"scales_depth(\d+)_decay([\d.]+)", name):
            np.testing.assert_allclose(layer_values(float(found[2]), int(found[1])), table)
            continue
        rows, values = table["params"], table["layer_scales"]
        blocks = {int(key.split(".")[1]) for key in rows if key.startswith("blocks.")}
        sizes = {**base, "depth": len(blocks), "sep_pos_embed": "pos_embed_spatial" in rows}
        model, rules = grouped_model(sizes, rows)
        shapes, optim = model.model().shapes(), OptimConfig(weight_decay=0.05)
        if values is not None:
            optim = dataclasses.replace(optim, layer_decay=values[-2])
            np.testing.assert_allclose(layer_values(optim.layer_decay, len(blocks)), values)
        if sizes["sep_pos_embed"]:
            full = ("pos_embed/(spatial|temporal|cls)$",)
            optim = dataclasses.replace(optim, layer_decay_free=full)
        flat = flatten_paths(shapes)
        scales = layer_scales(optim, shapes)
        factors = dict.fromkeys(flat, np.ones(())) if scales is None else flatten_paths(scales)
        geometry = {"tubelet": model.tubelet, "patch": model.patch}
        factors, decays = (
            to_torch(
                {path: np.broadcast_to(of[path], leaf.shape) for path, leaf in flat.items()},
                rules,
                geometry,
            )
            for of in (factors, flatten_paths(decay_mask(shapes)))
        )
        assert set(factors) == set(rows), name
        for key, (factor, decay) in rows.items():
            np.testing.assert_allclose(factors[key], factor, err_msg=f"{name}: {key}")
            decayed = decays[key] * optim.weight_decay
            np.testing.assert_allclose(decayed, decay, err_msg=f"{name}: {key}")
        checked += 1
    assert checked


def grouped_model(sizes: dict, rows: dict) -> tuple[Any, Any]:
    """A model with the parameters in `rows`, and the names of its weights."""
    if "clip_decoder.0.head.weight" in rows:
        count = {
            branch: len({key.split(".")[1] for key in rows if key.startswith(f"{branch}_decoder.")})
            for branch in ("clip", "mae")
        }
        depth = sizes["depth"]
        student = StudentConfig(
            **pooled_encoder(sizes),
            clip_width=8,
            clip_layers=last_layers(depth, count["clip"]),
            final_width=8,
            mae_width=8,
            mae_layers=last_layers(depth, count["mae"]),
        )
        return student, internvideo2.RULES["internvideo2_student"]
    if "clip_projector.norm1_q.weight" in rows:
        return classifier_config(sizes), internvideo2.RULES[KIND]
    teacher = videomae_model.VideoMAEClassifierConfig(  # Unmasked Teacher's
        encoder=encoder_tower(sizes),
        frames=sizes["num_frames"],
        resolution=sizes["img_size"],
        patch=sizes["patch_size"],
        tubelet=1,
        classes=sizes["num_classes"],
        pos_table="learnable",
        layer_scale=1.0 if "blocks.0.gamma_1" in rows else 0.0,
    )
    return teacher, videomae.RULES["videomae_classifier"]
