"""Which pixels are stored: of anamorphic files, and without loss; and all that reads them."""

import dataclasses
import json
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import simplejpeg

from data_pipelines.config import AugmentConfig, ClipConfig, DataConfig, ReaderConfig, ViewConfig
from data_pipelines.ingest import plan
from data_pipelines.ingest.__main__ import main
from data_pipelines.ingest.adopt import adopt
from data_pipelines.ingest.decode import DecodeOptions
from data_pipelines.ingest.frames import FrameFolder
from data_pipelines.ingest.media import load_clip
from data_pipelines.records import encoded, manifest, schema
from data_pipelines.records.dataset import open_dataset
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from data_pipelines.stream.views import FixedViews
from data_pipelines.tools import bench, inspect
from data_pipelines.tools.verify import verify
from tests.data_pipelines.ingest.clips import make_video, picture
from tests.data_pipelines.ingest.decoding import clip_of, needs_x264

KINETICS = Fraction(1024, 765)
READER = ReaderConfig(threads=1, buffer=1)


def ingest(source, out, *extra: str) -> int:
    arguments = ("--source", str(source), "--out", str(out), "--workers", "0", "--quiet")
    return main([*arguments, "--name", "set", "--shards", "1", *extra])


def decoded(path) -> list[np.ndarray]:
    """As decord and the reference's loaders have the frames."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("name", "size", "aspect", "codec", "displayed"),
    [
        ("k.mp4", (340, 256), KINETICS, "mpeg4", (456, 256)),
        ("pal.avi", (720, 576), Fraction(16, 15), "mpeg4", (342, 256)),
        ("wide.mp4", (720, 576), Fraction(64, 45), "mpeg4", (456, 256)),
        ("k.mkv", (340, 256), KINETICS, "mpeg2video", (456, 256)),
        ("square.mp4", (64, 48), Fraction(1), "mpeg4", (64, 48)),
        ("unknown.mp4", (64, 48), None, "mpeg4", (64, 48)),
    ],
)
def test_pixel_aspect(tmp_path, name, size, aspect, codec, displayed):
    path = make_video(
        tmp_path / name, 2, height=size[1], width=size[0], pixel_aspect=aspect, codec=codec, fps=25
    )
    shrunk = (320, 256) if size == (720, 576) else size
    for pixels, expected in (("stored", shrunk), ("display", displayed)):
        clip = clip_of(path, pixels=pixels)
        assert (clip.width, clip.height) == expected
    assert DecodeOptions().pixels == "stored"


@pytest.mark.parametrize(
    ("pixels", "expected"), [("stored", (64, 96)), ("display", (64, 144))], ids=str
)
def test_pixel_aspect_of_a_turned_video(tmp_path, pixels, expected):
    """The pixels are stretched along the lines of the file, and then turned."""
    path = make_video(
        tmp_path / "r.mp4",
        2,
        height=64,
        width=96,
        pixel_aspect=Fraction(3, 2),
        rotation=(90, False, False),
    )
    clip = clip_of(path, pixels=pixels, short_side=0)
    assert (clip.width, clip.height) == expected


@needs_x264
@pytest.mark.parametrize("name", ["bitstream.ts", "bitstream.mkv"])
def test_pixel_aspect_in_the_bitstream(tmp_path, name):
    path = make_video(
        tmp_path / name, 2, height=48, width=64, pixel_aspect=Fraction(2), codec="libx264"
    )
    assert clip_of(path).width == 64 and clip_of(path, pixels="display").width == 128


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for label in ("run", "sit"):
        (root / label).mkdir()
        for i in range(2):
            path = root / label / f"{i}.mp4"
            make_video(path, 8, height=46, width=66 + 2 * i, pixel_aspect=KINETICS)
    return root


@pytest.fixture(scope="module")
def exact(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("exact")
    assert ingest(videos, out, "--storage", "png") == 0
    return out


def test_the_model_sees_the_decoded_pixels(videos, exact):
    dataset = open_dataset(str(exact), "train")
    wanted = np.array([1, 5, 5])
    for index in range(len(dataset)):
        record = dataset.load(index)
        frames = decoded(videos / record.media_id)
        found = dataset.frames(index, record, wanted)
        assert all(np.array_equal(a, frames[i]) for a, i in zip(found, wanted, strict=True))
    assert dataset.source.bytes_read < 0.8 * sum(p.stat().st_size for p in exact.glob("*.tfrecord"))


def test_streams_and_passes_read_png(videos, exact):
    clip = ClipConfig(frames=4, stride=2, resolution=32)
    config = DataConfig(
        train=str(exact),
        clip=clip,
        global_batch=4,
        crop="squash",
        flip="off",
        augment=AugmentConfig(resize="bilinear"),
        reader=READER,
    )
    stream = TrainStream(config)
    batch = next(stream)
    stream.close()
    whole = {
        i: decoded(videos / stream.sources[0].dataset.load(i).media_id)
        for i in range(len(stream.sources[0].dataset))
    }
    for row, index in zip(batch["video"], batch["index"], strict=True):
        resized = [cv2.resize(frame, (32, 32)) for frame in whole[int(index)]]
        assert all(any(np.array_equal(frame, one) for one in resized) for frame in row)
    dense = dataclasses.replace(clip, sampling="dense")
    shown = list(ViewPass(str(exact), "train", ViewConfig(dense, 1, 1, batch=4, reader=READER)))
    assert sum(step["valid"].sum() for step in shown) == len(whole)
    fixed = FixedViews(dataclasses.replace(config, fixed_views=1))
    out = np.empty((4, 32, 32, 3), np.uint8)
    fixed.read(0, 0, out)
    resized = [cv2.resize(frame, (32, 32)) for frame in whole[0]]
    assert all(any(np.array_equal(frame, one) for one in resized) for frame in out)


def test_tools_read_png(exact, tmp_path):
    assert verify(str(exact), 0, quiet=True) == ([], 4, 32)
    config = DataConfig(
        train=str(exact), clip=ClipConfig(frames=4, resolution=32), global_batch=2, reader=READER
    )
    assert "pixels stored, frames png" in "\n".join(inspect.summary(config, 2))
    assert len(inspect.train_page(config, 0, 2).rows) == 2
    assert bench.measure(config, 0.01).stages["decode"] > 0


def test_the_version_says_that_png_is_inside(videos, exact, tmp_path):
    found, source = manifest.open_split(exact, "train")
    assert found.schema_version == schema.NEWEST_VERSION == 2
    assert found.image_options() == {"pixels": "stored", "storage": "png"}
    record = schema.decode(source[0])
    assert all(map(encoded.is_png, record.frames)) and schema.version_of(record.frames) == 2
    # JPEG stays what it was, so that earlier programs read it.
    assert ingest(videos, tmp_path / "jpeg") == 0
    found, source = manifest.open_split(tmp_path / "jpeg", "train")
    assert found.schema_version == schema.version_of(schema.decode(source[0]).frames) == 1
    assert json.loads((tmp_path / "jpeg" / "plan.json").read_text())["schema_version"] == 1


def test_damaged_png_is_named(exact):
    dataset = open_dataset(str(exact), "train")
    record = dataset.load(0)
    broken = dataclasses.replace(record, frames=[record.frames[0][:-40]])
    with pytest.raises(ValueError, match="frame 0 is not a readable JPEG or PNG .damaged PNG"):
        dataset.frames(0, broken, np.array([0]))


def test_adopted_shards_may_hold_png(exact, tmp_path):
    (tmp_path / "set-train-00000-of-00001").write_bytes(
        (exact / "set-train-00000-of-00001.tfrecord").read_bytes()
    )
    found = adopt(tmp_path, {"train": "set-*"}, name="theirs")
    assert found.schema_version == 2
    assert found.image_options() == {"pixels": "unknown", "storage": "unknown"}
    assert len(open_dataset(str(tmp_path), "train").frames(0, *load(tmp_path), np.arange(2))) == 2


def load(directory) -> tuple[schema.Record]:
    return (open_dataset(str(directory), "train").load(0),)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_frame_folders_without_loss(tmp_path, suffix):
    """What is JPEG already stays so; other images keep their pixels, odd sizes included."""
    images = [picture(i, 47, 65) for i in range(3)]
    for i, image in enumerate(images):
        if suffix == "jpg":
            data = simplejpeg.encode_jpeg(image[:46, :64].copy(), 80, "RGB", "420")
            (tmp_path / f"{i}.jpg").write_bytes(data)
        else:
            cv2.imwrite(str(tmp_path / f"{i}.png"), image[..., ::-1])
    source = FrameFolder(str(tmp_path), f"{{}}.{suffix}", 0, 3, 10.0)
    clip = load_clip(source.address(), DecodeOptions(storage="png"))
    if suffix == "jpg":
        assert clip.frames == [(tmp_path / f"{i}.jpg").read_bytes() for i in range(3)]
    else:
        assert all(
            np.array_equal(encoded.decode(a), b) for a, b in zip(clip.frames, images, strict=True)
        )
        assert (clip.height, clip.width) == (47, 65)


def test_images_without_loss(tmp_path):
    image = picture(0, 33, 41)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    clip = clip_of(tmp_path / "a.png", media="image", storage="png", min_frames=1)
    assert np.array_equal(encoded.decode(clip.frames[0]), image)


def test_an_ingest_goes_on_only_as_it_began(videos, tmp_path, capsys):
    out = tmp_path / "out"
    assert ingest(videos, out, "--pixels", "display") == 0
    shards = {path.name: path.read_bytes() for path in out.glob("*.tfrecord*")}
    assert ingest(videos, out) == 2
    assert "--pixels: 'display' then, 'stored' now" in capsys.readouterr().err
    assert ingest(videos, out, "--pixels", "display", "--storage", "png") == 2
    assert "--storage: 'jpeg' then, 'png' now" in capsys.readouterr().err
    # A directory from before these options, which displayed.
    old = json.loads((out / plan.FILE_NAME).read_text())
    for name in manifest.EARLIER_OPTIONS:
        del old["options"][name]
    (out / plan.FILE_NAME).write_text(json.dumps(old, indent=1, sort_keys=True) + "\n")
    done = next(out.glob("*.done"))
    values = json.loads(done.read_text())
    values["plan"] = plan._read(out / plan.FILE_NAME).digest()
    done.write_text(json.dumps(values))
    assert ingest(videos, out) == 2
    assert "--pixels: 'display' then, 'stored' now" in capsys.readouterr().err
    assert ingest(videos, out, "--pixels", "display") == 0
    assert "1 shards were complete from an earlier run" in capsys.readouterr().out
    assert shards.items() - {(done.name, shards[done.name])} <= {
        (path.name, path.read_bytes()) for path in out.glob("*.tfrecord*")
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"pixels": "display", "storage": "jpeg"}),
        ({"short_side": 256, "quality": 90}, {"pixels": "display", "storage": "jpeg"}),
        ({"pixels": "stored", "storage": "png"}, {"pixels": "stored", "storage": "png"}),
        ({"adopted": {"train": "*"}}, {"pixels": "unknown", "storage": "unknown"}),
    ],
)
def test_what_a_manifest_says_of_its_pixels(options, expected):
    found = manifest.Manifest("d", "n", 1, (), False, options, {})
    assert found.image_options() == expected
