"""Is the loader fast and small enough? Measured beside what a torch user would run instead.

    python benchmarks/data.py --videos clips/ --out data_bench.json
    python benchmarks/data.py --videos clips/ --rows decode crops

Prints one line per target: what was measured, the target, and whether it is met. Ratios are medians
over rounds in which all sides take turns on the same videos; times are CPU time of the process, so
that they hold on a machine with other work. The clips are those of --videos that are --size pixels
(default 340x256, as Kinetics is usually kept) and long enough; they are converted once into records
(short side 256, quality 90, every frame).

Rows: decode (against decord and PyAV, and the cost of the stream around the bare functions), crops
(several crops per decode), bytes (read per clip), assembly (where a batch's pixels are written),
ingest (rate and memory), memory (of the loader), startup (on simulated indexes). decord is measured
where it is installed. Everything together takes about ten minutes and 2 GB of temporary disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

import data_peers
import data_scale
import numpy as np

from data_pipelines.clips import sampling, transforms
from data_pipelines.clips.augment import TrainTransform
from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.ingest.run import ingest
from data_pipelines.records.dataset import Dataset, FrameBuffer
from data_pipelines.stream.pipeline import TrainStream
from data_pipelines.stream.prefetch import row_threads

CLIP = ClipConfig(frames=16, stride=4, resolution=224, sampling="window")
BATCH = 8  # of the streams that are timed


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table; `measured` is None where a peer is not installed."""

    row: str
    what: str
    measured: float | None
    target: str  # ">= 12", "<= 0.1"
    detail: str = ""

    @property
    def passed(self) -> bool | None:
        if self.measured is None:
            return None
        sign, _, bound = self.target.partition(" ")
        met = {">=": self.measured >= float(bound), "<=": self.measured <= float(bound)}
        return met[sign]


class Bench:
    """The clips, the records made of them, and how often to measure."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        self.options, self.scratch = options, scratch
        self.rounds: int = options.rounds
        self.clips = find_clips(Path(options.videos), options.size)
        self._streams: dict[tuple[Path, int], TrainStream] = {}

    def records(self, clip: Path) -> Path:
        """Directory with the one record of a clip."""
        out = self.scratch / clip.name
        if not (out / "manifest.json").exists():
            links = self.scratch / f"{clip.name}.source"
            links.mkdir()
            (links / clip.name).symlink_to(clip.resolve())
            ingest(IngestOptions(source=str(links), out=str(out), workers=0), quiet=True)
        return out

    def stream(self, clip: Path, repeats: int = 1) -> TrainStream:
        """The training stream over a clip; idle whenever its buffer is full."""
        if (clip, repeats) not in self._streams:
            config = DataConfig(
                train=str(self.records(clip)),
                global_batch=BATCH,
                clip=CLIP,
                crop="random_resized",
                flip="on",
                repeats=repeats,
            )
            self._streams[clip, repeats] = TrainStream(config)
        return self._streams[clip, repeats]

    def on_all_cores(self, stream: TrainStream, clips: int) -> float:
        """`bare` in as many processes at a time as the stream has threads; their mean.

        A core whose neighbour works too is slower, by a tenth and more on some machines. Alone on
        its machine the bare function would be compared with a stream in worse conditions.
        """
        work = [
            self._cores.submit(bare, stream.dataset, stream.transform, clips)
            for _ in range(row_threads(ReaderConfig()))
        ]
        return mean(future.result() for future in work)

    @functools.cached_property
    def _cores(self) -> ProcessPoolExecutor:
        cores = row_threads(ReaderConfig())
        return ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn"))

    @functools.cached_property
    def many(self) -> tuple[Path, data_scale.Ingested]:
        """A set of many files, and what it took to make."""
        out = self.scratch / "many"
        return out, data_scale.ingest_many(self.clips, self.options.files, out)

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._cores.shutdown()


def find_clips(folder: Path, size: str) -> list[Path]:
    """Videos of `size` ("340x256") that are long enough for a clip.

    Raises:
      ValueError: no such folder, or no such videos; says which sizes there are.
    """
    if not folder.is_dir():
        raise ValueError(f"--videos {folder}: no such directory")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        shape = data_peers.shape_of(path) if path.is_file() else None
        if shape is not None and shape[2] > CLIP.frames * CLIP.stride:
            found.setdefault(f"{shape[0]}x{shape[1]}", []).append(path)
    if size not in found:
        raise ValueError(
            f"--videos {folder}: no video of {size} with more than {CLIP.frames * CLIP.stride} "
            f"frames; found {', '.join(sorted(found)) or 'no videos'}. Choose with --size"
        )
    return found[size]


def bare(dataset: Dataset, transform: TrainTransform, clips: int) -> float:
    """Seconds of CPU time per example of read, decode, crop and flip in this thread."""
    draw, buffer = sampling.TRAIN[CLIP.sampling], FrameBuffer()
    with data_peers.CpuTime() as time:
        for position in range(clips):
            rng = np.random.Generator(np.random.Philox(key=[0, position]))
            record = dataset.load(position % len(dataset))
            wanted = draw(len(record.frames), CLIP.frames, CLIP.stride, rng)
            frames = dataset.frames(position % len(dataset), record, wanted, buffer)
            transform(frames, rng)
    return time.seconds / clips


def through_stream(stream: TrainStream, batches: int) -> float:
    """Seconds of CPU time per example of the whole stream.

    From idle with a full buffer to idle with a full buffer, exactly as many batches are made as
    are taken.
    """
    next(stream)
    data_peers.wait_until_idle()
    with data_peers.CpuTime() as time:
        for _ in range(batches):
            next(stream)
        data_peers.wait_until_idle()
    return time.seconds / (batches * BATCH)


def decode(bench: Bench) -> Iterator[Result]:
    """16 frames of 224 x 224, random resized crop and flip, against decoding the video."""
    peers: dict[str, Any] = {"PyAV": data_peers.pyav_clip}
    if data_peers.has_decord():
        peers["decord"] = data_peers.decord_clip
    seconds: dict[str, list[float]] = {}  # per round, mean over the clips
    each: dict[str, dict[str, list[float]]] = {}
    for _ in range(bench.rounds):
        turn: dict[str, list[float]] = {}
        for clip in bench.clips:
            stream = bench.stream(clip)
            mine = {
                "bare": bench.on_all_cores(stream, 32),
                "stream": through_stream(stream, 4),
                **{name: data_peers.per_clip(read, clip, CLIP, 6) for name, read in peers.items()},
            }
            for name, value in mine.items():
                turn.setdefault(name, []).append(value)
                each.setdefault(clip.name, {}).setdefault(name, []).append(value)
        for name, values in turn.items():
            seconds.setdefault(name, []).append(mean(values))
    for name, sides in each.items():
        print(f"  {name}: " + ", ".join(f"{k} {median(v) * 1e3:.1f} ms" for k, v in sides.items()))
    rate = 1 / median(seconds["stream"])
    for name, target in (("decord", ">= 12"), ("PyAV", ">= 10")):
        what = f"clips/s per core, times {name}"
        if name not in seconds:
            yield Result("decode", what, None, target, "not installed: pip install decord")
            continue
        ratio = median(p / o for p, o in zip(seconds[name], seconds["stream"], strict=True))
        detail = f"{rate:.0f} against {1 / median(seconds[name]):.1f} clips/s per core"
        yield Result("decode", what, ratio, target, detail)
    ratio = median(s / b for s, b in zip(seconds["stream"], seconds["bare"], strict=True))
    detail = f"{median(seconds['stream']) * 1e3:.2f} against {median(seconds['bare']) * 1e3:.2f} ms"
    yield Result(
        "decode", "CPU time of the stream over the bare functions", ratio - 1, "<= 0.1", detail
    )


def crops(bench: Bench) -> Iterator[Result]:
    """Several examples of one decoded clip, through the stream."""
    seconds: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(bench.rounds):
        for repeats, values in seconds.items():
            streams = [bench.stream(clip, repeats) for clip in bench.clips]
            values.append(mean(through_stream(stream, 4) for stream in streams))
    for repeats, target in ((2, ">= 1.6"), (4, ">= 2")):
        gain = median(o / m for o, m in zip(seconds[1], seconds[repeats], strict=True))
        detail = f"{1 / median(seconds[repeats]):.0f} against {1 / median(seconds[1]):.0f} per core"
        yield Result(
            "crops", f"examples/s, {repeats} crops per decode, times one", gain, target, detail
        )


def read_bytes(bench: Bench) -> Iterator[Result]:
    """Bytes read for a clip as a share of its record, for the clip whose share is largest."""
    shares = {}
    for clip in bench.clips:
        stream = bench.stream(clip)
        data_peers.wait_until_idle()
        source, dataset = stream.dataset.source, stream.dataset
        record = sum(shard.bytes for shard in dataset.manifest.split("train").shards)
        before, count = source.bytes_read, 32
        bare(dataset, stream.transform, count)
        frames = dataset.source.num_frames(0)
        shares[f"{clip.name}, {frames} frames"] = (source.bytes_read - before) / count / record
    name = max(shares, key=lambda key: shares[key])
    what = "bytes read per clip, share of a record of 10 s"
    yield Result("bytes", what, shares[name], "<= 0.08", name)


def assembly(bench: Bench) -> Iterator[Result]:
    """How many clips of a batch were cropped straight into the memory of the batch."""
    written: list[tuple[int, int]] = []
    original = transforms.crop_resize

    def recorded(*args: Any, **options: Any) -> np.ndarray:
        out = original(*args, **options)
        written.append((out.__array_interface__["data"][0], out.nbytes))
        return out

    transforms.crop_resize = recorded
    try:
        with_hook = TrainStream(bench.stream(bench.clips[0]).config)
        batches = [next(with_hook)["video"] for _ in range(4)]
        with_hook.close()
    finally:
        transforms.crop_resize = original
    inside = 0
    for batch in batches:
        start = batch.__array_interface__["data"][0]
        places = {at for at, size in written if start <= at and at + size <= start + batch.nbytes}
        inside += len(places)
    share = inside / sum(map(len, batches))
    detail = "a crop writes its pixels, and nothing moves them again" if share == 1 else "copied"
    yield Result("assembly", "share of clips cropped into the batch itself", share, ">= 1", detail)


def ingest_rate(bench: Bench) -> Iterator[Result]:
    """A worker over many files."""
    files = bench.options.files
    _, run = bench.many
    rate = run.frames / run.cpu_seconds
    detail = f"{run.frames} frames of {files} files"
    yield Result("ingest", "frames/s per core", rate, ">= 1000", detail)
    yield Result("ingest", "memory of a worker, MB at most", run.peak / 1e6, "<= 600", detail)
    detail = f"{run.early / 1e6:.0f} MB in the second quarter, {run.late / 1e6:.0f} in the last"
    yield Result("ingest", "its growth over the files", run.late / run.early - 1, "<= 0.1", detail)


def memory(bench: Bench) -> Iterator[Result]:
    """A process of its own that takes batches of 64 clips for three epochs."""
    directory, _ = bench.many
    config = DataConfig(
        train=str(directory), global_batch=64, clip=CLIP, crop="random_resized", flip="on"
    )
    use = _alone(data_scale.loader_memory, config, bench.options.batches)
    detail = f"{bench.options.batches} batches of 64 x 16 x 224, of {bench.options.files} records"
    yield Result("memory", "loader, GB at most", use.peak / 1e9, "<= 2.5", detail)
    detail = f"{use.early / 1e9:.2f} GB in the second quarter, {use.late / 1e9:.2f} in the last"
    yield Result(
        "memory", "its growth over the batches", use.late / use.early - 1, "<= 0.1", detail
    )


def startup(bench: Bench) -> Iterator[Result]:
    """A stream over records that exist only as index files."""
    directory, records = bench.scratch / "indexes", bench.options.records
    data_scale.simulate(directory, records)
    use = _alone(data_scale.start, DataConfig(train=str(directory), clip=CLIP))
    per_billion = 1e9 / records
    detail = (
        f"{records} records; a billion would need {use.seconds * per_billion:.0f} s and "
        f"{use.gained * per_billion / 1e9:.0f} GB"
    )
    yield Result("startup", "seconds until the stream stands", use.seconds, "<= 20", detail)
    yield Result("startup", "memory, GB at most", use.peak / 1e9, "<= 2", detail)


def _alone(function: Callable[..., Any], *args: Any) -> Any:
    """Runs a function in a fresh process, whose memory is then its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


ROWS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "decode": decode,
    "crops": crops,
    "bytes": read_bytes,
    "assembly": assembly,
    "ingest": ingest_rate,
    "memory": memory,
    "startup": startup,
}


def table(results: list[Result]) -> Iterator[str]:
    words = {True: "pass", False: "FAIL", None: "-"}
    for result in results:
        value = "-" if result.measured is None else f"{result.measured:.3g}"
        yield (
            f"{result.row:9}{result.what:52}{value:>9}{result.target:>10}  "
            f"{words[result.passed]:5} {result.detail}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--videos", required=True, help="folder with videos, searched to the bottom"
    )
    parser.add_argument("--size", default="340x256", help="width x height of those to use")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=7, help="turns of the timed rows")
    parser.add_argument(
        "--files", type=int, default=500, help="files of the rows ingest and memory"
    )
    parser.add_argument("--batches", type=int, default=24, help="batches of the row memory")
    parser.add_argument("--records", type=int, default=10_000_000, help="of the row startup")
    parser.add_argument("--scratch", type=Path, help="where to put temporary files")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        try:
            bench = Bench(options, Path(scratch))
        except (ValueError, OSError) as error:
            parser.error(str(error))
        print(f"{len(bench.clips)} clips: {', '.join(clip.name for clip in bench.clips)}")
        for row in options.rows:
            found = list(ROWS[row](bench))
            for line in table(found):
                print(line, flush=True)
            results += found
        bench.close()
    if options.out:
        rows = [{**dataclasses.asdict(result), "passed": result.passed} for result in results]
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    missed = sum(result.passed is False for result in results)
    print(f"{missed} of {len(results)} targets missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
