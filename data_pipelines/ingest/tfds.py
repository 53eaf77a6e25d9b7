"""Prepared TFDS datasets, read in place: `--source tfds:NAME`.

Only the files TFDS leaves on disk are read: `dataset_info.json` and `features.json` describe
them, the examples are `tf.train.Example` messages in ArrayRecord or TFRecord files. The package
`tensorflow-datasets` itself is of no help here: without TensorFlow, version 4.9 can neither
construct its `Video` feature nor open TFRecord files (`as_data_source`).

Encoded frames (`Video`, `Sequence(Image)`) are taken as they are where a record can hold them.
"""

import functools
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import av
import numpy as np
from google.protobuf.message import DecodeError

from data_pipelines.ingest.address import Address
from data_pipelines.ingest.container import VideoError
from data_pipelines.ingest.decode import DecodedClip, DecodeOptions
from data_pipelines.ingest.frames import ImageEncoder, Span, StorableImage, assemble, image_of
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.path_template import fields
from data_pipelines.ingest.rows import Listing, Row, printable
from data_pipelines.records.index import CorruptRecordError
from data_pipelines.records.messages import SequenceExample
from data_pipelines.records.reader import RecordSource

FEATURES_FILE = "features.json"
PREFIX = "tfds:"

_COLUMNS = ("path", "label", "caption", "id")
_CAPTIONS = ("caption", "captions", "text")
_FILE = "dataset_info.json"
# Pixels of one packed clip: 300 frames of 1920x1080 are 1.9e9 bytes.
_MAX_CLIP_BYTES = 1 << 31
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True, slots=True)
class TFDSExample(Address):
    """One example as a clip.

    Attributes:
      directory: of the prepared dataset.
      split, index: which example.
      feature: the one with the frames.
      fps: their rate, which TFDS does not store.
    """

    SCHEME: ClassVar[str] = "tfds:?"

    directory: str
    split: str
    index: int
    feature: str
    fps: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared dataset: name, its files by split, and its features, nested names with `/`."""

    name: str
    splits: Mapping[str, tuple[str, ...]]
    features: Mapping[str, Mapping[str, Any]]
    array_record: bool


def read(options: IngestOptions) -> Listing:
    """All examples of all splits as rows; labels, captions and scalars become columns.

    Raises:
      FileNotFoundError: no such dataset is prepared.
      ValueError: it holds no video, or cannot be understood.
    """
    name = options.source.removeprefix(PREFIX)
    directory = find(name, options.root)
    prepared = open_prepared(directory)
    if options.frame_fps is None:
        raise ValueError(f"{options.source}: TFDS stores no frame rate; give it with --frame-fps")
    unknown = [ours for ours in options.columns if ours not in _COLUMNS]
    if unknown:
        raise ValueError(
            f"{options.source}: --columns names {unknown[0]!r}, expected {', '.join(_COLUMNS)}"
        )
    for ours, theirs in options.columns.items():
        if theirs not in prepared.features:
            raise ValueError(
                f"{options.source}: no feature {theirs!r} for --columns {ours}={theirs}; found "
                f"{', '.join(prepared.features)}"
            )
    frames = _choose(options, "path", prepared, is_video, "frames")
    if frames is None:
        raise ValueError(
            f"{options.source}: none of its features is a video; found "
            + ", ".join(f"{name} ({_kind(spec)})" for name, spec in prepared.features.items())
        )
    label = _choose(options, "label", prepared, _is_label, "labels")
    names = _label_names(directory, label) if label else ()
    caption = options.columns.get("caption") or next(
        (name for name in _CAPTIONS if name in prepared.features), None
    )
    rows = []
    for split in prepared.splits:
        source = _source(directory, split)
        for index in range(len(source)):
            values = _parse(source[index], f"{name}/{split} example {index}")
            where = f"{options.source} {split} example {index}"
            identity = values.get(options.columns.get("id", ""))
            rows.append(
                Row(
                    path=TFDSExample(directory, split, index, frames, options.frame_fps).address(),
                    name=f"{prepared.name}/{split}/{index}/{frames}",
                    id=_text(identity[0]) if identity else f"{prepared.name}/{split}/{index}",
                    split=split,
                    labels=_labels(where, values.get(label or ""), names),
                    captions=_captions(values.get(caption or "")),
                    extra=_extra(prepared, values, (frames, label, caption)),
                    where=where,
                )
            )
    note = f"read {name} from {directory}: frames from {frames!r}, labels from {label!r}"
    return Listing(rows, [f"{note}, captions from {caption!r}"], tuple(names))


def find(name: str, data_dir: str | None) -> str:
    """The directory of `NAME[/CONFIG][:VERSION]`, or of a path to a prepared dataset.

    Raises:
      FileNotFoundError: nothing is there; the message lists what is.
      ValueError: several configurations are, and none was named.
    """
    if os.path.isfile(os.path.join(name, _FILE)):
        return os.path.abspath(name)
    base = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    path, _, version = name.partition(":")
    root = os.path.join(os.path.abspath(os.path.expanduser(base)), path)
    folders = _folders(root)
    if not any(_VERSION.fullmatch(folder) for folder in folders):
        configs = [f for f in folders if any(map(_VERSION.fullmatch, _folders(f"{root}/{f}")))]
        if len(configs) > 1:
            raise ValueError(
                f"tfds:{name}: has several configurations; name one of "
                + ", ".join(f"tfds:{path}/{config}" for config in configs)
            )
        root = os.path.join(root, *configs)
        folders = _folders(root)
    versions = [
        folder
        for folder in folders
        if _VERSION.fullmatch(folder) and os.path.isfile(os.path.join(root, folder, _FILE))
    ]
    if version in ("", *versions) and versions:
        newest = max(versions, key=lambda text: tuple(map(int, text.split("."))))
        return os.path.join(root, version or newest)
    raise FileNotFoundError(
        f"tfds:{name}: is not prepared in {base} (versions there: {', '.join(versions) or 'none'})"
        f"; prepare it with 'tfds build {path}' from the packages tensorflow-datasets and "
        "tensorflow, or name its --root"
    )


@functools.lru_cache(maxsize=8)
def open_prepared(directory: str) -> Prepared:
    """Read the description of a prepared dataset; ValueError if it is not understood."""
    try:
        info = _json(directory, _FILE)
        top = _json(directory, FEATURES_FILE)
        kind = info.get("fileFormat", "tfrecord")
        splits = {
            split["name"]: _files(directory, info["name"], split, kind)
            for split in info["splits"]
            if any(int(length) for length in split["shardLengths"])
        }
        features = dict(_flatten("", top["featuresDict"]["features"]))
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise ValueError(
            f"{directory}: is not a dataset as TFDS 4.5 and later prepare it "
            f"({type(error).__name__}: {error})"
        ) from error
    if kind not in ("array_record", "tfrecord"):
        raise ValueError(
            f"{directory}: is stored as {kind}; only array_record and tfrecord can be read, "
            "prepare it again with file_format='array_record'"
        )
    return Prepared(info["name"], splits, features, kind == "array_record")


def load_example(example: TFDSExample, options: DecodeOptions, span: Span) -> DecodedClip:
    """The clip of an example; as `ingest.decode.decode_clip`."""
    images = _images(example)
    encoder = ImageEncoder(options)

    def load(index: int) -> bytes:
        return encoder.encode(_image(images[index]))

    return assemble(len(images), example.fps, load, encoder, options, span)


def measure(example: TFDSExample) -> tuple[int, int, int]:
    """(frames, height, width) of an example."""
    images = _images(example)
    if not len(images):
        raise VideoError("empty", "has no frames")
    encoder = ImageEncoder(DecodeOptions(short_side=0))
    encoder.encode(_image(images[0]))
    return len(images), encoder.height, encoder.width


def _image(value: bytes | np.ndarray) -> StorableImage:
    if isinstance(value, bytes):
        return image_of(value)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(value), format="rgb24")


def _images(example: TFDSExample) -> Sequence[bytes | np.ndarray]:
    """Encoded frames, or an array (T, H, W, 3)."""
    try:
        spec = open_prepared(example.directory).features[example.feature]
        data = _source(example.directory, example.split)[example.index]
        values = _parse(data, f"example {example.index}").get(example.feature, ())
        if _kind(spec) != "tensor":
            return values
        encoding = spec["tensor"].get("encoding", "none")
        if encoding == "none":
            flat = np.array(values, np.uint8)
        else:
            raw = b"".join(values)
            flat = np.frombuffer(_inflate(raw) if encoding == "zlib" else raw, np.uint8)
        return list(flat.reshape(-1, *_shape(spec["tensor"])[1:]))
    except (CorruptRecordError, ValueError, KeyError, OSError, zlib.error) as error:
        raise VideoError("open", f"cannot read the example: {error}") from error


def _inflate(data: bytes) -> bytes:
    """What zlib packed; zlib.error or ValueError for damage and for what is too large."""
    inflater = zlib.decompressobj()
    result = inflater.decompress(data, _MAX_CLIP_BYTES)
    if inflater.unconsumed_tail:
        raise ValueError(f"unpacks to more than {_MAX_CLIP_BYTES} bytes")
    if not inflater.eof:
        raise ValueError("its packed frames are cut short")
    return result


@functools.lru_cache(maxsize=8)
def _source(directory: str, split: str) -> Any:
    """The examples of a split as bytes, by number."""
    prepared = open_prepared(directory)
    files = list(prepared.splits[split])
    missing = [file for file in files if not os.path.exists(file)]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: is missing; prepare the dataset again")
    if prepared.array_record:
        import grain  # not before an ArrayRecord file is to be read: a second of start-up

        return grain.sources.ArrayRecordDataSource(files)
    return RecordSource(files)


def _parse(data: bytes, where: str) -> dict[str, Sequence[Any]]:
    """Feature -> values. An Example is what a SequenceExample calls its context."""
    message = SequenceExample()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"{where}: is not a tf.train.Example ({error})") from error
    result = {}
    for name, feature in message.context.feature.items():
        kind = feature.WhichOneof("kind")
        result[name] = getattr(feature, kind).value if kind else ()
    return result


def _flatten(prefix: str, features: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    result: list[tuple[str, Mapping[str, Any]]] = []
    for name, spec in sorted(features.items()):
        inner = spec.get("featuresDict") or spec.get("sequence", {}).get("feature", {}).get(
            "featuresDict"
        )
        if inner:
            result += _flatten(f"{prefix}{name}/", inner["features"])
        else:
            result.append((prefix + name, spec))
    return result


def is_video(spec: Mapping[str, Any]) -> bool:
    """Whether a feature holds the frames of a clip."""
    if "tensor" in spec:
        shape = _shape(spec["tensor"])
        rest = shape[1:]
        return len(shape) == 4 and rest[-1] == 3 and min(rest) > 0 and _is_bytes(spec["tensor"])
    return "video" in spec or "image" in spec.get("sequence", {}).get("feature", {})


def _is_bytes(tensor: Mapping[str, Any]) -> bool:
    return tensor["dtype"] == "uint8"


def _is_label(spec: Mapping[str, Any]) -> bool:
    return "classLabel" in spec or "classLabel" in spec.get("sequence", {}).get("feature", {})


def _kind(spec: Mapping[str, Any]) -> str:
    return next((key for key in spec if key != "pythonClassName"), "unknown")


def _shape(tensor: Mapping[str, Any]) -> list[int]:
    return [int(size) for size in tensor.get("shape", {}).get("dimensions", ())]


def _choose(
    options: IngestOptions,
    ours: str,
    prepared: Prepared,
    fits: Callable[[Mapping[str, Any]], bool],
    what: str,
) -> str | None:
    """The feature of a kind: the one named, or the only one there is."""
    if ours in options.columns:
        name = options.columns[ours]
        if not fits(prepared.features[name]):
            kind = _kind(prepared.features[name])
            raise ValueError(f"{options.source}: feature {name!r} ({kind}) holds no {what}")
        return name
    found = [name for name, spec in prepared.features.items() if fits(spec)]
    if len(found) > 1 and ours in found:
        return ours
    if len(found) > 1:
        raise ValueError(
            f"{options.source}: several features hold {what}: {', '.join(found)}; choose with "
            f"--columns {ours}={found[0]}"
        )
    return found[0] if found else None


def _label_names(directory: str, feature: str) -> tuple[str, ...]:
    path = os.path.join(directory, f"{feature.replace('/', '-')}.labels.txt")
    try:
        with open(path, encoding="utf-8") as file:
            return tuple(printable(line.strip()) for line in file if line.strip())
    except FileNotFoundError:
        return ()


def _labels(where: str, values: Any, names: Sequence[str]) -> tuple[str, ...]:
    indices = [int(value) for value in values or () if value >= 0]  # -1 marks hidden test labels
    if names and any(index >= len(names) for index in indices):
        raise ValueError(f"{where}: label {max(indices)}, but there are {len(names)} class names")
    return tuple(names[index] if names else str(index) for index in indices)


def _captions(values: Any) -> tuple[str, ...]:
    return tuple(text for text in map(_text, values or ()) if text)


def _extra(
    prepared: Prepared, values: Mapping[str, Sequence[Any]], used: Sequence[str | None]
) -> dict[str, int | float | str]:
    """Single values of the other features; sequences and images are left behind."""
    result: dict[str, int | float | str] = {}
    for name, spec in prepared.features.items():
        value = values.get(name, ())
        single = _kind(spec) in ("tensor", "text", "classLabel", "scalar") and len(value) == 1
        if name in used or not single or (_kind(spec) == "tensor" and _shape(spec["tensor"])):
            continue
        one = value[0]
        if isinstance(one, float) and not math.isfinite(one):
            continue
        result[name] = _text(one) if isinstance(one, bytes) else one
    return result


def _text(value: Any) -> str:
    return (
        value.decode("utf-8", "backslashreplace").strip()
        if isinstance(value, bytes)
        else str(value)
    )


def _files(
    directory: str, name: str, split: Mapping[str, Any], file_format: str
) -> tuple[str, ...]:
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    fields("filepathTemplate", template, "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    count = len(split["shardLengths"])
    return tuple(
        os.path.join(
            directory,
            template.format(
                DATASET=name,
                SPLIT=split["name"],
                FILEFORMAT=file_format,
                SHARD_INDEX=f"{shard:05d}",
                NUM_SHARDS=f"{count:05d}",
                SHARD_X_OF_Y=f"{shard:05d}-of-{count:05d}",
            ),
        )
        for shard in range(count)
    )


def _folders(path: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _json(directory: str, name: str) -> Any:
    with open(os.path.join(directory, name), encoding="utf-8") as file:
        return json.load(file)
