"""Models that transformers made itself: read, computed, written back, opened there again."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from internvideo_jax.families.internvideo2.model import EncoderConfig
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.viclip.model import FRAMES, ViCLIPConfig
from internvideo_jax.layers.tower import TowerConfig
from internvideo_jax.types import flatten_paths, unflatten_paths
from internvideo_jax.weights import files, huggingface
from internvideo_jax.weights.__main__ import main

pytestmark = [pytest.mark.torch, pytest.mark.slow]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PIXELS = 24
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
IMAGE = {"image_size": PIXELS, "patch_size": 8}
VIDEO = {**IMAGE, "num_frames": 4, "layer_norm_eps": 1e-6}
DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
}
NAMES = {0: "riding a bike", 1: "wäscht ab", 2: "jumping"}


@pytest.fixture(scope="module")
def transformers():
    torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError):  # one that does not fit torch breaks transformers
        sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]
    torch.manual_seed(0)
    return pytest.importorskip("transformers", reason="compares with transformers")


def shaken(model):
    """With every parameter random: those that start at 0 or 1 would not show when they are lost."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def video_models(t):
    one = {**SMALL, "intermediate_size": 64, **VIDEO, **DECODER, "id2label": NAMES}
    other = {**WIDE, "intermediate_size": 80, **VIDEO, "tubelet_size": 1, "id2label": NAMES}
    yield t.VideoMAEForVideoClassification(t.VideoMAEConfig(**one))
    yield t.VideoMAEForVideoClassification(t.VideoMAEConfig(**other, use_mean_pooling=False))
    yield t.VideoMAEForVideoClassification(t.VideoMAEConfig(**one, qv_bias=False))
    yield t.VideoMAEForPreTraining(t.VideoMAEConfig(**one, use_mean_pooling=False))


def image_models(t):
    one, other = ({**size, "intermediate_size": 64, **IMAGE} for size in (SMALL, WIDE))
    text = {**SMALL, "intermediate_size": 40, "vocab_size": 99, "max_position_embeddings": 12}
    text |= {"eos_token_id": 98, "bos_token_id": 97, "projection_dim": 16}
    both = {"vision_config": {**other, "projection_dim": 16}, "text_config": text}
    yield t.CLIPModel(t.CLIPConfig(**both, projection_dim=16))
    yield t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**one, projection_dim=16))
    yield t.CLIPVisionModel(t.CLIPVisionConfig(**other))
    yield t.ViTForImageClassification(t.ViTConfig(**one, id2label=NAMES, layer_norm_eps=1e-6))
    yield t.ViTModel(t.ViTConfig(**other))
    norm = {"norm_type": "rms_norm"}
    yield t.InternVLVisionModel(t.InternVLVisionConfig(**one, **norm, use_qk_norm=True))
    yield t.InternVLVisionModel(t.InternVLVisionConfig(**other, **norm, attention_bias=True))


def all_models(t):
    yield from video_models(t)
    yield from image_models(t)


def test_every_bit_goes_both_ways_and_transformers_opens_what_is_written(transformers, tmp_path):
    import torch  # pyright: ignore[reportMissingImports]

    for number, model in enumerate(map(shaken, all_models(transformers))):
        theirs, ours = tmp_path / f"{number}/theirs", tmp_path / f"{number}/ours"
        model.save_pretrained(theirs, max_shard_size="30KB")  # several files with an index
        assert (theirs / "model.safetensors.index.json").is_file()
        assert main(["export", str(theirs), "--layout=huggingface", "--out", str(ours)]) == 0
        again, report = type(model).from_pretrained(ours, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"], type(model)
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (type(model), name)
        said, config = (json.loads((each / "config.json").read_text()) for each in (theirs, ours))
        kept = ("architectures", "model_type", "id2label", "layer_norm_eps")
        wanted = {name: said[name] for name in kept if name in config and name in said}
        assert wanted == {name: config[name] for name in wanted}, type(model)
        # Through a file of ours, which keeps what config.json said.
        single = tmp_path / f"{number}.safetensors"
        assert main(["import", str(theirs), "--out", str(single)]) == 0
        assert main(["export", str(single), "--layout=huggingface", "--out", str(theirs)]) == 0
        one, other = (load_file(each / "model.safetensors") for each in (ours, theirs))
        assert one.keys() == other.keys()
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)
        assert json.loads((theirs / "config.json").read_text()) == config


def clip_of(config, count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(1)
    shape = (count, config.frames, config.resolution, config.resolution, 3)
    return rng.random(shape).astype(np.float32)


def normal(config, clip: np.ndarray):
    """(B, T, 3, H, W) as transformers takes pixels."""
    import torch  # pyright: ignore[reportMissingImports]

    values = (clip - np.asarray(config.pixel_mean)) / np.asarray(config.pixel_std)
    return torch.from_numpy(values.transpose(0, 1, 4, 2, 3).astype(np.float32))


def read(model, folder) -> files.Weights:
    model.save_pretrained(folder)
    return files.load(folder)


def exact(weights: files.Weights):
    """The config of a video model in float32."""
    config, known = huggingface.config_of(weights)
    assert known
    return type(config)(**{**vars(config), "dtype": "float32"})


def computed(config, params, *arguments, method: str = "__call__") -> np.ndarray:
    """What a model of ours makes of weights; what they lack is random."""
    fresh = flatten_paths(config.model().init(jax.random.key(0)))
    found = {**fresh, **{path: params[path] for path in fresh if path in params}}
    assert {path: x.shape for path, x in found.items()} == {p: x.shape for p, x in fresh.items()}
    return np.asarray(config.model().apply(unflatten_paths(found), *arguments, method=method))


def test_videos_give_their_logits_and_their_names(transformers, tmp_path):
    import torch  # pyright: ignore[reportMissingImports]

    for number, model in enumerate(map(shaken, video_models(transformers))):
        weights = read(model, tmp_path / f"{number}")
        config = exact(weights)
        clip = clip_of(config)
        if weights.kind == "videomae_classifier":
            assert weights.stated.classes == tuple(NAMES.values())
            if model.fc_norm is not None:
                model.fc_norm.eps = 1e-6  # theirs is 1e-5 whatever the config says
            with torch.no_grad():
                found = model(normal(config, clip)).logits.numpy()
            ours = computed(config, weights.params, clip)
        else:
            model.decoder.norm.eps = 1e-6  # the same
            mask = np.ones((2, config.tokens), bool)
            mask[:, ::3] = False
            with torch.no_grad():
                found = model(normal(config, clip), torch.from_numpy(mask)).logits.numpy()
            seen, hidden = (
                np.stack([np.flatnonzero(row) for row in rows]).astype(np.int32)
                for rows in (~mask, mask)
            )
            ours = computed(config, weights.params, clip, seen, hidden)
        np.testing.assert_allclose(ours, found, **CLOSE)


def still(weights: files.Weights) -> dict:
    """Settings of a model of ours that reads single images."""
    said = weights.stated.settings
    tower = TowerConfig(**said["encoder"])
    sizes = {"resolution": said["resolution"], "patch": said["patch"]}
    return {"encoder": tower, **sizes, "frames": 1, "dtype": "float32"}


def test_clip_gives_their_embeddings(transformers, tmp_path):
    import torch  # pyright: ignore[reportMissingImports]

    models = list(map(shaken, image_models(transformers)))
    both, vision = models[:2]
    rng = np.random.default_rng(2)
    ids = rng.integers(1, 90, (2, 12))
    ids[:, 7], ids[:, 8:] = 98, 0
    for number, model in enumerate((both, vision)):
        weights = read(model, tmp_path / f"{number}")
        said = weights.stated.settings
        text = TowerConfig(**said["text"]) if "text" in said else TowerConfig(32, 1, 2, 32)
        more = {"context": said.get("context", 12), "vocab": said.get("vocab", 99)}
        config = ViCLIPConfig(**still(weights), text=text, embedding=16, **more)
        # A table of frames at zero: a clip of one frame is CLIP's image.
        params = {**weights.params, FRAMES: np.zeros((1, config.encoder.width), np.float32)}
        clip = clip_of(config)
        image = computed(config, params, clip, method="encode_video")
        with torch.no_grad():
            pixels = normal(config, clip)[:, 0]
            if number:
                found = model(pixels).image_embeds.numpy()
                np.testing.assert_allclose(image, found, **CLOSE)
                continue
            out = model(input_ids=torch.from_numpy(ids), pixel_values=pixels)
        texts = computed(config, params, ids.astype(np.int32), method="encode_text")
        image, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, texts))
        np.testing.assert_allclose(image, out.image_embeds.numpy(), **CLOSE)
        np.testing.assert_allclose(texts, out.text_embeds.numpy(), **CLOSE)
        scale = np.exp(params["logit_scale"])
        np.testing.assert_allclose(
            scale * image @ texts.T, out.logits_per_image.numpy(), rtol=1e-4, atol=1e-4
        )


def test_image_transformers_give_their_tokens(transformers, tmp_path):
    import torch  # pyright: ignore[reportMissingImports]

    models = list(map(shaken, image_models(transformers)))[3:]
    for number, model in enumerate(models):
        if model.config.layer_norm_eps != 1e-6:
            continue  # the default of ViT, which no model of ours has
        weights = read(model, tmp_path / f"{number}")
        if weights.kind == "vit":
            more = {"backbone": "vit", "global_layers": (0,), "classes": 2}
            config = UniFormerV2Config(**still(weights), **more)
        else:
            said = weights.stated.settings
            names = ("qkv_bias", "qk_norm", "activation")
            more = {name: said[name] for name in names} | {"pool_heads": 2, "layer_scale": 0.1}
            config = EncoderConfig(**still(weights), **more)
        clip = clip_of(config)
        ours = computed(config, weights.params, clip, method="features")
        with torch.no_grad():
            out = model(normal(config, clip)[:, 0], output_hidden_states=True)
        np.testing.assert_allclose(ours, out.hidden_states[-1].numpy(), **CLOSE)


def test_what_these_models_lack_is_refused_by_name(transformers, tmp_path, capsys):
    t = transformers
    sizes = {**SMALL, "intermediate_size": 64, **IMAGE}
    refused = {
        "hidden_act": t.ViTModel(t.ViTConfig(**sizes, hidden_act="relu")),
        "norm_type": t.InternVLVisionModel(t.InternVLVisionConfig(**sizes)),
        "num_channels": t.CLIPVisionModel(t.CLIPVisionConfig(**sizes, num_channels=1)),
        "use_mean_pooling": t.VideoMAEForPreTraining(
            t.VideoMAEConfig(**{**sizes, **VIDEO, **DECODER}, use_mean_pooling=True)
        ),
    }
    for name, model in refused.items():
        model.save_pretrained(tmp_path / name)
        assert main(["inspect", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert f"{name}/config.json: {name} is " in said, said
