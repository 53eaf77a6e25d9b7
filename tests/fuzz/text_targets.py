"""What people write: tables, lists, class files, settings; and what a run says about itself."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from data_pipelines.clips import rand_augment
from data_pipelines.ingest import labels, sources, tables
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.stream import mixture
from data_pipelines.subset import rows
from data_pipelines.text import vocabulary
from internvideo_jax.weights.__main__ import exported_run

CSV = b'path,label,start,end,split\na.mp4,sit,0,1.5,train\n"b, c.mp4",stand,00:00:01,2,test\n'
JSONL = b'{"path": "a.mp4", "label": "sit", "captions": ["one", "two"], "x": 1.5}\n'
LIST = b"a.mp4 0\nb.mp4 1\nfolder/c.mp4 12\n"
FRAMES = b"folder/a 120 0\nfolder/b 64 1\n"
JSON = b'[{"video": "a.mp4", "caption": "one"}, {"video": "b.mp4", "caption": ["two", "three"]}]'
CLASSES = b"sit\nstand up\njump\n"
CLIPS = b'{"YoutubeID": "a", "Start_timestamp": "00:00:01.5", "Caption": "b", "UMT_Score": 0.4}\n'
ENCODER = {"width": 16, "depth": 1, "heads": 2, "hidden": 64}
MODEL = {
    "name": "videomae_classifier",
    "encoder": ENCODER,
    "classes": 3,
    "frames": 4,
    "resolution": 32,
}


def seeds() -> dict[str, list[bytes]]:
    metadata = {"config": {"model": MODEL, "optim": {"lr": 1e-3}}, "step": 1, "classes": ["a"]}
    return {
        "csv": [CSV],
        "jsonl": [JSONL],
        "json": [JSON],
        "list": [LIST, FRAMES],
        "classes": [CLASSES, b'{"sit": 0, "jump": 1}', b"id,name\n0,sit\n1,jump\n"],
        "clips": [CLIPS],
        "gz": [gzip.compress(CLIPS, mtime=0)],
        "vocabulary": [gzip.compress(b"#version\na b\n", mtime=0), b"#version\na b\n"],
        "mixture": [b"a=/data/x:0.5,b=gs://y/z:1/3;media=image", b"a=/x,b=/y"],
        "policy": [b"rand-m9-n2-mstd0.5-inc1", b"rand-m7-n4-mstd0.5-inc1"],
        "time": [b"00:01:02.5", b"12.25"],
        "metadata": [json.dumps(metadata).encode()],
    }


def targets(folder: Path) -> dict[str, Callable[[bytes], None]]:
    """The functions under test; `folder` is their scratch space."""
    (folder / "run/checkpoints/1/state").mkdir(parents=True, exist_ok=True)
    (folder / "run/checkpoints/1/meta").mkdir(exist_ok=True)
    for name in ("_METADATA", "manifest.ocdbt", "d"):  # of its arrays, which are not read here
        (folder / "run/checkpoints/1/state" / name).touch()

    def placed(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        return str(folder / name)

    def ingest(name: str, data: bytes) -> None:
        source, out = placed(name, data), str(folder / "out")
        sources.read(IngestOptions(source=source, out=out, frame_fps=12))

    def metadata(data: bytes) -> None:
        placed("run/checkpoints/1/meta/metadata", data)
        exported_run(folder / "run")

    def clips(name: str, data: bytes) -> None:
        for number, (row, _) in enumerate(rows.stored(placed(name, data))):
            rows.read(row, f"{name}:{number}", {})

    def text(data: bytes) -> str:
        return data.decode("utf-8", "surrogateescape")

    return {
        "csv": lambda data: ingest("a.csv", data),
        "jsonl": lambda data: ingest("a.jsonl", data),
        "json": lambda data: ingest("a.json", data),
        "list": lambda data: ingest("a.txt", data),
        "classes": lambda data: labels.read_classes(placed("classes", data)) and None,
        "clips": lambda data: clips("a.jsonl", data),
        "gz": lambda data: clips("a.jsonl.gz", data),
        "vocabulary": lambda data: (
            vocabulary.text(vocabulary.read(placed("v", data), "x"), "v", "x") and None
        ),
        "mixture": lambda data: mixture.parse(text(data)) and None,
        "policy": lambda data: rand_augment.parse_policy(text(data)) and None,
        "time": lambda data: tables.seconds("line 1", "start", text(data)) and None,
        "metadata": metadata,
    }
