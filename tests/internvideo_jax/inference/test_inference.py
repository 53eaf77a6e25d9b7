"""What all ways from clips and texts to vectors share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from data_pipelines.stream.prefetch import in_order
from internvideo_jax.config import MeshConfig
from internvideo_jax.evaluators import base
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.evaluators.knn import NearestNeighbours
from internvideo_jax.evaluators.run import check_evaluators
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.inference.clips import clip_batches
from internvideo_jax.inference.pixels import PixelDigest
from internvideo_jax.inference.steps import Program, fetched
from internvideo_jax.inference.texts import Texts, embed_rows, embed_unique, fitting_tokenizer
from internvideo_jax.inference.vectors import gather
from internvideo_jax.layers.tower import tower
from internvideo_jax.parallel.mesh import make_mesh


def test_items_come_in_their_order_and_few_are_begun_ahead():
    begun, lock = [], threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        return -item

    with ThreadPoolExecutor(3) as pool:
        for item, found in in_order(pool, work, range(20), 4):
            assert found == -item and max(begun) < item + 4
    assert sorted(begun) == list(range(20))


def test_an_error_comes_in_the_place_of_its_item():
    with ThreadPoolExecutor(2) as pool:
        items = in_order(pool, lambda item: 1 // (item - 2), range(9), 9)
        assert [next(items)[0] for _ in range(2)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(items)


def test_one_step_is_started_before_the_one_before_is_fetched():
    started = []

    def steps():
        for number in range(4):
            started.append(number)
            yield number, jnp.full(2, number)

    for key, values in fetched(steps()):
        assert isinstance(values, np.ndarray) and values.tolist() == [key, key]
        assert started[-1] == min(key + 1, 3)


def test_clips_are_padded_to_one_shape():
    def read(row: int) -> np.ndarray | None:
        return None if row == 1 else np.full((2, 4, 4, 3), row, np.uint8)

    found = list(clip_batches(range(5), read, (2, 4, 4, 3), size=3, threads=2))
    assert [rows for rows, _, _ in found] == [[0, 1, 2], [3, 4]]
    assert [readable.tolist() for _, readable, _ in found] == [[True, False, True], [True, True]]
    assert [video[:, 0, 0, 0, 0].tolist() for _, _, video in found] == [[0, 0, 2], [3, 4, 0]]


def test_rows_are_embedded_in_tiles_of_one_shape():
    shapes = []

    def forward(params, batch):
        shapes.append(batch["text"].shape)
        return params * batch["text"].astype(jnp.float32)

    program = Program(jax.jit(forward), make_mesh(MeshConfig(), jax.devices()[:1]))
    rows = np.array([[3, 1], [2, 2], [3, 1], [0, 5], [7, 7]], np.int32)
    for embed in (lambda start: embed_rows(start, "text", rows, 4),
                  lambda start: embed_unique(start, rows, 4)):  # fmt: skip
        found = embed(lambda batch: program(2.0, batch))
        np.testing.assert_array_equal(found, 2.0 * rows)
    assert shapes == [(4, 2)]
    with pytest.raises(ValueError, match="there is no text to encode"):
        embed_rows(lambda batch: program(2.0, batch), "text", rows[:0], 4)


def test_a_tokenizer_has_as_many_ids_as_the_model_vectors():
    size = fitting_tokenizer("world", 8, 620).vocab_size
    for vocab in (size - 1, size + 1):  # with fewer ids a text means something else, too
        with pytest.raises(ValueError, match=f"'world' has {size} ids, the model's table {vocab}"):
            fitting_tokenizer("world", 8, vocab)


def test_a_text_that_is_cut_is_known():
    tokenizer = fitting_tokenizer("world", 6, 620)
    ids = Texts(tokenizer, fitting_tokenizer("world", 7, 620))
    assert ids.words("a red square") == (True, True) and ids.words("") == (False, True)
    long = "a red square moves left and right"
    assert ids.words(long) == (True, False) and ids.cut(["a", long, long]) == 2


def test_rows_of_a_pass_are_sorted_and_each_is_there_once():
    batch = {
        "index": np.array([2, 1, 1, 2]),
        "view": np.array([0, 1, 0, 0]),
        "label": np.array([5, 4, 4, 5]),
        "valid": np.array([True, True, True, True]),
    }
    padded = {name: value[:1] for name, value in batch.items()} | {"valid": np.array([False])}
    rows = gather([(batch, np.arange(4.0)), (padded, np.array([9.0]))])
    assert len(rows) == 4 and rows.values.tolist() == [0, 1, 2, 3]
    assert rows.sorted().values.tolist() == [2, 1, 0]
    assert rows.where(rows.label == 4).record.tolist() == [1, 1]


def test_a_split_is_opened_once_for_all_evaluators(shards, monkeypatch):
    opened = []
    real = base.open_dataset
    monkeypatch.setattr(
        base, "open_dataset", lambda *place, **kw: opened.append(place) or real(*place, **kw)
    )
    views = ViewConfig(clip=ClipConfig(frames=4, resolution=16, sampling="dense"), batch=4)
    config = VideoMAEClassifierConfig(
        encoder=tower(16, 1, 2), frames=4, resolution=16, patch=8, classes=3
    )
    context = EvalContext(
        config.model(), make_mesh(MeshConfig(), jax.devices()[:1]), DataConfig(eval=str(shards))
    )
    tasks = {"test": Accuracy(views=views), "knn": NearestNeighbours(views=views)}
    for _ in range(2):
        check_evaluators(tasks, context)
    assert sorted(split for _, split in opened) == ["test", "train"]


def test_the_digest_of_pixels_is_of_the_clips_alone():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (6, 2, 4, 4, 3), dtype=np.uint8)
    index = np.array([0, 0, 1, 1, 2, 2])

    def seen(*parts, valid=None):
        found = PixelDigest()
        for part in parts:
            rows = np.ones(len(part), bool) if valid is None else valid[part]
            found.add({"video": video[part], "index": index[part], "valid": rows})
        return found

    whole, order = seen(np.arange(6)), np.array([4, 1, 5, 0, 3, 2])
    assert len(whole.hex) == 32 and whole.clips == 6
    assert seen(order[:1], order[1:]).content() == whole.content()
    valid = np.array([True, True, True, True, True, False])
    less = seen(np.arange(6), valid=valid)
    assert (less.clips, less.hex) == (5, seen(np.arange(5)).hex)
    assert less.hex != whole.hex and less.of_record(1) == whole.of_record(1) != ""
    assert less.of_record(2) != whole.of_record(2) and less.of_record(3) == ""
    both = seen(np.arange(4))
    both.merge(seen(np.arange(4, 6)))
    assert both.content() == whole.content() and both.of_record(2) == whole.of_record(2)
    video[5, 1, 3, 3, 2] ^= 1
    assert seen(np.arange(6)).hex != whole.hex
    texts = PixelDigest()
    texts.add({"text_ids": np.zeros((2, 4)), "valid": np.ones(2, bool)})
    assert texts.content() == {} and texts.hex == ""
