"""Clips of a folder, their embeddings and the cache."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.ingest.container import VideoError
from internvideo_jax.search import index as index_module
from internvideo_jax.search.cache import CachedFile, EmbeddingCache, content_digest
from internvideo_jax.search.clips import Sampling, decode, list_videos
from internvideo_jax.search.encoder import SearchEncoder
from internvideo_jax.search.index import Stopped, build_index
from tests.search.colours import ColourConfig, ColourModel, colour_encoder, index_of, paint


@pytest.fixture(scope="module")
def encoder() -> SearchEncoder:
    return colour_encoder()


def test_a_file_is_one_clip_of_middle_frames(videos):
    found = decode(str(videos / "d.mp4"), Sampling(4, 16))
    assert found.pixels.shape == (1, 4, 16, 16, 3)
    assert found.windows_us.tolist() == [[0, 2_000_000]]
    # 24 frames in 4 parts: middles at 2, 8, 14, 20; the first half is red, the second blue.
    brightest = found.pixels[0].mean(axis=(1, 2)).argmax(axis=-1)
    assert brightest.tolist() == [0, 0, 2, 2]
    assert found.thumbnails[0].startswith(b"\xff\xd8")


def test_windows_cut_a_file_in_time(videos):
    found = decode(str(videos / "d.mp4"), Sampling(4, 16, window=0.75))
    assert found.windows_us.tolist() == [
        [0, 750_000],
        [750_000, 1_500_000],
        [1_500_000, 2_000_000],
    ]
    assert found.pixels[0, 0].mean(axis=(0, 1)).argmax() == 0
    assert found.pixels[2, 0].mean(axis=(0, 1)).argmax() == 2


def test_crop_and_squash_differ_on_a_wide_frame(tmp_path):
    path = str(paint(tmp_path / "a.mp4", "green"))
    squash, center = (decode(path, Sampling(4, 16, crop=crop)).pixels for crop in
                      ("squash", "center"))  # fmt: skip
    assert squash.shape == center.shape and (squash != center).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "middle"}, "--crop=middle: expected one of squash, center"),
        ({"resize": "nearest"}, "--resize=nearest: expected one of"),
        ({"window": -1.0}, "--window=-1.0: expected 0 or more"),
        ({"fps": float("nan")}, "--fps=nan: expected 0 or more"),
    ],
)
def test_wrong_sampling_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(4, 16, **options)


def test_folders_without_videos_are_refused(tmp_path, videos):
    with pytest.raises(ValueError, match="no such folder"):
        list_videos(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no such folder"):
        list_videos(videos / "a.mp4")
    with pytest.raises(ValueError, match="lists no videos"):
        list_videos(tmp_path)


def test_damaged_files_are_listed_and_the_rest_is_found(videos, encoder):
    index, _ = index_of(videos, encoder)
    assert [video.name for video in index.videos] == ["a.mp4", "b.mp4", "d.mp4", "deep/c <b>&.mp4"]
    assert [file.name for file in index.skipped] == ["damaged.mp4"]
    assert "not a readable video file" in index.skipped[0].reason
    assert (index.embedded, index.reused) == (4, 0)
    np.testing.assert_allclose(np.linalg.norm(index.embeddings, axis=1), 1, rtol=1e-6)
    order, similarity = index.nearest(encoder.text(["something blue"])[0], 10)
    assert [index.videos[clip].name for clip in order[:2]] == ["deep/c <b>&.mp4", "d.mp4"]
    assert (np.diff(similarity) <= 0).all() and similarity[0] > 0.75


def test_embeddings_do_not_depend_on_the_files_beside(videos, encoder):
    """Steps of two clips hold clips of different files, and the last one is padded."""
    index, _ = index_of(videos, encoder, window=0.75)
    alone, _ = index_of(videos, colour_encoder(clips=1), window=0.75)
    assert len(index.clips) == 9
    np.testing.assert_allclose(index.embeddings, alone.embeddings, atol=1e-6)
    assert encoder.compiled <= 2


def test_a_second_run_and_new_names_cost_nothing(videos, tmp_path, encoder, monkeypatch):
    folder, cache = tmp_path / "v", tmp_path / "cache"
    shutil.copytree(videos, folder)
    first, _ = index_of(folder, encoder, cache)
    assert (first.embedded, first.reused) == (4, 0)

    def never(*_):
        raise VideoError("decode", "decoded again")

    monkeypatch.setattr(index_module, "decode", never)
    (folder / "a.mp4").rename(folder / "z.mp4")
    os.utime(folder / "b.mp4", (1, 1))
    shutil.copy(folder / "b.mp4", folder / "copy of b.mp4")
    again, _ = index_of(folder, encoder, cache)
    assert (again.embedded, again.reused) == (0, 5)
    assert [file.reason for file in again.skipped] == ["decoded again"]  # the damaged one only
    names = [video.name for video in again.videos]
    np.testing.assert_array_equal(again.embeddings[names.index("z.mp4")], first.embeddings[0])
    assert again.clips[names.index("z.mp4")].thumbnail == first.clips[0].thumbnail


def test_equal_files_are_embedded_once(tmp_path, encoder, monkeypatch):
    paint(tmp_path / "a.mp4", "red")
    shutil.copy(tmp_path / "a.mp4", tmp_path / "b.mp4")
    calls = []
    real = index_module.decode
    monkeypatch.setattr(
        index_module, "decode", lambda path, options: calls.append(path) or real(path, options)
    )
    index, _ = index_of(tmp_path, encoder)
    assert len(calls) == 1 and len(index.videos) == 2
    assert (index.embedded, index.reused) == (1, 1)


@pytest.mark.parametrize("change", ["weights", "model", "sampling", "content"])
def test_what_decides_an_embedding_decides_the_entry(videos, tmp_path, encoder, change):
    folder, cache = tmp_path / "v", tmp_path / "cache"
    shutil.copytree(videos, folder)
    index_of(folder, encoder, cache)
    options = {}
    if change == "weights":
        model = ColourModel()
        encoder = SearchEncoder(model, {**model.params(), "temperature": np.float32(0.2)})
    elif change == "model":
        encoder = colour_encoder(ColourConfig(shift=0.1))
    elif change == "sampling":
        options = {"crop": "center"}
    else:
        with open(folder / "a.mp4", "ab") as file:
            file.write(b"\0" * 8)
    index, _ = index_of(folder, encoder, cache, **options)
    assert index.embedded == (1 if change == "content" else 4)


def test_any_damage_of_an_entry_counts_as_no_entry(tmp_path):
    """Cuts and changed bytes anywhere, and headers that ask for more memory than there is."""
    cache = EmbeddingCache(tmp_path, "w", "s")
    entry = CachedFile(np.ones((2, 3), np.float32), np.zeros((2, 2), np.int64), (b"one", b"two"))
    cache.put("content", entry)
    path = cache.path("content")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for number in range(300):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=rng.integers(1, 4)):
            data[place] = rng.integers(256)
        path.write_bytes(data[: rng.integers(len(data))] if number % 3 == 0 else data)
        found = cache.get("content")  # what is equal in a zip file's unused fields may stay
        assert found is None or (found.embeddings == 1).all()
        assert found is None or found.thumbnails == (b"one", b"two")
    path.write_bytes(whole.replace(b"(2, 3), }   ", b"(2, 3999999)"))
    assert cache.get("content") is None and cache.damaged > 250
    for rows in (np.full((2, 3), np.nan, np.float32), np.ones((2, 3))):
        cache.put("content", dataclasses.replace(entry, embeddings=rows))
        assert cache.get("content") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_entry_is_made_anew(videos, tmp_path, encoder, damage):
    index_of(videos, encoder, tmp_path)
    entries = sorted(tmp_path.rglob("*.npz"))
    data = bytearray(entries[0].read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    entries[0].write_bytes(
        {"cut": data[: len(data) // 2], "empty": b"", "other": b"PK nonsense"}.get(damage, data)
    )
    index, cache = index_of(videos, encoder, tmp_path)
    assert (index.embedded, index.reused, cache.damaged) == (1, 3, 1)
    assert index_of(videos, encoder, tmp_path)[1].damaged == 0
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to; give another folder or off"):
        EmbeddingCache(tmp_path / "file" / "cache", "w", "s")


def test_a_cache_may_be_named_as_on_the_command_line(tmp_path):
    entry = CachedFile(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int64), (b"x",), "")
    EmbeddingCache(f"{tmp_path}/mine", "w", "s").put("content", entry)
    assert EmbeddingCache(tmp_path / "mine", "w", "s").get("content") is not None


def test_no_cache_keeps_nothing(videos, encoder):
    cache = EmbeddingCache(None, "w", "s")
    assert cache.path(content_digest(videos / "a.mp4")) is None
    assert index_of(videos, encoder, None)[0].embedded == 4


def test_a_file_without_a_finite_vector_is_skipped(videos, tmp_path):
    encoder = colour_encoder(ColourConfig(shift=float("nan")))
    index, _ = index_of(videos, encoder, tmp_path)
    assert not index.clips and len(index.skipped) == 5
    assert "zero or not finite" in index.skipped[0].reason
    assert not list(tmp_path.rglob("*.npz"))


def test_odd_files_are_listed(tmp_path, encoder):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    index, _ = index_of(tmp_path, encoder)
    reasons = {file.name: file.reason for file in index.skipped}
    assert set(reasons) == {"empty.mp4", "pipe.mp4", "gone.mp4"}
    assert "0 bytes" in reasons["empty.mp4"] and "not a regular" in reasons["pipe.mp4"]


def test_building_can_be_stopped(videos, encoder):
    stop = threading.Event()
    stop.set()
    cache = EmbeddingCache(None, "", "")
    with pytest.raises(Stopped):
        build_index(list_videos(videos), encoder, Sampling(4, 16), cache, stop=stop)


def test_building_stops_between_files(videos, tmp_path, encoder):
    stop, cache = threading.Event(), EmbeddingCache(tmp_path, "", "")

    def progress(done: int, total: int, name: str) -> None:
        assert total == 5 and (done > 0) == bool(name)
        if done:
            stop.set()

    with pytest.raises(Stopped):
        build_index(
            list_videos(videos), encoder, Sampling(4, 16), cache, progress=progress, stop=stop
        )
    assert 1 <= len(list(Path(tmp_path).rglob("*.npz"))) < 4
