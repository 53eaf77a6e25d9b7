"""Folders of Hugging Face without torch: written, read back, loaded by what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import internvideo_jax as ivj
from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.checkpoint.metadata import digest_of
from internvideo_jax.families.clip.huggingface import ImageModel
from internvideo_jax.families.internvideo2.model import EncoderConfig
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.layers.tower import TowerConfig
from internvideo_jax.recipes.stored import stored_config
from internvideo_jax.weights import files, huggingface
from internvideo_jax.weights.__main__ import main
from tests.internvideo_jax.weights.test_huggingface import classifier, pretrain, weights

NAMES = ("riding a bike", "wäscht ab", "jumping", "LABEL_3", "x, y")
TOWER, TEXT = TowerConfig(32, 2, 4, 48), TowerConfig(24, 3, 2, 40)
SEEN = {"resolution": 16, "patch": 8, "pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.2, 0.3, 0.4)}


def image_shapes(config: ImageModel) -> dict[str, tuple[int, ...]]:
    """Of the parameters that this model has in the layout of transformers."""
    names = huggingface.layout_of(config.name).names[config.name]
    made: dict[str, tuple[int, ...]] = {}
    for path in dict.fromkeys(rule.path for rule in names.rules):
        tower = config.text if path.startswith("text/") else config.encoder
        if tower is None:
            continue
        width, hidden = tower.width, tower.hidden
        shapes = {
            "patch_embed/kernel": (config.patch**2 * 3, width),
            "encoder/pos_embed/table": (1 + (config.resolution // config.patch) ** 2, width),
            "text/pos_embed/table": (config.context, width),
            "text/token_embed": (config.vocab, width),
            "qkv/kernel": (3, width, width),
            "qkv/bias": (3, width),
            "attn/proj/kernel": (width, width),
            "mlp/fc1/kernel": (width, hidden),
            "mlp/fc1/bias": (hidden,),
            "mlp/fc2/kernel": (hidden, width),
            "encoder/proj/kernel": (width, config.embedding),
            "text/proj/kernel": (width, config.embedding),
            "pooler/kernel": (width, width),
            "image_head/kernel": (width, config.classes),
            "image_head/bias": (config.classes,),
            "logit_scale": (),
        }
        shape = next((found for end, found in shapes.items() if path.endswith(end)), (width,))
        made[path] = (tower.depth, *shape) if "/blocks/" in path else shape
    return made


def image_weights(config: ImageModel, *without: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = image_shapes(config)
    return {
        path: rng.standard_normal(shape).astype(np.float32)
        for path, shape in shapes.items()
        if not path.startswith(without)
    }


CLIP = ImageModel(name="clip", encoder=TOWER, text=TEXT, embedding=16, context=12, vocab=99, **SEEN)
QK = ("encoder/blocks/attn/q_norm", "encoder/blocks/attn/k_norm", "encoder/blocks/attn/qkv/bias")
IMAGES = {
    "CLIPModel": (CLIP, ()),
    "CLIPVisionModelWithProjection": (
        ImageModel(name="clip_visual", encoder=TOWER, embedding=16, **SEEN),
        (),
    ),
    "CLIPVisionModel": (ImageModel(name="clip_visual", encoder=TEXT, **SEEN), ("encoder/proj",)),
    "ViTForImageClassification": (
        ImageModel(name="vit", encoder=TOWER, classes=5, norm_eps=1e-12, **SEEN),
        ("pooler",),
    ),
    "ViTModel": (
        ImageModel(name="vit", encoder=TEXT, norm_eps=1e-6, **SEEN),
        ("image_head",),
    ),
    "InternVLVisionModel": (
        ImageModel(name="internvl", encoder=TOWER, activation="gelu_tanh", **SEEN),
        QK,
    ),
}


@pytest.mark.parametrize("architecture", IMAGES)
def test_image_models_go_both_ways_with_all_their_settings(architecture, tmp_path):
    config, without = IMAGES[architecture]
    params = image_weights(config, *without)
    classes = NAMES if config.classes else ()
    huggingface.save(tmp_path, params, config, classes)
    back = files.load(tmp_path)
    assert (back.kind, back.layout) == (config.name, "huggingface")
    assert back.params.keys() == params.keys()
    assert all(back.params[path].tobytes() == value.tobytes() for path, value in params.items())
    assert huggingface.config_of(back) == (config, True)
    assert back.stated.classes == classes
    said = json.loads((tmp_path / "config.json").read_text())
    assert said["architectures"] == [architecture]
    # A file of ours keeps what the folder said, and goes back to the same bytes.
    files.save_ours(tmp_path / "ours.safetensors", back)
    again = files.load(tmp_path / "ours.safetensors")
    assert huggingface.config_of(again) == (config, True)
    command = ["export", str(tmp_path / "ours.safetensors"), "--layout=huggingface", "--out"]
    assert main([*command, str(tmp_path / "again")]) == 0
    one, other = (tmp_path / each for each in ("", "again"))
    assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert main([*command, str(tmp_path / "again"), "--heads=2"]) == 2


def test_a_clip_under_its_original_names_needs_its_scale_and_heads(tmp_path, capsys):
    params = image_weights(CLIP, "logit_scale")
    original = tmp_path / "clip.safetensors"
    files.save_torch(original, files.Weights("clip", params, {"patch": 8}))
    command = ["export", str(original), "--layout=huggingface", "--out", str(tmp_path / "hf")]
    for more, message in (
        ((), "add --heads"),
        (("--heads=4",), "add --text_heads"),
        (("--heads=4", "--text_heads=2"), "Give --logit_scale="),
    ):
        assert main([*command, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
    assert main([*command, "--heads=4", "--text_heads=2", "--logit_scale=4.5"]) == 0
    assert "taken for granted" in capsys.readouterr().out
    back = files.load(tmp_path / "hf")
    assert back.params["logit_scale"] == np.float32(4.5)
    assert all(back.params[path].tobytes() == value.tobytes() for path, value in params.items())


@pytest.mark.parametrize(
    ("config", "without", "message"),
    [
        (CLIP, ("text/norm",), r"clip in the Hugging Face layout: .*text/norm"),
        (IMAGES["ViTModel"][0], ("encoder/norm_post", "image_head"), "vit in the .*norm_post"),
    ],
)
def test_nothing_is_left_for_transformers_to_make_up(config, without, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        huggingface.save(tmp_path / "hf", image_weights(config, *without), config)
    assert not (tmp_path / "hf").exists()


def test_an_attention_pool_is_refused_by_name(tmp_path):
    config, without = IMAGES["InternVLVisionModel"]
    params = image_weights(config, *without) | {"pool/proj/bias": np.zeros(3, np.float32)}
    ours = files.Weights("internvl", params, {"patch": 8})
    with pytest.raises(ValueError, match=r"has no attention pool.*pool/"):
        huggingface.config_of(ours, {"heads": 4})


def test_video_models_start_from_image_models(tmp_path):
    """InternVideo2 from InternVL's tower, UniFormerV2 from an image transformer."""
    tower, without = IMAGES["InternVLVisionModel"]
    image, _ = IMAGES["ViTForImageClassification"]
    for config, params in ((tower, image_weights(tower, *without)), (image, image_weights(image))):
        huggingface.save(tmp_path / config.name, params, config)
    sizes = {"encoder": TOWER, "resolution": 16, "patch": 8, "frames": 2, "dtype": "float32"}
    settings = {"qk_norm": False, "pos_frames": 1, "pool_heads": 4}
    config = EncoderConfig(**sizes, **settings)
    _, report = initialise(str(tmp_path / "internvl"), config.model().shapes(), config)
    assert {path.partition("/")[0] for path in report.fresh} == {"pool"}
    assert report.resized == ("encoder/pos_embed/table",) and not report.skipped
    config = UniFormerV2Config(**sizes, backbone="vit", global_layers=(1,), classes=5)
    _, report = initialise(str(tmp_path / "vit"), config.model().shapes(), config)
    assert {path.split("/")[0] for path in report.skipped} == {"encoder", "image_head", "pooler"}
    assert not [path for path in report.fresh if path.startswith("encoder/blocks/attn")]
    assert "head/kernel" in report.fresh  # the image model's head is of other classes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier with names, as an export leaves it."""
    config = classifier(pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.25, 0.25, 0.25))
    place = tmp_path_factory.mktemp("hub") / "named"
    huggingface.save(place, weights(config), config, NAMES, stride=3)
    return place


def changed(folder, place, file="config.json", **values):
    """A copy of a folder with other values in one of its files."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    content = {**json.loads((place / file).read_text()), **values}
    (place / file).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return place


def test_a_folder_says_its_model_its_pixels_and_its_classes(folder):
    plain = stored_config(str(folder))
    assert plain["model"]["name"] == "videomae_classifier" and plain["model"]["classes"] == 5
    assert plain["model"]["encoder"] == {"width": 32, "depth": 2, "heads": 4, "hidden": 128}
    assert tuple(plain["model"]["pixel_mean"]) == (0.5, 0.5, 0.5)
    clip = plain["evals"]["test"]["views"]["clip"]
    assert (clip["frames"], clip["resolution"], clip["stride"]) == (4, 24, 3)
    model = ivj.load(folder, settings={"model.dtype": "float32"})
    assert model.labels == NAMES
    clips = np.random.default_rng(0).integers(0, 255, (2, 4, 24, 24, 3), dtype=np.uint8)
    found = model.classify(clips)
    assert found.labels == NAMES and found.scores.shape == (2, 5)
    video = json.loads((folder / "video_preprocessor_config.json").read_text())
    assert (video["num_frames"], video["frame_sampling_rate"]) == (4, 3)
    assert video["crop_size"] == {"height": 24, "width": 24}
    assert video["video_processor_type"] == "VideoMAEVideoProcessor"


def test_classes_that_nobody_named_have_no_names(tmp_path):
    huggingface.save(tmp_path, weights(classifier()), classifier())
    assert files.load(tmp_path).stated.classes == ()
    assert ivj.load(tmp_path).labels == tuple(f"class {number}" for number in range(5))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu', which this model does not"),
        ("config.json", {"model_type": "vivit"}, "model_type is 'vivit'.*expected 'videomae'"),
        ("config.json", {"num_hidden_layers": 3}, "encoder has depth 3, the weights beside it 2"),
        ("config.json", {"num_attention_heads": 5}, "num_attention_heads 5 do not divide"),
        ("config.json", {"image_size": [24, 32]}, r"image_size is \[24, 32\]; expected a number"),
        ("config.json", {"id2label": {"0": "a", "7": "b"}}, "id2label has '7'; expected the numb"),
        ("config.json", {"layer_norm_eps": 0.1}, "layer_norm_eps is 0.1; expected about 1e-06"),
        ("video_preprocessor_config.json", {"image_std": [1, 2]}, r"image_std is \[1, 2\]"),
        ("video_preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor is 1.0"),
    ],
)
def test_what_does_not_fit_is_refused_with_file_and_name(file, values, message, folder, tmp_path):
    place = changed(folder, tmp_path / "other", file, **values)
    with pytest.raises(ValueError, match=rf"other/{file}.*{message}"):
        files.load(place)


def test_names_for_another_number_of_classes_are_refused(folder, tmp_path, capsys):
    place = changed(folder, tmp_path / "other", id2label={"0": "a", "1": "b"})
    with pytest.raises(ValueError, match="names 2 classes of id2label, the head has 5"):
        files.load(place)
    out = ["--layout=huggingface", "--out", str(tmp_path / "hf")]
    assert main(["export", str(folder), *out, "--labels=a,b,c,d,a"]) == 2
    assert "two classes are called 'a'" in capsys.readouterr().err
    assert main(["export", str(folder), *out, "--labels=a,b"]) == 2
    assert main(["export", str(folder), *out, "--labels=a,b,c,d,e"]) == 0
    assert files.load(tmp_path / "hf").stated.classes == tuple("abcde")


def test_options_that_nothing_would_read_are_refused(folder, tmp_path, capsys):
    huggingface.save(tmp_path / "pretrain", weights(pretrain()), pretrain())
    hub, torch = (str(tmp_path / name) for name in ("hf", "x.safetensors"))
    for arguments, message in (
        ([str(folder), "--out", torch, "--licence=mit"], "--licence is for --layout=huggingface"),
        ([str(folder), "--out", torch, "--heads=4"], "--heads is for --layout=huggingface"),
        ([str(tmp_path / "pretrain"), "--out", hub, "--labels=a"], "has no classes to name"),
        ([str(folder), "--out", hub, "--logit_scale=1"], "whose weights have none"),
    ):
        layout = ["--layout=huggingface"] if hub in arguments else []
        assert main(["export", *arguments, *layout]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_pretraining_says_its_decoder(tmp_path):
    huggingface.save(tmp_path, weights(pretrain()), pretrain())
    model = stored_config(str(tmp_path))["model"]
    assert model["decoder"] == {"width": 24, "depth": 3, "heads": 2, "hidden": 72}
    assert main(["inspect", str(tmp_path)]) == 0


def test_a_bare_model_is_read_without_a_head(folder, tmp_path):
    from safetensors.numpy import save_file

    place = changed(folder, tmp_path / "bare", architectures=["VideoMAEModel"])
    tensors = load_file(place / "model.safetensors")
    kept = {k.removeprefix("videomae."): v for k, v in tensors.items() if k[:9] == "videomae."}
    save_file(kept, place / "model.safetensors")
    back = files.load(place)
    assert back.kind == "videomae_classifier" and "head/bias" not in back.params
    with pytest.raises(ValueError, match="no head: not a whole classifier"):
        huggingface.config_of(back)


def test_the_model_card_says_how_it_was_tested_and_under_which_terms(folder, tmp_path, capsys):
    digest = digest_of(sorted(files.load(folder).params.items()))
    protocol = {"data": "/private/place/k400", "sampling": "dense", "clips": 5}
    result = {"metrics": {"top1": 0.81234}, "protocol": protocol}
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"params_digest": digest, "results": {"test": result}}))
    command = ["export", str(folder), "--layout=huggingface", "--out", str(tmp_path / "mine")]
    assert main([*command, "--licence=Apache-2.0", f"--results={results}"]) == 0
    card = (tmp_path / "mine/README.md").read_text()
    assert "license: apache-2.0" in card and "pipeline_tag: video-classification" in card
    assert "| test | top1 | 0.8123 |" in card and "sampling dense" in card
    assert "private" not in card and "k400" in card and digest in card and "riding a bike" in card
    results.write_text(json.dumps({"params_digest": "0" * 16, "results": {"test": result}}))
    assert main([*command, f"--results={results}"]) == 2
    assert f"the results of parameters {'0' * 16}" in capsys.readouterr().err
    assert main([*command, "--licence=a b"]) == 2
    results.write_text("[]")
    assert main([*command, f"--results={results}"]) == 2
    assert "not what `ivj evaluate --out` writes" in capsys.readouterr().err


def test_weights_that_transformers_has_not_are_refused_before_any_work(tmp_path, capsys):
    ours = tmp_path / "uniformer.safetensors"
    files.save_ours(ours, files.Weights("viclip", {"temperature": np.zeros(())}, {"patch": 8}))
    out = tmp_path / "hf"
    assert main(["export", str(ours), "--layout=huggingface", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "this is viclip: transformers has no such model" in said and not out.exists()
