"""A model of ours under mteb's own evaluator, on small tasks of rendered clips."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import internvideo_jax as ivj
from data_pipelines.synthetic import encode_mp4
from internvideo_jax.api.mteb import DecoderViews, encoder, load_encoder
from tests.internvideo_jax.api.test_api import SMALL, TEXT, VICLIP, weights

pytestmark = [pytest.mark.torch, pytest.mark.slow]
COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}
FACTS = {
    "description": "clips of one colour",
    "reference": "https://example.org",
    "dataset": {"path": "NA", "revision": "1"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "date": ("2026-01-01", "2026-01-01"),
    "dialect": [],
    "domains": [],
    "task_subtypes": [],
    "license": "cc-by-4.0",
    "annotations_creators": "derived",
    "sample_creation": "created",
    "bibtex_citation": "",
}


class Opened:
    """A clip as `torchcodec.decoders.VideoDecoder` gives it, by PyAV: torchcodec needs FFmpeg."""

    def __init__(self, path: str):
        import av

        with av.open(path) as container:
            frames = [each.to_ndarray(format="rgb24") for each in container.decode(video=0)]
        self._frames = np.stack(frames).transpose(0, 3, 1, 2)
        self.metadata = SimpleNamespace(num_frames=len(frames), average_fps=10.0)
        self.asked: list[int] = []

    def get_frames_at(self, indices):
        import torch  # pyright: ignore[reportMissingImports]

        self.asked += indices
        return SimpleNamespace(data=torch.from_numpy(self._frames[indices].copy()))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ivj.VideoModel:
    settings = SMALL | TEXT
    file = weights(tmp_path_factory.mktemp("mteb"), VICLIP, settings)
    return ivj.load(file, recipe=VICLIP, settings=settings, progress=False)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, list[str]]:
    """Colour -> clips of it."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    found: dict[str, list[str]] = {}
    for name, colour in COLOURS.items():
        for number in range(6):
            noise = rng.integers(-20, 20, (12, 48, 64, 3))
            frames = np.clip(noise + np.array(colour), 0, 255).astype(np.uint8)
            path = folder / f"{name}{number}.mp4"
            encode_mp4(path, frames, 10)
            found.setdefault(name, []).append(str(path))
    return found


def table(paths: list[str], **columns):
    """A data set whose videos are opened when a row is read."""
    datasets = pytest.importorskip("datasets", reason="mteb is not installed")
    made = datasets.Dataset.from_dict({"video": paths, **columns})
    return made.with_transform(
        lambda rows: (
            {**rows, "video": [Opened(path) for path in rows["video"]]} if "video" in rows else rows
        )
    )


@pytest.fixture(scope="module")
def tasks(clips):
    pytest.importorskip("mteb", reason="mteb is not installed")
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    class Colours(AbsTaskClassification):
        metadata = TaskMetadata(
            type="VideoClassification", name="Colours", main_score="accuracy",
            category="v2c", modalities=["video"], **FACTS,
        )  # fmt: skip
        input_column_name, label_column_name = "video", "label"
        n_experiments, samples_per_label = 2, 4

        def load_data(self, **kwargs):
            split = {"train": slice(0, 4), "test": slice(4, 6)}
            self.dataset = DatasetDict({
                name: table(
                    [path for paths in clips.values() for path in paths[part]],
                    label=[n for n, paths in enumerate(clips.values()) for _ in paths[part]],
                )
                for name, part in split.items()
            })  # fmt: skip
            self.data_loaded = True

    class NamesOfColours(AbsTaskRetrieval):
        metadata = TaskMetadata(
            type="Any2AnyRetrieval", name="NamesOfColours", main_score="ndcg_at_10",
            category="t2v", modalities=["text", "video"], **FACTS,
        )  # fmt: skip

        def load_data(self, **kwargs):
            texts = Dataset.from_dict({"id": list(clips), "text": [f"a {c} clip" for c in clips]})
            corpus = table([paths[0] for paths in clips.values()], id=list(clips))
            relevant = {name: {name: 1} for name in clips}
            data = RetrievalSplitData(
                queries=texts, corpus=corpus, relevant_docs=relevant, top_ranked=None
            )
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    return [Colours(), NamesOfColours()]


def test_mteb_evaluates_videos_and_texts_and_its_metadata_say_which_pixels(model, tasks, tmp_path):
    import mteb

    found = encoder(model, name="me/small", licence="apache-2.0")
    meta = found.mteb_model_meta
    assert (meta.revision, meta.license, meta.embed_dim) == (model.digest, "apache-2.0", 64)
    assert set(meta.modalities) == {"video", "text"} and meta.max_tokens == 32
    assert isinstance(found, mteb.EncoderProtocol)
    cache = mteb.ResultCache(tmp_path / "cache")
    results = mteb.evaluate(found, tasks, cache=cache, show_progress_bar=False)
    scores = {each.task_name: each.get_score() for each in results.task_results}
    assert scores.keys() == {"Colours", "NamesOfColours"}
    assert scores["Colours"] > 0.9  # random weights tell a colour
    written = {path.name: path for path in (tmp_path / "cache").rglob("*.json")}
    assert json.loads(written["Colours.json"].read_text())["task_name"] == "Colours"
    assert model.digest in str(written["Colours.json"])
    stored = json.loads(written["model_meta.json"].read_text())
    pixels = stored["loader_kwargs"]["pixels"]
    assert {name.split("/")[0] for name in pixels} == scores.keys()
    assert all(len(each["digest"]) == 32 and each["clips"] for each in pixels.values())
    # Once more: the same pixels; where an earlier run saw others, it is said.
    again = encoder(model, name="me/small", pixels=pixels)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other pixels")
        mteb.evaluate(again, tasks, cache=None, show_progress_bar=False)
    assert again.mteb_model_meta.loader_kwargs["pixels"] == pixels
    other = {name: {**each, "digest": "0" * 32} for name, each in pixels.items()}
    with pytest.warns(UserWarning, match="other pixels than before"):
        mteb.evaluate(
            encoder(model, name="me/small", pixels=other),
            tasks[1],
            cache=None,
            show_progress_bar=False,
        )


def test_a_decoded_video_is_seen_as_an_array_is_and_only_what_is_needed_is_decoded(model, clips):
    path = clips["red"][0]
    video = Opened(path)
    stream = DecoderViews([video], model.embed_config())
    vectors = model.embed_views(stream)
    whole = np.ascontiguousarray(video._frames.transpose(0, 2, 3, 1))
    assert vectors.shape == (1, 64) and np.isfinite(vectors).all()
    assert len(set(video.asked)) == len(video.asked) < len(whole)


def test_what_mteb_may_give_and_the_model_does_not_read(model):
    pytest.importorskip("mteb", reason="mteb is not installed")
    found = encoder(model, name="me/small")
    task = {"task_metadata": SimpleNamespace(name="x"), "hf_split": "test", "hf_subset": "default"}
    with pytest.raises(ValueError, match="video and text; expected either"):
        found.encode([{"text": ["a"], "video": []}], **task)
    with pytest.raises(ValueError, match="an input of audio; expected either"):
        found.encode([{"audio": []}], **task)
    with pytest.raises(ValueError, match="nothing to encode"):
        found.encode([], **task)
    with pytest.raises(ValueError, match="OWNER/MODEL"):
        encoder(model, name="small")
    with pytest.raises(ValueError, match="the metadata are of 0000"):
        load_encoder("me/small", "0000", source=model)
