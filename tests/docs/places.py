"""The folders that pages take for granted: what a reader has before typing their commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2

from tests.conftest import Run
from tests.data_pipelines.ingest.audio_files import beep, make_audio_file
from tests.data_pipelines.ingest.clips import make_video, picture
from tests.docs.pages import FENCE, ROOT

INTERNVID = {
    "YoutubeID": "abc",
    "Start_timestamp": "00:00:00.500",
    "End_timestamp": "00:00:01.500",
    "Caption": "a dog's ball",
    "Aesthetic_Score": 4.5,
    "UMT_Score": 0.41,
}
TALK = {"id": "talk", "turns": [{"role": "user", "text": "What is poured?"}]}
EVENTS = {
    "path": "run/0.mp4",
    "segments": [{"start": 0.5, "end": 1.5, "label": "pour", "caption": "pours tea"}],
    "boxes": [{"time": 1, "y1": 0.1, "x1": 0.2, "y2": 0.9, "x2": 0.6, "labels": ["sit"]}],
}


def blocks(language: str, page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [body for found, body in FENCE.findall(text) if found == language]


def thirteen_videos(folder: Path, world: Path) -> None:
    """`videos/`: a stranger's first folder, one sub-folder per class."""
    rows = map(json.loads, (world / "annotations.jsonl").read_text().splitlines())
    for row, _ in zip(rows, range(13), strict=False):
        into = folder / "videos" / row["label"]
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy(world / row["path"], into)


def actions(folder: Path, world: Path) -> None:
    """`actions9/`: a labelled set with splits in a table, in small."""
    rows = [json.loads(row) for row in (world / "annotations.jsonl").read_text().splitlines()]
    (folder / "actions9").mkdir()
    table = ["path,split,label"]
    for row in [row for row in rows if row["split"] == "train"][:24] + rows[-8:]:
        shutil.copy(world / row["path"], folder / "actions9")
        table.append(f"{Path(row['path']).name},{row['split']},{row['label']}")
    (folder / "actions9/labels.csv").write_text("\n".join(table) + "\n")


def clips_and_classes(folder: Path, world: Path) -> Path:
    """`clips/` without labels, and `classes.txt`; the former."""
    (folder / "clips").mkdir()
    for video in sorted(world.rglob("*.mp4"))[:4]:
        shutil.copy(video, folder / "clips")
    (folder / "classes.txt").write_text("moves left\nmoves right\n")
    return folder / "clips"


def published_list(folder: Path, world: Path) -> None:
    """`published.csv`: the test clips of the world, as its authors would list them."""
    rows = [json.loads(row) for row in (world / "annotations.jsonl").read_text().splitlines()]
    listed = [f"{row['id']},{row['label']}" for row in rows if row["split"] == "test"]
    (folder / "published.csv").write_text("id,label\n" + "\n".join(listed) + "\n")


def sources_of_the_data_guide(folder: Path) -> None:
    """One of everything that can be ingested."""
    for name in ("run", "sit"):
        (folder / "videos" / name).mkdir(parents=True)
        for i in range(2):
            make_video(folder / "videos" / name / f"{i}.mp4", 20)
    for name in ("iv", "k400", "audio", "images", "ssv2/0001"):
        (folder / name).mkdir(parents=True)
    make_video(folder / "iv/abc.mp4", 20)
    make_video(folder / "audio/silent.mp4", 20)
    make_audio_file(folder / "audio/beep.mp4", beep(3.0, 16000), 16000)
    for i in range(1, 5):
        cv2.imwrite(str(folder / f"ssv2/0001/img_{i:05d}.jpg"), picture(i))
    cv2.imwrite(str(folder / "images/a.png"), picture(0))
    written: dict[str, str] = {
        "ssv2/train.txt": "0001 4 0\n",
        "k400/val.csv": "../videos/run/0.mp4 0\n../videos/sit/0.mp4 1\n",
        "clips.csv": blocks("csv", "data-ingest.md")[0],
        "captions.jsonl": blocks("json", "data-ingest.md")[0],
        "other.csv": "file,class\nvideos/run/0.mp4,run\nvideos/sit/0.mp4,sit\n",
        "internvid.jsonl": json.dumps(INTERNVID),
        "anno.json": json.dumps([{"video": "run/0.mp4", "caption": "someone runs"}]),
        "images.jsonl": json.dumps({"path": "a.png", "caption": "an image"}),
        "events.jsonl": json.dumps(EVENTS),
        "talk.jsonl": json.dumps(TALK),
        "all.jsonl": "".join(
            json.dumps({**INTERNVID, "YoutubeID": f"v{i // 3}", "UMT_Score": i / 300}) + "\n"
            for i in range(300)
        ),
    }
    for name, text in written.items():
        (folder / name).write_text(text)


def trained(command: Run, folder: Path, recipe: str, name: str, shards: Path, *more: str) -> None:
    """`runs/NAME`: a run of three steps."""
    done = command(
        "internvideo_jax.train",
        f"--config=configs/{recipe},smoke",
        f"--workdir={folder}/runs/{name}",
        f"--config.data.train={shards}",
        *more,
    )
    assert done.returncode == 0, done.stderr[-3000:]
