"""Parts of a batch: annotations, sequences, turns, and examples without pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_pipelines.config import (
    AugmentConfig,
    ClipConfig,
    DataConfig,
    ImageConfig,
    ReaderConfig,
    SetConfig,
    ViewConfig,
)
from data_pipelines.records import manifest, schema
from data_pipelines.records.companion import CompanionWriter
from data_pipelines.records.dataset import open_dataset
from data_pipelines.records.reader import ShardWriter, read_index
from data_pipelines.records.schema import Box, Record, Segment, Turn, Waveform
from data_pipelines.stream.mixture import of_sets, parse
from data_pipelines.stream.parts.base import Window, row_bytes
from data_pipelines.stream.parts.boxes import Boxes, shown
from data_pipelines.stream.parts.made import batch_spec, of_pass
from data_pipelines.stream.parts.segments import Segments
from data_pipelines.stream.parts.sequences import Sequences
from data_pipelines.stream.parts.turns import Turns
from data_pipelines.stream.pipeline import TrainStream, ViewPass

CLIP = ClipConfig(frames=2, stride=2, resolution=24)
READER = ReaderConfig(threads=2, buffer=2)
SEGMENTS = (Segment(1_500_000, 2_000_000, 1, "sit"), Segment(1_000_000, 1_250_000))
BOXES = (Box(1_200_000, 0.1, 0.2, 0.5, 0.6, (1, 0), ("sit", "run"), track=7),)
TURNS = (Turn("user", "one"), Turn("assistant", "two three"))
SOUND = Waveform(np.arange(1, 4001, dtype="<i2").tobytes(), 16_000, 1_000_000)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three"]


def pictures(count: int) -> tuple[bytes, ...]:
    """Each pixel tells where it is: red is its row, green its column."""
    y, x = np.mgrid[:40, :48].astype(np.uint8)
    picture = np.stack([4 * y, 4 * x, 0 * x], axis=2)
    return (simplejpeg.encode_jpeg(picture, quality=98),) * count


def write(directory: Path, count: int, classes=("run", "sit"), **changes) -> Path:
    """A set of annotated records, the clip beginning at second 1."""
    directory.mkdir(parents=True)
    shard = directory / "set-train-00000-of-00001.tfrecord"
    with ShardWriter(shard) as writer:
        for i in range(count):
            record = Record(
                media_id=f"{directory.name}-{i}",
                frames=pictures(8),
                timestamps_us=range(1_000_000, 1_800_000, 100_000),
                fps=10.0, height=40, width=48, start_us=1_000_000, end_us=1_800_000,
                labels=(i % 2,), segments=SEGMENTS[: i % 3], boxes=BOXES, turns=TURNS[: 1 + i % 2],
                captions=("one, two",),
            )  # fmt: skip
            record = dataclasses.replace(record, **changes)
            writer.append(schema.encode(record), len(record.frames))
    size = shard.stat().st_size
    info = manifest.ShardInfo(shard.name, count, size, writer.sha256, read_index(str(shard)).crc)
    split = manifest.SplitInfo((info,), count, count * 8, (count - count // 2, count // 2))
    found = manifest.Manifest(
        directory=str(directory), name=directory.name, schema_version=1, classes=classes,
        flip_changes_label=False, options={}, splits={"train": split},
    )  # fmt: skip
    manifest.save(found)
    return directory


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write(root / "a", 6)
    nothing = {"frames": (), "timestamps_us": (), "height": 0, "width": 0, "boxes": ()}
    write(root / "f", 6, **nothing, media_type="features")
    write(root / "s", 6, **nothing, media_type="audio", audio=SOUND)
    for name in "af":
        found = manifest.load(str(root / name))
        writer = CompanionWriter(root / name / "long", "long", found, "train")
        with writer.shard(0) as shard:
            for i in range(6):
                rows = np.arange(1, 3 + 2 * i, dtype=np.float16)
                shard.append({"features": rows[:, None].repeat(3, 1)})
        writer.finish()
    (root / "vocab.txt").write_text("\n".join([*WORDS, ""]))
    return root


def config(sets: Path, **changes) -> DataConfig:
    base = DataConfig(train=f"{sets}/a", global_batch=6, clip=CLIP, seed=3, reader=READER)
    if "mixture" in changes:
        changes["train"] = ""
    return dataclasses.replace(base, **changes)


def one(settings: DataConfig, steps: int = 1) -> dict[str, np.ndarray]:
    """Rows of several steps."""
    stream = TrainStream(settings)
    try:
        found = [next(stream) for _ in range(steps)]
    finally:
        stream.close()
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def check_spec(settings: DataConfig, media: str, batch: dict[str, np.ndarray]) -> None:
    """The shapes that are known before are those of the batch."""
    found = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
    assert found == dict(batch_spec(settings, media))
    assert row_bytes(batch_spec(settings, media)) == sum(a.nbytes for a in batch.values()) // 6


# ------------------------------------------------------------------------------------ annotations


def test_segments_come_padded_with_a_mask(sets):
    settings = config(sets, parts={"segments": Segments(most=3)})
    batch = one(settings)
    check_spec(settings, "video", batch)
    for row, index in enumerate(batch["index"]):
        count = index % 3
        assert batch["segments_valid"][row].tolist() == [True] * count + [False] * (3 - count)
        expected = [[0.5, 1.0], [0.0, 0.25]][:count] + [[0.0, 0.0]] * (3 - count)
        assert batch["segments"][row].tolist() == expected
        assert batch["segments_label"][row].tolist() == [1, -1, -1] if count else [-1] * 3
    with pytest.raises(ValueError, match=r"has 2 segments, a batch takes 1; raise `most` of the"):
        one(config(sets, parts={"segments": Segments(most=1)}))


def test_labels_of_segments_and_boxes_are_those_of_the_stream(sets, tmp_path):
    write(tmp_path / "b", 6, classes=("stand", "run"))
    sets_of = {"a": SetConfig(f"{sets}/a"), "b": SetConfig(f"{tmp_path}/b")}
    parts = {"segments": Segments(most=2), "boxes": Boxes(most=1, labels=2)}
    batch = one(config(sets, mixture=sets_of, merge_classes="name", parts=parts), 2)
    for row, dataset in enumerate(batch["dataset"]):
        expected = [[1, 0], [0, 2]][dataset]  # run, sit, stand
        assert batch["boxes_label"][row].tolist() == [expected]
        label = int(batch["segments_label"][row, 0])
        assert label == (expected[0] if batch["segments_valid"][row, 0] else -1)


@pytest.mark.parametrize("crop", ["multiscale", "random_resized", "random", "center", "squash"])
def test_boxes_move_with_the_crop(sets, crop):
    """The pixel under a corner of the box tells its place in the stored image."""
    settings = config(
        sets, crop=crop, flip="on", augment=AugmentConfig(short_side=(28, 40), area=(0.5, 1.0)),
        clip=dataclasses.replace(CLIP, resolution=28), parts={"boxes": Boxes(most=2, labels=2)},
    )  # fmt: skip
    batch, checked, mirrored = one(settings, 4), 0, set()
    box = BOXES[0]
    for row, video in enumerate(batch["video"]):
        y1, x1, y2, x2 = batch["boxes"][row, 0]
        red, green = video[0, :, :, 0].astype(float), video[0, :, :, 1].astype(float)
        across = green.mean(0)
        mirrored.add(bool(across[0] > across[-1]))
        edges = (box.x2, box.x1) if across[0] > across[-1] else (box.x1, box.x2)
        for position, array, expected in (
            (y1, red.mean(1), 4 * 40 * box.y1), (y2, red.mean(1), 4 * 40 * box.y2),
            (x1, across, 4 * 48 * edges[0]), (x2, across, 4 * 48 * edges[1]),
        ):  # fmt: skip
            if 0.05 < position < 0.95:  # inside of the crop
                found = np.interp(position * 28 - 0.5, np.arange(28), array)
                assert abs(found - expected) < 5, (crop, row)
                checked += 1
    assert checked > 20 and mirrored == {True, False}
    assert (batch["boxes_track"][:, 0] == 7).all() and not batch["boxes_valid"][:, 1].any()
    assert np.allclose(batch["boxes_time"][:, 0], 0.2)


def test_boxes_outside_of_the_crop_are_not_valid():
    window = Window(0.6, 0.0, 1.0, 0.4, mirrored=False)
    assert not np.diff(shown(BOXES, window)[:, ::2]).any()
    inside = shown(BOXES, Window(0.0, 0.0, 0.5, 0.4, mirrored=True))
    assert np.allclose(inside, [[0.2, 0.0, 1.0, 0.5]])


def test_boxes_and_shears_exclude_each_other(sets):
    changes = AugmentConfig(rand_augment="rand-m7-n4")
    with pytest.raises(ValueError, match="the part boxes .* not the boxes; switch it off"):
        TrainStream(config(sets, augment=changes, parts={"boxes": Boxes()}))


def test_turns_are_rows_of_ids(sets):
    part = Turns(f"bert:{sets}/vocab.txt", most=3, length=5)
    settings = config(sets, parts={"turns": part})
    batch = one(settings)
    check_spec(settings, "video", batch)
    for row, index in enumerate(batch["index"]):
        second = [[2, 6, 7, 3, 0]] if index % 2 else [[0] * 5]
        assert batch["turns"][row].tolist() == [[2, 5, 3, 0, 0], *second, [0] * 5]
        assert batch["turns_role"][row].tolist() == [0, 1 if index % 2 else -1, -1]
    with pytest.raises(ValueError, match="turn 0 is of role 'user'; `roles` of the part turns"):
        one(config(sets, parts={"turns": dataclasses.replace(part, roles=("human",))}))


# -------------------------------------------------------------------------------------- sequences


def test_features_of_varying_length_are_padded_with_a_mask(sets):
    settings = config(sets, parts={"long": Sequences("long", length=8, width=3)})
    batch, starts = one(settings, 8), set()
    check_spec(settings, "video", {name: array[:6] for name, array in batch.items()})
    for row, index in enumerate(batch["index"]):
        count, start = 2 + 2 * int(index), int(batch["features/features_start"][row])
        kept = min(count, 8)
        expected = np.zeros(8)
        expected[:kept] = np.arange(1 + start, 1 + start + kept)
        assert (batch["features/features"][row] == expected[:, None]).all()
        assert batch["features/features_valid"][row].sum() == kept
        starts.add(start)
    assert starts > {0} and max(starts) <= 4
    for wrong, message in (({"width": 2}, r"are features \(\d+, 3\)"), ({"array": "x"}, "takes x")):
        part = dataclasses.replace(Sequences("long", length=8, width=3), **wrong)
        with pytest.raises(ValueError, match=message):
            one(config(sets, parts={"long": part}))


def test_parts_are_part_of_the_identity(sets):
    def identity(**changes):
        stream = TrainStream(config(sets, **changes))
        stream.close()
        return stream.identity

    plain = identity()
    for one_part in (Segments(most=2), Sequences("long", length=8, width=3)):
        found = identity(parts={"own": one_part})
        assert {k: v for k, v in found.items() if k != "parts"} == plain
    assert identity(parts={"own": Segments(most=2)})["parts"] == {"own": {"most": 2}}


def test_two_parts_do_not_share_a_name(sets):
    with pytest.raises(ValueError, match="two parts have an array 'segments"):
        TrainStream(config(sets, parts={"a": Segments(), "b": Segments()}))


# --------------------------------------------------------------------------------- without pixels


@pytest.mark.parametrize("held", ["f", "a"])
def test_a_batch_of_features_and_segments_has_no_video(sets, held):
    """Records without frames, or whose frames are not looked at."""
    parts = {"long": Sequences("long", length=12, width=3), "segments": Segments(most=2)}
    settings = config(
        sets, mixture={"set": SetConfig(f"{sets}/{held}", media="features")}, parts=parts
    )
    batch = one(settings)
    assert "video" not in batch and batch["label"].tolist() == (batch["index"] % 2).tolist()
    check_spec(settings, "features", batch)


def test_media_types_come_in_steps_of_their_own(sets):
    mixture = {
        "video": SetConfig(f"{sets}/a"),
        "audio": SetConfig(f"{sets}/s", media="audio"),
        "both": SetConfig(f"{sets}/a", media="audio_video"),
    }
    settings = config(sets, mixture=mixture, audio_seconds=0.1, image=ImageConfig())
    stream = TrainStream(settings)
    seen = {}
    for _ in range(9):
        batch = next(stream)
        (dataset,) = set(batch["dataset"].tolist())
        seen.setdefault(dataset, batch)
        check_spec(settings, ("video", "audio", "audio_video")[dataset], batch)
    stream.close()
    assert ["video" in seen[k] for k in range(3)] == [True, False, True]
    assert (seen[1]["audio_valid"] == 1600).all() and seen[1]["audio"].all()
    assert not seen[2]["audio_valid"].any()  # missing audio is silence, as in the reference


def test_a_set_says_that_its_records_have_no_frames(sets):
    record = open_dataset(f"{sets}/f", "train")[0]
    assert len(record.frames) == 0 and record.media_type == "features"
    with pytest.raises(ValueError, match="is a features in a set of media=video; give the set as"):
        one(config(sets, train=f"{sets}/f"))
    with pytest.raises(schema.SchemaError, match="has no frames; a record needs at least one"):
        schema.encode(dataclasses.replace(record, media_type="video"))


# ------------------------------------------------------------------------------- options of a set


def test_options_of_a_set_may_have_commas(sets):
    prompt = "Look, and say: "
    mixture = {"a": SetConfig(f"{sets}/a", weight=0.7, prompt=prompt), "b": SetConfig(f"{sets}/a")}
    mixture["b"] = dataclasses.replace(mixture["b"], weight=0.3)
    settings = config(sets, mixture=mixture, text="first")
    batch = one(settings, 3)
    expected = ["one, two" if dataset else f"{prompt}one, two" for dataset in batch["dataset"]]
    assert batch["caption"].tolist() == expected and set(batch["dataset"]) == {0, 1}
    stream = TrainStream(settings)
    stream.close()
    assert stream.identity["mixture"]["a"]["prompt"] == prompt
    assert "prompt" not in stream.identity["mixture"]["b"]


def test_both_forms_of_a_mixture_are_the_same_stream(sets):
    given = {"a": SetConfig(f"{sets}/a", 0.7), "b": {"directory": f"{sets}/a", "weight": 0.3}}
    text = f"a={sets}/a:0.7, b={sets}/a:0.3"
    assert of_sets(given) == parse(text)
    found = []
    for mixture in (given, text):
        stream = TrainStream(config(sets, mixture=mixture))
        stream.close()
        found.append(stream.fingerprint)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"directory": "x", "wieght": 1.0}, "unknown field .*a.wieght: did you mean 'weight'"),
        ({"weight": 1.0}, "missing field config.data.mixture.a.directory"),
        ({"directory": "x", "weight": -1.0}, "mixture.a.weight = -1: expected at least 0"),
        ({"directory": "x", "weight": "1"}, "a.weight: expected a number, found '1'"),
        ({"directory": "x", "media": "smell"}, "unknown media type 'smell' of a; known: video"),
    ],
)
def test_wrong_options_of_a_set(values, message):
    with pytest.raises(ValueError, match=message):
        of_sets({"a": values})


# ----------------------------------------------------------------------------- evaluation passes


def test_a_pass_has_the_parts_it_asks_for(sets, tmp_path):
    write(tmp_path / "e", 5, audio=SOUND)
    views = ViewConfig(dataclasses.replace(CLIP, sampling="dense"), 2, 3, batch=2, reader=READER)
    settings = config(
        sets, text="random", tokenizer=f"bert:{sets}/vocab.txt", text_length=6, audio_seconds=0.1,
        parts={"segments": Segments(most=2), "boxes": Boxes(most=1, labels=2)},
    )  # fmt: skip
    names = ("video", "audio", "text", "segments", "boxes")
    stream = ViewPass(f"{tmp_path}/e", "train", views, parts=of_pass(settings, views, names))
    batches = list(stream)
    stream.close()
    spec = batch_spec(settings, "video")
    for batch in batches:
        rows = 2 * 2 * 3
        for name in set(spec) - {"position"}:
            assert batch[name].shape == (rows, *spec[name][0]), name
        assert (batch["audio"] == np.arange(1, 1601)).all()  # the beginning
        assert batch["has_text"].all() and (batch["text"] == batch["text"][0]).all()
    y1, x1, y2, _ = batches[0]["boxes"][1, 0]  # the middle crop is columns 4 to 44 of 48
    assert np.allclose((y1, y2), (0.1, 0.5)) and np.allclose(x1, (0.2 * 48 - 4) / 40, atol=0.03)


def test_a_pass_over_features_reads_no_frames(sets, monkeypatch):
    monkeypatch.setattr("data_pipelines.records.dataset.Dataset.frames", None)
    views = ViewConfig(dataclasses.replace(CLIP, sampling="dense"), batch=4, reader=READER)
    settings = config(sets, parts={"long": Sequences("long", length=8, width=3)})
    stream = ViewPass(f"{sets}/f", "train", views, parts=of_pass(settings, views, ("long",)))
    batches = list(stream)
    stream.close()
    assert not any("video" in batch for batch in batches)
    rows = np.concatenate([batch["features/features"][batch["valid"]] for batch in batches])
    assert (rows[:, 0] == 1).all()  # from the first row on


def test_a_pass_says_what_it_cannot_have(sets):
    views = ViewConfig(dataclasses.replace(CLIP, sampling="dense"))
    for name, message in (("audio", "switched off in config.data"), ("segmnts", "known: audio")):
        with pytest.raises(ValueError, match=message):
            of_pass(config(sets), views, (name,))
