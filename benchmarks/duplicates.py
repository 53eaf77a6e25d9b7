"""How many copies does the audit find, and how often does it take two clips for one?

    python benchmarks/duplicates.py --source=actions9/labels.csv --out=duplicates_out

Clips of a source (or of the built-in world: --source=world) are written anew as other people's sets
have them: compressed hard, at half the size, mirrored, squeezed, brighter, cut in time, at half
the frame rate. Each kind becomes a set of its own, and all of them are compared with the originals
by what `ivj data audit` runs. A copy counts as found where its original is among its pairs; every
other pair is a false one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from data_pipelines.audit import compare
from data_pipelines.audit.options import THRESHOLD, AuditOptions
from data_pipelines.audit.run import Audit, Side, audit
from data_pipelines.ingest import sources
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.synthetic import World, encode_mp4

WORLD = 60  # clips of the built-in world
Frames = list[np.ndarray]


def resized(frame: np.ndarray, width: float, height: float) -> np.ndarray:
    """At these shares of its sides."""
    return cv2.resize(frame, None, fx=width, fy=height, interpolation=cv2.INTER_AREA)


# Kind -> what becomes of the frames, of the rate, and how hard they are compressed.
KINDS: dict[str, tuple[Callable[[Frames], Frames], float, int]] = {
    "compressed": (lambda frames: frames, 1, 34),
    "half size": (lambda frames: [resized(frame, 0.5, 0.5) for frame in frames], 1, 23),
    "mirrored": (lambda frames: [frame[:, ::-1] for frame in frames], 1, 23),
    "squeezed": (lambda frames: [resized(frame, 0.5, 1.0) for frame in frames], 1, 23),
    "brighter": (
        lambda frames: [np.clip(frame * 0.8 + 50.0, 0, 255).astype(np.uint8) for frame in frames],
        1,
        23,
    ),
    "middle 60 %": (lambda frames: frames[len(frames) // 5 : -len(frames) // 5], 1, 23),
    "half rate": (lambda frames: frames[::2], 0.5, 23),
}


def frames_of(path: str) -> tuple[Frames, float]:
    """RGB frames of a file, and its rate."""
    with av.open(path) as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        return frames, float(stream.average_rate or 25)


def write(path: Path, frames: Frames, rate: float, crf: int) -> None:
    """An H.264 file; sides become even."""
    height, width = (side - side % 2 for side in frames[0].shape[:2])
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=round(rate), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in frames:
            cut = np.ascontiguousarray(frame[:height, :width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
        file.mux(stream.encode())


def originals(source: str, out: Path, most: int) -> list[tuple[str, Path]]:
    """(name, file) of the clips that are copied."""
    if source == "world":
        folder = out / "world"
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        world = World(frames=24)
        for number in range(WORLD):
            path = folder / f"{number:04d}.mp4"
            if not path.exists():
                encode_mp4(path, world.clip(number).video, 12)
            found.append((path.stem, path))
        return found
    rows = sources.read(IngestOptions(source=source, out=str(out / "none"))).rows
    chosen = rows[:: max(1, len(rows) // most)][:most]
    return [(f"{number:04d}", Path(row.path)) for number, row in enumerate(chosen)]


def make(folder: Path, clips: Sequence[tuple[str, Path]], kind: str) -> str:
    """Shards of one kind of copies; "original" as they are."""
    shards = folder / kind.replace(" ", "_").replace("%", "")
    if (shards / "manifest.json").exists():
        return str(shards)
    videos = folder / f"{shards.name}_videos"
    videos.mkdir(parents=True, exist_ok=True)
    for name, path in clips:
        frames, rate = frames_of(str(path))
        change, share, crf = KINDS.get(kind, (lambda each: each, 1, 12))
        write(videos / f"{name}.mp4", change(frames), rate * share, crf)
    ingest(IngestOptions(source=str(videos), out=str(shards), short_side=0, workers=0), quiet=True)
    return str(shards)


def distances(result: Audit) -> tuple[np.ndarray, np.ndarray]:
    """(N,) of each copy to its original, and (N, N - 1) to all others, in the better direction."""
    one, other = result.sides
    count = len(other.prints)
    found = np.full((count, len(one.prints)), np.inf)
    names = {one.prints.id_of(record): record for record in range(len(one.prints))}
    for copy in range(count):
        second, period = other.prints.of(copy)
        for record in range(len(one.prints)):
            first, own = one.prints.of(record)
            for mirrored in (False, True):
                match = compare.match(first, second, own, period, mirrored)
                found[copy, record] = min(found[copy, record], match.distance)
    right = np.array([names[other.prints.id_of(copy)] for copy in range(count)])
    same = found[np.arange(count), right]
    found[np.arange(count), right] = np.inf
    return same, found


def name_of(side: Side, record: int) -> str:
    """Of the clip, the same in all sets."""
    return Path(side.prints.id_of(record)).stem


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="list or folder of videos, or `world`")
    parser.add_argument("--out", type=Path, default=Path("duplicates_out"))
    parser.add_argument("--clips", type=int, default=60, help="clips to copy")
    options = parser.parse_args()
    folder = (
        options.out / Path(options.source).parent.name
        if options.source != "world"
        else (options.out / "built_in")
    )
    clips = originals(options.source, folder, options.clips)
    base = make(folder, clips, "original")
    report: dict[str, dict[str, float]] = {}
    print("| copy | found | of | false pairs | distance: median, largest | nearest other clip |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        copies = make(folder, clips, kind)
        ask = AuditOptions(base, str(folder / "audit"), against=(copies,), workers=0)
        result = audit(ask, quiet=True)
        right = [
            pair for pair in result.pairs
            if name_of(pair.one, pair.record) == name_of(pair.other, pair.other_record)
        ]  # fmt: skip
        same, others = distances(result)
        report[kind] = {
            "found": len({pair.other_record for pair in right}),
            "of": len(same),
            "false_pairs": len(result.pairs) - len(right),
            "compared": result.compared,
            "distance_median": float(np.median(same)),
            "distance_largest": float(same.max()),
            "nearest_other": float(others.min()),
            "others_below": int((others <= THRESHOLD).sum()),
        }
        each = report[kind]
        print(
            f"| {kind} | {each['found']} | {each['of']} | {each['false_pairs']} | "
            f"{each['distance_median']:.3f}, {each['distance_largest']:.3f} | "
            f"{each['nearest_other']:.3f} |",
            flush=True,
        )
        np.savez(folder / f"{kind.replace(' ', '_')}.npz", same=same, others=others)
    (folder / "duplicates.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
