"""The built-in world: small labelled videos with exact ground truth, for machines without Kinetics.

    ivj synthetic --out videos/ --train 2000 --test 400

renders H.264 files, `annotations.jsonl` and `labels.csv`, ready for the ingest. Every clip is a
pure function of (seed, index).

Two to four equal bright shapes act together on a darker background. The ten actions cannot be told
from any single frame, by construction: positions are uniform on a torus (what leaves on one side
comes in on the other), size and phase are uniform too, at every time and for every action. Only
change over time tells them apart, so a model that ignores time stays at chance.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from data_pipelines.commands.arguments import Parser
from data_pipelines.records.outputs import local_argument

ACTIONS = (
    "moves left",
    "moves right",
    "moves up",
    "moves down",
    "grows",
    "shrinks",
    "circles clockwise",
    "circles counterclockwise",
    "stands still",
    "shakes",
)
# Shape -> its extent left, up, right, down of the centre, in radii.
SHAPES = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.85, 0.85, 0.85, 0.85),
    "triangle": (0.866, 0.5, 0.866, 1.0),
    "ring": (1.0, 1.0, 1.0, 1.0),
    "cross": (1.0, 1.0, 1.0, 1.0),
}
COLOURS = {
    "red": (235, 60, 50),
    "green": (70, 220, 80),
    "blue": (70, 110, 245),
    "yellow": (240, 220, 60),
    "white": (245, 245, 245),
}


@dataclasses.dataclass(frozen=True)
class Level:
    """How hard the images are."""

    background: float  # brightness of the background, share of full scale
    detail: int  # cells of the background noise across the frame; more is finer
    texture: float  # contrast of stripes on the shapes
    distractors: int  # still shapes beside the acting ones


COUNTS = {2: "two", 3: "three", 4: "four"}


# On level 3 a small model stays near chance for thousands of labels; 1 is the demo's.
LEVELS = {
    1: Level(background=0.4, detail=3, texture=0.0, distractors=0),
    2: Level(background=0.6, detail=5, texture=0.3, distractors=1),
    3: Level(background=1.0, detail=10, texture=0.6, distractors=3),
}


@dataclasses.dataclass(frozen=True)
class RenderedClip:
    """One rendered clip with everything that is true about it."""

    video: np.ndarray  # (T, H, W, 3) uint8
    action: int  # index into ACTIONS
    count: int
    shape: str
    colour: str
    # Per frame the visible parts of the shapes as (x0, y0, x1, y1) pixels; a shape that wraps
    # around an edge has several.
    boxes: tuple[tuple[tuple[int, int, int, int], ...], ...]

    @property
    def caption(self) -> str:
        """`three red squares move left`"""
        plural = "crosses" if self.shape == "cross" else f"{self.shape}s"
        first, *rest = ACTIONS[self.action].split(" ")
        verb = " ".join([first.removesuffix("s"), *rest])
        return f"{COUNTS[self.count]} {self.colour} {plural} {verb}"


@dataclasses.dataclass(frozen=True)
class _Look:
    """Appearance of a shape."""

    shape: str
    colour: str
    tilt: float  # direction of shading and stripes, radians
    stripe: float  # stripes per pixel

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Look:
        shape = list(SHAPES)[rng.integers(len(SHAPES))]
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        return cls(shape, colour, rng.uniform(0, 2 * math.pi), rng.uniform(0.25, 0.5))


@dataclasses.dataclass(frozen=True)
class World:
    """An endless list of clips."""

    size: int = 64  # pixels, height and width
    frames: int = 20
    level: int = 1
    seed: int = 0

    def clip(self, index: int) -> RenderedClip:
        """Clip number `index`; actions take turns, so every run of ten is balanced."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        level = LEVELS[self.level]
        video = np.repeat(self._background(rng, level)[None], self.frames, axis=0)
        for _ in range(level.distractors):
            still = np.zeros((self.frames, 2))
            radii = np.full(self.frames, self._radius(rng.uniform()))
            self._draw(video, still + rng.uniform(0, self.size, 2), radii, _Look.draw(rng), level)
        action = index % len(ACTIONS)
        path, radii = self._trajectory(action, rng)
        look = _Look.draw(rng)
        starts = rng.uniform(0, self.size, (rng.choice(list(COUNTS)), 2))
        for start in starts:
            self._draw(video, path + start, radii, look, level)
        boxes = tuple(
            tuple(
                part
                for start in starts
                for part in self._visible_parts(look.shape, path[t] + start, radii[t])
            )
            for t in range(self.frames)
        )
        pixels = np.rint(video).astype(np.uint8)
        return RenderedClip(pixels, action, len(starts), look.shape, look.colour, boxes)

    def _radius(self, share: float | np.ndarray) -> float | np.ndarray:
        return self.size * (0.14 + 0.14 * share)

    def _trajectory(self, action: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Displacement (T, 2) as (x, y) in pixels, and radii (T,).

        Phase and size share are uniform at any time whatever the action, and so are the starts that
        are added to the displacement; this keeps single frames uninformative.
        """
        time = np.arange(self.frames)
        phase, share = rng.uniform(), rng.uniform()
        speed = self.size * rng.uniform(0.02, 0.04)  # pixels per frame
        turn = rng.uniform(0.05, 0.08)  # turns per frame
        path = np.zeros((self.frames, 2))
        shares = np.full(self.frames, share)
        name = ACTIONS[action]
        direction = {
            "moves left": (-1, 0),
            "moves right": (1, 0),
            "moves up": (0, -1),
            "moves down": (0, 1),
        }.get(name)
        if direction is not None:
            path = speed * time[:, None] * np.array(direction)
        elif name in ("grows", "shrinks"):
            # A saw tooth: at any time the size is uniform, only its direction differs.
            sign = 1 if name == "grows" else -1
            shares = (share + sign * 0.6 * turn * time) % 1.0
        elif name.startswith("circles"):
            # y points down, so increasing angles turn clockwise.
            sign = 1 if name.endswith(" clockwise") else -1
            angle = 2 * math.pi * (phase + sign * turn * time)
            radius = self.size * 0.16
            path = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        elif name == "shakes":
            swing = self.size * 0.08 * np.sin(2 * math.pi * (phase + 2.5 * turn * time))
            path = np.stack([swing, np.zeros_like(swing)], axis=1)
        return path, np.asarray(self._radius(shares))

    def _background(self, rng: np.random.Generator, level: Level) -> np.ndarray:
        """(H, W, 3) float: smooth coloured noise, predictable from its surroundings."""
        cells = rng.uniform(0.15, 1.0, (level.detail, level.detail, 3)).astype(np.float32)
        smooth = cv2.resize(cells, (self.size, self.size), interpolation=cv2.INTER_CUBIC)
        return np.clip(smooth, 0.05, 1.0) * 255.0 * level.background

    def _draw(
        self, video: np.ndarray, centres: np.ndarray, radii: np.ndarray, look: _Look, level: Level
    ) -> None:
        """Draws one shape into all frames of (T, H, W, 3), with soft edges."""
        grid = np.arange(self.size) + 0.5
        # Nearest copy on the torus.
        dx = (grid[None, :] - centres[:, :1] + self.size / 2) % self.size - self.size / 2
        dy = (grid[None, :] - centres[:, 1:] + self.size / 2) % self.size - self.size / 2
        x, y, r = (
            part.astype(np.float32)
            for part in (dx[:, None, :], dy[:, :, None], radii[:, None, None])
        )
        cover = np.clip(0.5 - _distance(look.shape, x, y, r), 0.0, 1.0)
        painted = np.nonzero(cover)
        along = (x * math.cos(look.tilt) + y * math.sin(look.tilt))[painted]
        # Shading that moves with the shape: a flat inside would be noise once it is normalised.
        light = 0.75 + 0.25 * np.clip(along / np.broadcast_to(r, cover.shape)[painted], -1.0, 1.0)
        if level.texture:
            stripes = 0.5 * (1.0 + np.sin(along * (2 * math.pi * look.stripe)))
            light = light * (1.0 - level.texture * stripes)
        paint = np.array(COLOURS[look.colour], np.float32) * light[:, None]
        video[painted] += (paint - video[painted]) * cover[painted][:, None]

    def _visible_parts(
        self, shape: str, centre: np.ndarray, radius: float
    ) -> tuple[tuple[int, int, int, int], ...]:
        left, up, right, down = (float(radius) * side for side in SHAPES[shape])
        parts = []
        x, y = (float(value) for value in centre % self.size)
        for shift_y in (-self.size, 0, self.size):
            for shift_x in (-self.size, 0, self.size):
                cx, cy = x + shift_x, y + shift_y
                corners = (cx - left, cy - up, cx + right, cy + down)
                x0, y0, x1, y1 = (min(max(round(c), 0), self.size) for c in corners)
                if x1 > x0 and y1 > y0:
                    parts.append((x0, y0, x1, y1))
        return tuple(parts)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Signed distance in pixels to the outline of a shape of radius r, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72 * r) - 0.28 * r
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85 * r
    if shape == "triangle":
        return np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.5 * r
    arm = np.minimum(np.maximum(np.abs(x), 3 * np.abs(y)), np.maximum(3 * np.abs(x), np.abs(y)))
    return (arm - r) * 0.5


def encode_mp4(path: Path, video: np.ndarray, fps: int) -> None:
    """Writes (T, H, W, 3) uint8 as H.264; equal clips give equal files."""
    # One thread, and no macroblock tree: at 32 pixels its result depends on what the memory held
    # before (seen in one file of a few hundred).
    options = {"crf": "16", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], "yuv420p"
        for picture in video:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _boxes_in_time(clip: RenderedClip, size: int, fps: int) -> list[dict[str, float]]:
    """The boxes as the ingest takes them: seconds, and edges as shares of the image."""
    return [
        {
            "time": round(t / fps, 6),
            "y1": y0 / size,
            "x1": x0 / size,
            "y2": y1 / size,
            "x2": x1 / size,
        }
        for t, boxes in enumerate(clip.boxes)
        for x0, y0, x1, y1 in boxes
    ]


def write_world(world: World, out: Path, splits: dict[str, int], fps: int = 12) -> int:
    """Renders `splits` (name -> number of clips) below `out`; returns the number of files.

    `annotations.jsonl` has path, id, split, label, caption, shape, colour and boxes per clip;
    `labels.csv` the same without boxes. Clips of different splits never share an index.
    """
    rows, index = [], 0
    total = sum(splits.values())
    interval = 0.1 if sys.stderr.isatty() else 10.0  # seconds between lines in a log
    with tqdm(total=total, unit="clip", desc=f"render to {out}", mininterval=interval) as bar:
        for split, count in splits.items():
            (out / split).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                clip = world.clip(index)
                name = f"{split}/{index:06d}.mp4"
                encode_mp4(out / name, clip.video, fps)
                rows.append(
                    {
                        "path": name,
                        "id": f"world-{world.seed}-{index:06d}",
                        "split": split,
                        "label": ACTIONS[clip.action],
                        "caption": clip.caption,
                        "count": clip.count,
                        "shape": clip.shape,
                        "colour": clip.colour,
                        "boxes": _boxes_in_time(clip, world.size, fps),
                    }
                )
                index += 1
                bar.update()
    with open(out / "annotations.jsonl", "w", encoding="utf-8") as lines:
        for row in rows:
            lines.write(json.dumps(row) + "\n")
    with open(out / "labels.csv", "w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(
            table, [key for key in rows[0] if key != "boxes"], extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    return total


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that writes the world's videos; arguments as in `--help`."""
    parser = Parser(
        prog="ivj synthetic",
        description="Render the built-in video world: MP4 files with labels, captions and boxes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=local_argument, required=True, help="directory to fill")
    parser.add_argument("--train", type=int, default=2000, help="training clips")
    parser.add_argument("--test", type=int, default=400, help="test clips")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels, even")
    parser.add_argument("--frames", type=int, default=20, help="frames per clip")
    parser.add_argument("--fps", type=int, default=12, help="frames per second of the files")
    parser.add_argument("--level", type=int, default=1, choices=sorted(LEVELS), help="difficulty")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.size % 2 or min(options.size, options.frames, options.train) < 1:
        parser.error("--size must be even, and --size, --frames, --train positive")
    world = World(options.size, options.frames, options.level, options.seed)
    splits = {"train": options.train, **({"test": options.test} if options.test else {})}
    count = write_world(world, options.out, splits, options.fps)
    print(
        f"{count} clips of {len(ACTIONS)} actions in {options.out}; next:\n"
        f"  ivj ingest --source {options.out}/annotations.jsonl "
        "--out shards --flip-changes-label"
    )


if __name__ == "__main__":
    main()
