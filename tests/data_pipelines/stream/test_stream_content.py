"""What a record holds beside its frames reaches the batch: token ids, audio, cached features."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from data_pipelines.config import ClipConfig, DataConfig, ImageConfig, ReaderConfig
from data_pipelines.records import dataset, manifest
from data_pipelines.records.companion import CompanionError, CompanionWriter
from data_pipelines.records.dataset import UnreadableRecordError
from data_pipelines.records.reader import CorruptRecordError
from data_pipelines.records.schema import Waveform
from data_pipelines.stream.pipeline import TrainStream
from tests.data_pipelines.records.flaky import flaky, upload
from tests.data_pipelines.sets import write_set
from tests.data_pipelines.stream.batches import first_batches

CLIP = ClipConfig(frames=2, stride=2, resolution=24)
RAMP = np.arange(1, 4001, dtype="<i2")  # a quarter of a second, its values say where it was cut
LONG = Waveform(RAMP.tobytes(), 16_000)
SHORT = Waveform(RAMP[:1000].tobytes(), 16_000)
# As DMVR has it, beginning a tenth of a second after the first frame.
FLOATS = Waveform((RAMP / 32768).astype("<f4").tobytes(), 16_000, 100_000, "float32")
SECONDS = 0.125  # 2000 samples
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four", "five", "!"]


def features_of(index: int, scale: int = 1) -> dict[str, np.ndarray]:
    values = np.random.default_rng([index, scale]).normal(size=(2, 3))
    return {
        "tokens": values.astype(ml_dtypes.bfloat16),
        "pooled": values.mean(0).astype(np.float16),
        "number": np.array(index * scale),
    }


def write_features(directory: Path, path: Path, scale: int = 1, make=features_of) -> None:
    writer = CompanionWriter(path, "teacher", manifest.load(str(directory)), "train")
    for number in writer.missing():
        with writer.shard(number) as shard:
            for index in writer.records(number):
                shard.append(make(index, scale))
    writer.finish()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    audio = [LONG, None, SHORT, FLOATS]
    write_set(root / "a", 13, captions=[("one", "two"), ()], audio=audio)
    write_set(root / "b", 7, captions=[("three", "Four!", "five")])
    write_set(root / "p", 9, frames=1, media_type="image", captions=[("one",)])
    write_features(root / "a", root / "a" / "teacher")
    write_features(root / "b", root / "b" / "teacher", scale=100)
    write_features(root / "p", root / "elsewhere")
    (root / "vocab.txt").write_text("\n".join([*WORDS, ""]))
    return root


def config(sets, **changes) -> DataConfig:
    reader = ReaderConfig(threads=2, buffer=2)
    base = DataConfig(train=f"{sets}/a", global_batch=8, clip=CLIP, seed=3, reader=reader)
    if "mixture" in changes:
        changes["train"] = ""
    return dataclasses.replace(base, **changes)


def everything(sets, **changes) -> DataConfig:
    return config(
        sets,
        mixture=f"a={sets}/a:0.5, b={sets}/b:0.3, "
        f"p={sets}/p:0.2; media=image; features={sets}/elsewhere",
        image=ImageConfig(global_batch=16, resolution=16),
        repeats=2,
        text="random",
        tokenizer=f"bert:{sets}/vocab.txt",
        text_length=6,
        audio_seconds=SECONDS,
        features="teacher",
        **changes,
    )


def joined(settings: DataConfig, hosts: int, steps: int, start: int = 0):
    parts = [
        first_batches(settings, steps, process=i, processes=hosts, start_step=start)
        for i in range(hosts)
    ]
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys()
        and all(x[k].dtype == y[k].dtype and x[k].tobytes() == y[k].tobytes() for k in x)
        for x, y in zip(a, b, strict=True)
    )


def identity_of(settings: DataConfig) -> dict:
    stream = TrainStream(settings)
    stream.close()
    return json.loads(json.dumps(stream.identity))


# ------------------------------------------------------------------------------- all of it at once


def test_hosts_threads_and_restarts_do_not_show(sets):
    settings = everything(sets)
    expected = joined(settings, 1, 9)
    keys = {"video", "label", "index", "position", "dataset", "text", "has_text"}
    keys |= {"features/tokens", "features/pooled", "features/number"}
    kinds = [set(batch) - keys for batch in expected]
    assert {"audio", "audio_valid"} in kinds and set() in kinds  # images have no audio
    reader = ReaderConfig(threads=5, buffer=3)
    for hosts in (2, 4):
        assert same(joined(settings, hosts, 9), expected)
        resumed = joined(dataclasses.replace(settings, reader=reader), hosts, 4, start=5)
        assert same(resumed, expected[5:])


@pytest.mark.slow
def test_workers_do_not_show(sets):
    settings = everything(sets)
    workers = dataclasses.replace(settings, reader=ReaderConfig(threads=1, workers=2))
    assert same(first_batches(workers, 5), first_batches(settings, 5))


def test_what_is_added_changes_nothing_else(sets):
    plain, full = (
        first_batches(config(sets), 4),
        first_batches(
            config(
                sets,
                text="random",
                tokenizer=f"bert:{sets}/vocab.txt",
                audio_seconds=SECONDS,
                features="teacher",
            ),
            4,
        ),
    )
    assert set(plain[0]) == {"video", "label", "index", "position"}
    assert same(plain, [{name: batch[name] for name in plain[0]} for batch in full])


def test_the_identity_names_what_is_on(sets):
    base = identity_of(config(sets))
    on = identity_of(everything(sets))
    assert not {"text", "audio", "features"} & set(base)
    assert identity_of(config(sets, text_length=9, audio_window="frames")) == base
    assert on["text"]["tokenizer"].startswith("bert/") and "/6/plain" in on["text"]["tokenizer"]
    assert on["audio"] == {"samples": 2000, "window": "random"}
    arrays = {name: on["mixture"][name]["features"]["arrays"] for name in "abp"}
    assert len(set(arrays.values())) == 3
    for change in (
        {"text_length": 7},
        {"text_clean": True},
        {"audio_seconds": 0.25},
        {"audio_window": "frames"},
    ):
        assert identity_of(dataclasses.replace(everything(sets), **change)) != on, change


@pytest.mark.parametrize(
    ("changes", "lists"),
    [
        ({}, set()),
        ({"audio_seconds": SECONDS}, {"WAVEFORM/feature/bytes", "WAVEFORM/feature/floats"}),
        (
            {"audio_seconds": SECONDS, "audio_window": "frames"},
            {"WAVEFORM/feature/bytes", "WAVEFORM/feature/floats", "image/timestamp"},
        ),
    ],
)
def test_only_what_is_asked_for_is_read(sets, monkeypatch, changes, lists):
    read, opened = [], []
    real = dataset._Parts.feature_list
    monkeypatch.setattr(
        dataset._Parts, "feature_list", lambda parts, key: (read.append(key), real(parts, key))[1]
    )
    monkeypatch.setattr(
        "data_pipelines.stream.parts.features.open_companion", lambda *a, **k: opened.append(a)
    )
    first_batches(config(sets, **changes), 4)
    assert set(read) == lists and not opened


# ----------------------------------------------------------------------------------------- tokens


def test_captions_become_ids_in_the_order_of_the_words(sets):
    settings = config(sets, text="random", tokenizer=f"bert:{sets}/vocab.txt", text_length=4)
    strings, ids = (
        first_batches(dataclasses.replace(settings, tokenizer=""), 6),
        first_batches(settings, 6),
    )
    for named, numbered in zip(strings, ids, strict=True):
        assert numbered["text"].dtype == np.int32 and numbered["text"].shape == (8, 4)
        assert (numbered["has_text"] == named["has_text"]).all() and "caption" not in numbered
        for caption, row in zip(named["caption"], numbered["text"], strict=True):
            expected = [2, 5 + ["one", "two"].index(caption), 3, 0] if caption else [2, 3, 0, 0]
            assert row.tolist() == expected


def test_captions_can_be_cleaned_first(sets):
    settings = config(
        sets, train=f"{sets}/b", text="first", tokenizer=f"bert:{sets}/vocab.txt", text_length=5
    )
    write_set(sets / "c", 3, captions=[("Four!",)])
    settings = dataclasses.replace(settings, train=f"{sets}/c", global_batch=2)
    assert first_batches(settings, 1)[0]["text"].tolist() == [[2, 8, 10, 3, 0]] * 2
    cleaned = dataclasses.replace(settings, text_clean=True)
    assert first_batches(cleaned, 1)[0]["text"].tolist() == [[2, 8, 3, 0, 0]] * 2


def test_a_tokenizer_must_fit_the_settings(sets):
    words = f"bert:{sets}/vocab.txt"
    with pytest.raises(ValueError, match="tokenizer = 'bert:.*', but config.data.text is off"):
        TrainStream(config(sets, tokenizer=words))
    with pytest.raises(ValueError, match="a tokeniser of the caller's own: expected one of them"):
        TrainStream(
            config(sets, text="first", tokenizer=words),
            tokenize=lambda texts: np.zeros((len(texts), 1), np.int32),
        )
    with pytest.raises(ValueError, match="unknown tokenizer 't5'"):
        TrainStream(config(sets, text="first", tokenizer="t5"))
    with pytest.raises(ValueError, match=r"a context of 1 has no room for \[CLS\] and \[SEP\]"):
        TrainStream(config(sets, text="first", tokenizer=words, text_length=1))


# ------------------------------------------------------------------------------------------ audio


def test_a_random_window_of_long_audio_and_all_of_short_audio(sets):
    batches = first_batches(config(sets, audio_seconds=SECONDS), 13)
    starts = []
    for batch in batches:
        assert batch["audio"].dtype == np.int16 and batch["audio"].shape == (8, 2000)
        assert batch["audio_valid"].dtype == np.int32
        for index, row, valid in zip(
            batch["index"], batch["audio"], batch["audio_valid"], strict=True
        ):
            kind = index % 4
            assert valid == (2000, 0, 1000, 2000)[kind] and not row[valid:].any()
            if kind in (0, 3):  # both encodings have the same values
                starts.append(int(row[0]))
                assert (row == np.arange(row[0], row[0] + 2000)).all()
            elif kind == 2:
                assert (row[:1000] == RAMP[:1000]).all()
    assert min(starts) >= 1 and max(starts) <= 2001
    assert len(set(starts)) > len(starts) * 0.9 and max(starts) - min(starts) > 1000


def test_the_window_can_begin_with_the_frames(tmp_path):
    """Ten frames a second; the pixels tell which frame was drawn."""
    write_set(tmp_path / "s", 4, audio=[LONG], frames=8)
    whole = dataclasses.replace(CLIP, frames=1, resolution=40)
    settings = DataConfig(
        train=f"{tmp_path}/s", global_batch=4, clip=whole, audio_seconds=SECONDS,
        audio_window="frames", crop="center", reader=ReaderConfig(threads=1, buffer=1),
    )  # fmt: skip
    opened = dataset.open_dataset(settings.train, "train")
    seen = set()
    for batch in first_batches(settings, 6):
        for i, index in enumerate(batch["index"]):
            record = opened.load(int(index))
            images = opened.frames(int(index), record, np.arange(8))
            centres = [image[:, 4:44] for image in images]
            (frame,) = [k for k in range(8) if (centres[k] == batch["video"][i, 0]).all()]
            first, valid = 1600 * frame, max(0, min(2000, 4000 - 1600 * frame))
            assert batch["audio_valid"][i] == valid
            assert (batch["audio"][i, :valid] == RAMP[first : first + valid]).all()
            assert not batch["audio"][i, valid:].any()
            seen.add(frame)
    assert len(seen) > 4


def test_every_repeat_hears_a_window_of_its_own(sets):
    batch = first_batches(config(sets, audio_seconds=SECONDS, repeats=8, global_batch=104), 1)[0]
    rows = batch["audio"][batch["index"] == 4]
    assert len(rows) == 8 and len({int(row[0]) for row in rows}) > 4


def test_audio_of_another_rate_is_refused(tmp_path):
    write_set(tmp_path / "s", 3, audio=[Waveform(RAMP.tobytes(), 48_000)])
    settings = config(tmp_path, train=f"{tmp_path}/s", audio_seconds=1.0)
    reader = ReaderConfig(threads=1, on_corrupt="substitute")
    for how in (settings, dataclasses.replace(settings, reader=reader)):
        with pytest.raises(ValueError, match=r"\(s-\d\): its audio has 48000 .* 16000 only"):
            first_batches(how, 1)


def test_settings_of_audio(sets):
    for changes, message in (
        ({"audio_seconds": -1.0}, "audio_seconds = -1.0; expected 0"),
        ({"audio_seconds": float("nan")}, "audio_seconds = nan; expected 0"),
        ({"audio_seconds": 1e-9}, "is shorter than one sample"),
        ({"audio_window": "start"}, "unknown config.data.audio_window 'start'; known: random, fr"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainStream(config(sets, **changes))


def flip_byte(path: Path, needle: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(needle)
    data[at] ^= 0x40
    path.write_bytes(data)


def test_damaged_audio_is_an_unreadable_record(tmp_path):
    write_set(tmp_path / "s", 6, audio=[None, LONG])
    (shard,) = (tmp_path / "s").glob("*.tfrecord")
    flip_byte(shard, RAMP[1000:1100].tobytes())  # of record 1
    whole = config(tmp_path, train=f"{tmp_path}/s", global_batch=6)
    assert sorted(first_batches(whole, 1)[0]["index"]) == list(range(6))  # its frames are whole
    heard = dataclasses.replace(whole, audio_seconds=SECONDS)
    with pytest.raises(UnreadableRecordError, match="record 1 at byte"):
        first_batches(heard, 1)
    reader = ReaderConfig(threads=1, on_corrupt="substitute")
    batch = first_batches(dataclasses.replace(heard, reader=reader), 1)[0]
    assert sorted(batch["index"]) == [0, 2, 2, 3, 4, 5]


# --------------------------------------------------------------------------------------- features


def test_every_record_comes_with_its_own_arrays(sets):
    for batch in first_batches(everything(sets), 9):
        scales = np.array([1, 100, 1])[batch["dataset"]]
        for i, (index, scale) in enumerate(zip(batch["index"], scales, strict=True)):
            for name, array in features_of(int(index), int(scale)).items():
                found = batch[f"features/{name}"]
                assert found.dtype == array.dtype and found[i].shape == array.shape
                assert (found[i] == array).all()


def test_a_remote_set_has_its_arrays_beside_it(sets, tmp_path):
    shutil.copytree(sets / "a", tmp_path / "a", ignore=shutil.ignore_patterns("teacher"))
    local = first_batches(config(sets, features="teacher"), 3)
    with flaky():
        upload(tmp_path / "a", "flaky://bucket/a")
        upload(sets / "a" / "teacher", "flaky://bucket/a/teacher")
        for path in ("teacher", f"{sets}/a/teacher", "flaky://bucket/a/teacher"):
            remote = config(sets, train="flaky://bucket/a", features=path)
            assert same(first_batches(remote, 3), local)
        with pytest.raises(FileNotFoundError, match="flaky://bucket/a/none: has no companion.json"):
            TrainStream(config(sets, train="flaky://bucket/a", features="none"))


def test_arrays_of_other_records_are_refused(sets, tmp_path):
    with pytest.raises(CompanionError, match="was made for other records than split 'train' of"):
        TrainStream(config(sets, train=f"{sets}/b", features=f"{sets}/a/teacher"))
    with pytest.raises(FileNotFoundError, match=re.escape(f"{sets}/a/none: no such directory")):
        TrainStream(config(sets, features="none"))
    text = f"a={sets}/a; features={sets}/a/teacher, b={sets}/b"
    with pytest.raises(ValueError, match="no features for b, but for others"):
        TrainStream(config(sets, mixture=text))
    with pytest.raises(FileNotFoundError, match="p/teacher: no such directory"):
        TrainStream(config(sets, mixture=f"a={sets}/a, p={sets}/p", features="teacher"))


def test_arrays_must_be_alike(sets, tmp_path):
    write_features(
        sets / "b", tmp_path / "wide", make=lambda index, scale: {"pooled": np.zeros(4, np.float16)}
    )
    text = f"a={sets}/a; features=teacher, b={sets}/b; features={tmp_path}/wide"
    with pytest.raises(ValueError, match=r"those of b are pooled float16 \(4,\), those of a num"):
        TrainStream(config(sets, mixture=text))
    write_features(
        sets / "a",
        tmp_path / "ragged",
        make=lambda index, scale: {"pooled": np.zeros(3 + (index == 5))},
    )
    with pytest.raises(
        ValueError, match=r"\(a-5\) are pooled float64 \(4,\), those of the first record .* \(3,\)"
    ):
        first_batches(config(sets, features=f"{tmp_path}/ragged"), 3)


def test_damaged_arrays_are_an_unreadable_record(sets, tmp_path):
    directory = tmp_path / "teacher"
    shutil.copytree(sets / "a" / "teacher", directory)
    (shard,) = directory.glob("*.tfrecord")
    flip_byte(shard, features_of(0)["tokens"].tobytes())
    settings = config(sets, features=str(directory), global_batch=13)
    with pytest.raises(CorruptRecordError, match="record 0 at byte"):
        TrainStream(settings)
    reader = ReaderConfig(threads=1, on_corrupt="substitute")
    batch = first_batches(dataclasses.replace(settings, reader=reader), 1)[0]
    assert sorted(batch["index"]) == [1, 1, *range(2, 13)]
    assert (batch["features/number"] == batch["index"]).all()


# ------------------------------------------------------------------------------------------ media


def test_images_and_videos_do_not_pass_for_each_other(sets):
    with pytest.raises(ValueError, match=r"\(p-\d\): is an image in a set of media=vi"):
        first_batches(config(sets, train=f"{sets}/p"), 1)
    reader = ReaderConfig(threads=1, on_corrupt="substitute")
    mixed = config(sets, mixture=f"a={sets}/a; media=image", reader=reader)
    with pytest.raises(
        ValueError, match=r'\(a-\d+\): is a video in a set of media=image; .*="a=.*; media=video"'
    ):
        first_batches(mixed, 1)


def test_one_frame_of_an_unmarked_record_is_an_image(tmp_path):
    """DMVR's records do not say what they are."""
    write_set(tmp_path / "s", 5, frames=1)
    batch = first_batches(config(tmp_path, mixture=f"s={tmp_path}/s; media=image"), 1)[0]
    assert batch["video"].shape == (8, 1, 24, 24, 3)
