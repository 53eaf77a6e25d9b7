"""ViCLIP: both encoders, their steps in between, loss and gradients, export, position tables."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from internvideo_jax.families.clip import weights as clip
from internvideo_jax.families.viclip import weights as viclip
from internvideo_jax.families.viclip.model import FRAMES, IMAGE, TEXT, ViCLIPConfig
from internvideo_jax.layers.clip import inflate
from internvideo_jax.layers.tower import TowerConfig, tower
from internvideo_jax.objectives.contrastive import Contrastive, clamped
from internvideo_jax.ops.contrastive import contrastive_loss
from internvideo_jax.ops.pixels import IMAGENET_MEAN, IMAGENET_STD
from internvideo_jax.ops.position_tables import resize_image, resize_length
from internvideo_jax.optim.schedules import floored_cosine
from internvideo_jax.types import Params, flatten_paths, unflatten_paths
from internvideo_jax.weights.family import recognise
from internvideo_jax.weights.rules import to_ours, to_torch
from tests.parity.cases import Case, adapter
from tests.parity.model_adapters import export, import_weights, indices

KIND = "viclip"
NONE = TowerConfig(8, 1, 1, 8)  # the encoder that a case does not have


def model_config(case: Case, *, scan: bool = True) -> ViCLIPConfig:
    config = case.config
    video, text = NONE, NONE
    if "width" in config:
        video = tower(config["width"], config["layers"], config["heads"])
    if "twidth" in config:
        text = tower(config["twidth"], config["tlayers"], config["theads"])
    return ViCLIPConfig(
        encoder=video,
        text=text,
        embedding=config["embed"],
        frames=config.get("frames", 1),
        resolution=config.get("res", 8),
        patch=config.get("patch", 8),
        context=config.get("txt_len", 2),
        vocab=config.get("vocab", 2),
        dtype="float32",
        scan=scan,
    )


def half(case: Case, name: str, config: ViCLIPConfig) -> Params:
    """Weights of a case with one encoder; the other half and the temperature are zeros."""
    shapes = flatten_paths(config.model().shapes())
    wanted = {path: leaf.shape for path, leaf in shapes.items() if path.startswith(f"{name}/")}
    found = recognise(case.weights)
    assert found is not None and found.kind.name == KIND
    flat, coverage = to_ours(case.weights, viclip.RULES[KIND], viclip.IGNORED[KIND])
    assert set(coverage.consumed) == set(case.weights)
    assert {path: value.shape for path, value in flat.items()} == wanted
    back = to_torch(flat, viclip.RULES[KIND], viclip.geometry(case.weights))
    assert {k: v.tobytes() for k, v in back.items()} == {
        k: v.tobytes() for k, v in case.weights.items()
    }
    zeros = {path: jnp.zeros(leaf.shape) for path, leaf in shapes.items()}
    return unflatten_paths({**zeros, **{path: jnp.asarray(value) for path, value in flat.items()}})


def unit(pixels: np.ndarray) -> jax.Array:
    """(B, T, 3, H, W) normalised as in training -> (B, T, H, W, 3) in 0..1."""
    video = pixels.astype(np.float64).transpose(0, 1, 3, 4, 2)
    return jnp.asarray(video * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN), jnp.float32)


def kept(case: Case) -> jax.Array:
    """Patches that the noise of a case leaves, in the reference's order and numbers.

    All but those with the smallest floor(mask * N) values.
    """
    noise = case.io["mask_noise"]
    dropped = np.argsort(noise, axis=1)[:, : int(case.config["mask"] * noise.shape[1])]
    mask = np.zeros(noise.shape, bool)
    np.put_along_axis(mask, dropped, True, axis=1)
    return indices(mask, 0)


def ours(number: jax.Array, frames: int, places: int) -> jax.Array:
    """Our numbers of the reference's patches, whose time runs fastest: every place in turn."""
    return number % frames * places + number // frames


@adapter("video_language", "viclip_vision")
def vision(case: Case) -> None:
    config = model_config(case)
    params = half(case, "encoder", config)
    depth, graph = config.encoder.depth, config.model()._graph
    np.testing.assert_array_equal(kept(case), indices(case.io["mask"], 0))
    shape = config.frames, int(np.prod(config.grid[1:]))
    visible = ours(kept(case), *shape)
    everything = ours(jnp.arange(config.tokens), *shape)
    video, image = unit(case.io["video"]), unit(case.io["image"][:, None])
    everything = jnp.broadcast_to(everything, (len(video), config.tokens))

    @jax.jit
    def activations(params, video, visible):
        network = nnx.merge(graph, params)
        encoder = network.encoder
        tokens = encoder.tokens(video, visible)
        x, intermediates = encoder(video, visible, intermediate_layers=range(depth))
        return {
            "tokens_before_ln_pre": tokens,
            "tokens_after_ln_pre": encoder.norm_pre(tokens),
            **{f"block{i}": intermediates[i] for i in range(depth)},
            "ln_post": encoder.norm_post(x),
            "feature": network.encode_video(video, None, visible),
        }

    for prefix, pixels, places in (
        ("unmasked", video, everything),
        ("masked", video, visible),
        ("image", image, None),
    ):
        expected = case.outputs(f"{prefix}.")
        assert expected
        found = activations(params, pixels, places)
        for name in expected:
            case.close(f"{prefix}.{name}", found[name])
    whole = jax.jit(functools.partial(config.model().apply, method="encode_video"))
    case.close("unmasked.feature", whole(params, video))


@adapter("video_language", "viclip_text")
def text(case: Case) -> None:
    config = model_config(case)
    params = half(case, "text", config)
    depth, graph = config.text.depth, config.model()._graph

    @jax.jit
    def activations(params, ids):
        network = nnx.merge(graph, params)
        x, intermediates = network.text.tokens(ids, range(depth))
        return {
            **{f"block{i}": intermediates[i] for i in range(depth)},
            "ln_final": network.text.norm(x),
            "feature": network.encode_text(ids),
        }

    for name, value in activations(params, jnp.asarray(case.io["ids"])).items():
        case.close(name, value)


def similarities(video: jax.Array, caption: jax.Array, temperature: jax.Array) -> jax.Array:
    """Cosines over the temperature (B, B), rows are clips."""
    a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (video, caption))
    return a @ b.T / temperature


@adapter("video_language", "viclip_full")
def full(case: Case) -> None:
    model = model_config(case).model()
    params = import_weights(case, KIND, model.shapes(), viclip)
    video, ids = unit(case.io["video"]), jnp.asarray(case.io["ids"])
    visible = ours(kept(case), model.config.frames, int(np.prod(model.config.grid[1:])))
    everyone = np.arange(len(ids))
    records = {"none": everyone, "unique": case.io["idx.unique"], "dup": case.io["idx.dup"]}

    def loss(params, records):
        a, b, temperature = model.apply(params, video, ids, None, visible)
        temperature = clamped(temperature, 0.01)
        mean, _ = contrastive_loss(a, b, temperature, ids=records)
        return mean.value(), (a, b, similarities(a, b, temperature))

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for name, numbers in records.items():
        (value, (a, b, logits)), gradients = run(params, jnp.asarray(numbers, jnp.int32))
        case.close(f"loss.{name}", value)
        exported = export(gradients, case, KIND, viclip)
        for key in case.outputs(f"grad.{name}."):
            case.close(f"grad.{name}.{key}", exported[key])
        if name == "none":
            case.close("vision_feature", a)
            case.close("text_feature", b)
            case.close("sim_v2t", logits)
            case.close("sim_t2v", logits.T)
    assert case.outputs("grad.dup.") and case.outputs("grad.none.")
    for name in case.io:
        if found := re.fullmatch(r"temp_after_clamp_from_([\d.]+)", name):
            low = {"temperature": jnp.float32(float(found[1]))}
            case.close(name, Contrastive().project(low)["temperature"])

    unmasked = jax.jit(model.apply)(params, video, ids)
    cosine = similarities(*unmasked[:2], jnp.float32(1.0))
    case.close("unmasked_cosine", cosine)
    count = case.io["label_top3"].shape[-1]
    probabilities, labels = jax.lax.top_k(jax.nn.softmax(100.0 * cosine, axis=-1), count)
    case.close("label_probs_top3", probabilities)
    case.equal("label_top3", labels)


@adapter("video_language", "viclip_get_sim")
def get_sim(case: Case) -> None:
    """Frames of a clip, or prompts of a class, as rows of one: their similarities are pooled."""
    several, single = (jnp.asarray(case.io[name]) for name in ("a3", "b2"))
    flat = several.reshape(-1, several.shape[-1])
    temperature = jnp.float32(case.config["temp"])
    logits = similarities(flat, single, temperature).reshape(*several.shape[:2], -1)
    for pooling in ("max", "mean"):
        pooled = getattr(logits, pooling)(axis=1)
        case.close(f"vision3d.{pooling}.v2t", pooled)
        case.close(f"vision3d.{pooling}.t2v", pooled.T)
        case.close(f"text3d.{pooling}.v2t", pooled.T)
        case.close(f"text3d.{pooling}.t2v", pooled)


@adapter("video_language", "viclip_pos_embed")
def pos_embed(case: Case) -> None:
    config = case.config
    conv = case.io["in.conv1"]
    shape = {"patch": conv.shape[-1]}
    for centre in (True, False):
        kernel = inflate(clip.IMAGE.to_ours(conv), config["time_kernel"], centre=centre)
        case.close(f"conv1.center={centre}", clip.FRAMES.to_torch(kernel, shape))
    case.close("pos.resized", resize_image(case.io["in.pos"], config["grid_new"]))
    temporal, text = case.io["in.temporal"][0], case.io["in.text_pos"]
    frames, context = config["frames_new"], config["text_new"]
    case.close("temporal.linear", resize_length(temporal, frames, longer="linear"))
    case.close("temporal.zero_pad", resize_length(temporal, frames, longer="zero"))
    case.close("text_pos.resized_eval", resize_length(text, context, longer="linear"))
    case.close("text_pos.clip_init", resize_length(text, context, longer="zero"))

    # The same through what a model does with the weights it starts from.
    model = ViCLIPConfig(
        encoder=NONE,
        text=NONE,
        embedding=4,
        frames=frames,
        resolution=8 * config["grid_new"],
        patch=8,
        context=context,
    )
    source = {IMAGE: case.io["in.pos"], FRAMES: temporal, TEXT: text}
    other = model.adapt_weights({**source, "temperature": np.float32(0.01)})
    case.close("pos.resized", other[IMAGE])
    case.close("temporal.linear", other[FRAMES])
    case.close("text_pos.resized_eval", other[TEXT])
    case.close("text_pos.clip_init", model.adapt_weights({TEXT: text})[TEXT])


@adapter("video_language", "schedules")
def schedules(case: Case) -> None:
    """The learning rate of ViCLIP. The case also has BertAdam, which nothing here trains with."""
    config = case.config
    rate = floored_cosine(1.0, config["min_lr_multi"], config["total"], config["warmup_steps"])
    steps = np.arange(len(case.io["viclip_cosine"]))
    case.close("viclip_cosine", rate(steps))
    case.close("viclip_cosine", jax.vmap(rate)(jnp.asarray(steps)))
