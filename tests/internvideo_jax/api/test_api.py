"""The Python interface gives what the commands give, and says plainly what it cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import internvideo_jax as ivj
from data_pipelines.records.dataset import open_dataset
from data_pipelines.synthetic import encode_mp4
from internvideo_jax.api.videos import open_videos
from internvideo_jax.config import MeshConfig, TrainConfig, to_typed
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.evaluators.reconstruction import Reconstruction
from internvideo_jax.evaluators.video_text import VideoTextTask, embed_videos
from internvideo_jax.inference.vectors import unit
from internvideo_jax.offline.extract import Extractor, Windows
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.recipes import published
from internvideo_jax.recipes.published import _one, _settings
from internvideo_jax.search.clips import Sampling, decode
from internvideo_jax.search.encoder import SearchEncoder
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import files, zoo
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.identify import Identity
from tests.conftest import ROOT
from tests.recipes import shipped

TOWER = {"width": 16, "hidden": 32, "depth": 1, "heads": 2}
SMALL = {f"model.encoder.{name}": value for name, value in TOWER.items()}
DECODER = {f"model.decoder.{name}": value for name, value in TOWER.items()}
TEXT = {f"model.text.{name}": value for name, value in TOWER.items()}
FINETUNE, PRETRAIN = "videomae/finetune:size=tiny", "videomae/pretrain:size=tiny"
VICLIP = "viclip/pretrain:size=tiny"


def weights(folder: Path, recipe: str, settings: dict[str, object], classes: int = 0) -> Path:
    """A file of random parameters for a recipe with these settings."""
    path, _, options = recipe.partition(":")
    config = shipped.module(f"{path}.py").get_config(options)
    for name, value in {**settings, **({"model.classes": classes} if classes else {})}.items():
        config.update_from_flattened_dict({name: value})
    model = to_typed(TrainConfig, config.to_dict()).model
    params = flatten_paths(model.model().init(jax.random.key(0)))
    file = folder / f"{model.name}.safetensors"
    geometry = {"patch": model.patch}
    files.save_ours(file, files.Weights(model.name, dict(jax.device_get(params)), geometry))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def classifier(folder) -> ivj.VideoModel:
    return ivj.load(weights(folder, FINETUNE, SMALL, 10), recipe=FINETUNE, settings=SMALL)


@pytest.fixture(scope="module")
def autoencoder(folder) -> ivj.VideoModel:
    settings = SMALL | DECODER
    return ivj.load(weights(folder, PRETRAIN, settings), recipe=PRETRAIN, settings=settings)


@pytest.fixture(scope="module")
def viclip(folder) -> ivj.VideoModel:
    settings = SMALL | TEXT
    return ivj.load(weights(folder, VICLIP, settings), recipe=VICLIP, settings=settings)


@pytest.fixture(scope="module")
def videos(shards) -> list[Path]:
    """The files of the test split, in the order of its records."""
    folder, dataset = shards.parent / "videos", open_dataset(str(shards), "test")
    ids = [dataset.load(number).media_id for number in range(len(dataset))]
    return [folder / f"test/{name.rpartition('-')[2]}.mp4" for name in ids]


def test_importing_the_package_loads_no_library():
    code = (
        "import sys; before = set(sys.modules); import internvideo_jax as ivj;"
        "assert callable(dir) and 'load' in dir(ivj);"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}"
        " & {'jax', 'numpy', 'flax', 'absl', 'cv2', 'data_pipelines'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = ivj.laod  # pyright: ignore[reportAttributeAccessIssue]


def test_loading_a_recipe_defines_no_flag(program):
    """A program with a flag --config of its own can use the package."""
    code = """
from absl import flags
flags.DEFINE_string("config", "", "mine")
from data_pipelines import recipe_files
import internvideo_jax.api.load, internvideo_jax.api.model
recipe_files.load("viclip/pretrain:size=tiny")
"""
    done = program(code)
    assert done.returncode == 0, done.stderr


def test_features_are_those_of_extract(classifier, shards):
    """To the bit: the same windows, the same program."""
    dataset = open_dataset(str(shards), "test")
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    model, frames = classifier.context.model, classifier.frames
    for pool in ("mean", "head"):
        tool = Extractor(
            model, classifier.params, mesh, dataset, Windows(stride=99, pool=pool, batch=8)
        )
        expected = np.stack([found["features"][0] for found in tool.shard(range(9))])
        clips = [
            dataset.frames(number, dataset.load(number), np.arange(frames)) for number in range(9)
        ]
        found = classifier.embed(np.stack(clips), pool=pool)
        np.testing.assert_array_equal(found, expected)


def test_scores_of_files_are_those_of_an_evaluation_of_their_shards(classifier, shards, videos):
    test = classifier.config.evals["test"]
    assert isinstance(test, Accuracy)
    task = Accuracy(data=str(shards), split="test", views=test.views, merge=test.merge)
    scored = task.run(classifier.context).scored
    found = classifier.classify(videos)
    np.testing.assert_array_equal(found.scores, vars(scored)["scores"])
    assert found.labels == tuple(f"class {number}" for number in range(10))
    (best,) = classifier.classify(videos[0]).top(1)[0]
    assert best == (f"class {found.scores[0].argmax()}", found.scores[0].max())


def test_the_same_pixels_have_one_digest_whatever_showed_them(classifier, shards, videos):
    test = classifier.config.evals["test"]
    task = Accuracy(data=str(shards), split="test", views=test.views, merge=test.merge)
    classifier.context.look_anew()
    task.run(classifier.context)
    records = classifier.seen.content()
    assert records["clips"] == len(videos) * test.views.clips * test.views.crops
    classifier.classify(videos[::-1])
    assert classifier.seen.content() == records
    classifier.classify(videos[1:])
    assert classifier.seen.hex != records["digest"] and classifier.seen.clips < records["clips"]


def test_vectors_are_those_of_evaluation_and_search(viclip, shards, videos):
    (source,) = (each for each in viclip.config.evals.values() if isinstance(each, VideoTextTask))
    (read,) = VideoTextTask(data=str(shards), split="test", views=source.views).inputs()
    found = viclip.embed(videos)
    np.testing.assert_array_equal(found, embed_videos(viclip.context, read, "x").values)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    encoder = SearchEncoder(viclip.context.model, viclip.params, "world", clean=True)
    pixels = decode(str(videos[0]), Sampling(viclip.frames, viclip.resolution)).pixels
    np.testing.assert_array_equal(viclip.embed(pixels), unit(unit(encoder.video(pixels))))
    texts = ["a red square moves left", "a blue ring grows"]
    expected = encoder.text(texts)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(viclip.text(texts), expected, rtol=1e-5, atol=1e-6)
    assert viclip.text("a blue ring grows").shape == (1, found.shape[1])
    scores = viclip.classify(videos[:2], ["moves left", "grows"]).scores
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert viclip.embed(videos[0], pool="mean").shape == (1, TOWER["width"])


def test_reconstructions_are_those_of_the_evaluator(autoencoder, shards, videos):
    (task,) = (
        each for each in autoencoder.config.evals.values() if isinstance(each, Reconstruction)
    )
    task = Reconstruction(
        data=str(shards), split="test", views=task.views, mask=task.mask, mask_ratio=task.mask_ratio
    )
    expected = task.run(autoencoder.context)
    found = autoencoder.reconstruct(videos)
    for number in range(task.pictures):
        parts = (found.original[number], found.masked[number], found.rebuilt[number])
        side = np.concatenate(
            [part.repeat(task.scale, 1).repeat(task.scale, 2) for part in parts], axis=2
        )
        animation = expected.animations[f"video{number}"]
        for place, part in enumerate(np.split(side, 3, axis=2)):
            begin = place * (animation.shape[2] - part.shape[2]) // 2
            np.testing.assert_array_equal(
                animation[: len(part), : part.shape[1], begin : begin + part.shape[2]], part
            )
    np.testing.assert_allclose(found.loss.mean(), expected.metrics["loss"], rtol=1e-5)
    hidden = autoencoder.reconstruct(videos[0], mask_ratio=0.5)
    assert (hidden.masked == 128).mean() < (found.masked[:1] == 128).mean()


def test_arrays_with_the_models_frames_are_clips_and_others_videos(classifier):
    noise = np.random.default_rng(0).integers(0, 255, (2, 40, 48, 64, 3)).astype(np.uint8)
    frames, views = classifier.frames, classifier.views(text=False)[0]
    clips = open_videos(noise[:, :frames], views, threads=1, strict=True)
    assert len(clips) == 2 and clips.shape[0] == 1
    assert open_videos(noise, views, threads=1, strict=True).shape[0] == (views.clips * views.crops)
    both = classifier.embed(noise[:, :frames])
    np.testing.assert_array_equal(both[1:], classifier.embed(noise[1, :frames]))
    np.testing.assert_array_equal(both, classifier.embed(list(noise[:, :frames])))


def test_files_that_are_no_videos_stop_or_leave_a_gap(classifier, videos, tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all")
    paths = [videos[0], tmp_path / "text.mp4", videos[1]]
    with pytest.raises(ValueError, match=r"text\.mp4: .*not a readable video"):
        classifier.embed(paths)
    found = classifier.embed(paths, unreadable="nan")
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"none of the videos can be used; .*not a readable"):
        classifier.classify(tmp_path / "text.mp4", unreadable="nan")
    encode_mp4(tmp_path / "good.mp4", np.zeros((20, 64, 64, 3), np.uint8), fps=10)
    assert len(classifier.embed(tmp_path, unreadable="nan")) == 2


@pytest.mark.parametrize(
    ("model", "ask", "message"),
    [
        ("classifier", lambda m: m.text(["a dog"]), "videomae_classifier reads no text; take"),
        ("classifier", lambda m: m.reconstruct("x.mp4"), "reconstructs no pixels; take a masked"),
        ("classifier", lambda m: m.classify("x.mp4", ["a"]), "1 labels for the 10 classes"),
        ("classifier", lambda m: m.embed("x.mp4"), "x.mp4: no such file or folder"),
        ("classifier", lambda m: m.embed([]), "videos: found none"),
        ("classifier", lambda m: m.embed(["a", np.zeros(1)]), "1 arrays among 2"),
        ("classifier", lambda m: m.embed(np.zeros((4, 8, 8, 3))), r"\(4, 8, 8, 3\) of float64"),
        ("classifier", lambda m: m.embed(np.zeros((8, 8, 3), np.uint8)), "expected .frames, H, W"),
        ("classifier", lambda m: m.embed("x.mp4", unreadable="skip"), "expected one of raise, nan"),
        ("autoencoder", lambda m: m.classify("x.mp4"), "videomae_pretrain gives no classes; take"),
        ("autoencoder", lambda m: m.embed("x.mp4", pool="head"), "no pooling before a head"),
        ("viclip", lambda m: m.classify("x.mp4"), "labels are needed: viclip reads texts"),
        ("viclip", lambda m: m.text(["a dog", " "]), "the text ' ' is empty"),
    ],
)
def test_what_a_model_cannot_do_is_said(request, model, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(request.getfixturevalue(model))


def test_what_cannot_be_loaded_is_said(folder, classifier, tmp_path):
    file = Path(classifier.checkpoint)
    for arguments, message in (
        ({"source": file}, "does not say which recipe it needs: it is none of the published"),
        ({"source": file, "recipe": "videomae/finetun:size=tiny"}, "did you mean"),
        ({"source": file, "recipe": FINETUNE, "settings": {"model.frame": 8}}, "'frames'"),
        ({"source": file, "recipe": FINETUNE}, "does not fit this model"),
        (
            {"source": file, "recipe": FINETUNE, "settings": SMALL, "labels": ["a"]},
            "1 labels, .* has 10 classes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            ivj.load(**arguments)


def test_a_weight_file_is_read_once_with_and_without_a_recipe(classifier, monkeypatch):
    read, real = [], files.load
    monkeypatch.setattr(files, "load", lambda path, *key: read.append(path) or real(path, *key))
    file = Path(classifier.checkpoint)
    given = ivj.load(file, recipe=FINETUNE, settings=SMALL)
    assert read == [file] and len(given.labels) == 10
    # As of a published file, whose recipe its contents tell.
    fields = tuple(f"--config.{name}={value}" for name, value in SMALL.items())
    entry = Entry(name="some/model", kind="", size="", data="", config=FINETUNE, settings=fields)
    monkeypatch.setattr(published, "_one", lambda place, known: entry)
    told = ivj.load(file)
    assert read == [file, file] and told.labels == given.labels
    assert told.config.model == given.config.model and told.digest == classifier.digest


def test_the_recipe_of_a_published_file_is_its_own():
    entry = zoo.find("internvideo1/ViT-H_f32_res384_89.54")
    one = Identity(entry.kind, {}, named=(entry,))
    assert _one("x.pth", one) is entry
    assert _settings(entry)["model.frames"] == 32
    assert _settings(entry)["model.pos_table"] == "resized"
    other = zoo.find("internvideo1/ssv1_vit_h")
    with pytest.raises(ValueError, match="it may be .* or .*, which are used differently"):
        _one("x.pth", Identity(entry.kind, {}, alike=(entry, other)))
