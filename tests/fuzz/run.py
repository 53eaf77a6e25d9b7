"""Fuzzing of everything that parses files and settings of others: `python tests/fuzz/run.py`.

Each target gets bytes and may only answer with our own errors: no other exception, no more than
the memory limit, no input that takes longer than the time limit. Guided by coverage with
`pip install atheris`; with --plain by seeded damage (mutate.py), which needs nothing.
"""

from __future__ import annotations

import argparse
import importlib
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ("records", "index", "wire", "table", "manifest")
WEIGHTS = ("torch", "pickle", "safetensors", "header", "shards")
TEXTS = (
    *("csv", "jsonl", "json", "list", "classes", "clips", "gz"),
    *("vocabulary", "mixture", "policy", "time", "metadata"),
)
TARGETS = (*RECORDS, *WEIGHTS, *TEXTS)
_MEMORY_MB, _SECONDS_PER_INPUT = 1024, 5


def seeds_of(name: str) -> list[bytes]:
    """Valid inputs to start from."""
    return _record_seeds()[name] if name in RECORDS else _room(name).seeds()[name]


def _room(name: str) -> Any:
    """The module that has the target."""
    sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"tests.fuzz.{'weight' if name in WEIGHTS else 'text'}_targets")


def _record_seeds() -> dict[str, list[bytes]]:
    from data_pipelines.records import manifest, schema
    from data_pipelines.records.frame_table import pack
    from data_pipelines.records.reader import ShardWriter

    record = schema.Record(
        "id", (b"jpeg", b"more"), (0, 40_000), 25.0, 4, 4, labels=(0,), label_names=("sit",)
    )
    data = schema.encode(record)
    with tempfile.TemporaryDirectory() as directory:
        shard = Path(directory, "a.tfrecord")
        with ShardWriter(shard) as writer:
            for _ in range(2):
                writer.append(data, 2)
        info = manifest.ShardInfo(shard.name, 2, writer.bytes, writer.sha256, writer.index_crc)
        split = manifest.SplitInfo((info,), 2, 4, (2,))
        manifest.save(
            manifest.Manifest(directory, "a", 1, ("sit",), False, {"q": 1}, {"train": split})
        )
        index = Path(f"{shard}.idx").read_bytes()
        return {
            "records": [shard.read_bytes(), b""],
            "index": [b"\0" + index, b"\1" + index, b"\1" + version_1(index)],
            "wire": [data],
            "table": [pack(data, 7)[0]],
            "manifest": [Path(directory, manifest.FILE_NAME).read_bytes()],
        }


def version_1(index: bytes) -> bytes:
    """The same index as the first version of the format wrote it."""
    header = bytearray(index[:64])
    entries = b"".join(index[64 + 24 * i : 84 + 24 * i] for i in range(2))
    struct.pack_into("<I", header, 8, 1)
    struct.pack_into("<Q", header, 32, 64 + len(entries) + 4)
    struct.pack_into("<II", header, 40, 20, 0)
    return bytes(header) + entries + b"crc?"


def target(name: str, directory: str) -> Callable[[bytes], None]:
    """The function under test; `directory` is its scratch space."""
    if name in RECORDS:
        return _record_target(name, directory)
    function = _room(name).targets(Path(directory))[name]
    is_ours = importlib.import_module("tests.fuzz.judge").is_ours

    def judged(data: bytes) -> None:
        try:
            function(data)
        except Exception as error:
            if not is_ours(error):
                raise

    return judged


def _record_target(name: str, directory: str) -> Callable[[bytes], None]:
    import google_crc32c

    from data_pipelines.records import frame_table, manifest, schema, wire
    from data_pipelines.records import index as record_index
    from data_pipelines.records.reader import RecordSource

    path = Path(directory, "x")

    def records(data: bytes) -> None:
        path.write_bytes(data)
        try:
            source = RecordSource([str(path)])
            for i in range(len(source)):
                source[i]
        except (record_index.CorruptRecordError, record_index.IndexFileError):
            return

    def index(data: bytes) -> None:
        # The first byte decides whether the checksum is made right, to reach what is behind it.
        repair, data = data[:1] == b"\1", data[1:]
        if repair and len(data) >= 68:
            version, header, count = struct.unpack_from("<IIQ", data, 8)
            entry = struct.unpack_from("<I", data, 40)[0]
            end = header + count * entry if version > 1 else len(data) - 4
            if end + 4 <= len(data):
                crc = struct.pack("<I", google_crc32c.value(data[:end]))
                data = data[:end] + crc + data[end + 4 :]
        try:
            record_index.parse_index(data)
        except record_index.IndexFileError:
            return

    def wire_(data: bytes) -> None:
        frame_table.pack(data, 0)
        try:
            layout = wire.slice_record(data)
        except schema.SchemaError:
            layout = None
        try:
            record = schema.decode(data)
        except schema.SchemaError:
            return
        # Whatever both understand they must understand alike.
        if layout is not None and list(record.frames) != [
            data[at : at + size] for at, size in layout.frames
        ]:
            raise RuntimeError("the slicer and protobuf see different frames")

    def table(data: bytes) -> None:
        data += struct.pack("<I", google_crc32c.value(data))
        length = struct.unpack_from("<Q", data, 8)[0] if len(data) >= 16 else 0
        try:
            frame_table.unpack(data, length)
        except frame_table.FrameTableError:
            return

    def manifest_(data: bytes) -> None:
        Path(directory, manifest.FILE_NAME).write_bytes(data)
        try:
            manifest.load(directory)
        except ValueError as error:
            # A UnicodeError or a failed conversion is a ValueError too, but not one of ours.
            if manifest.FILE_NAME not in str(error):
                raise RuntimeError("an error that does not name the file") from error

    return {
        "records": records,
        "index": index,
        "wire": wire_,
        "table": table,
        "manifest": manifest_,
    }[name]


def fuzz(name: str, runs: int, seconds: int) -> None:
    """Run one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["data_pipelines", "internvideo_jax.weights"]):
        scratch = tempfile.TemporaryDirectory()
        function = target(name, scratch.name)
    corpus = tempfile.TemporaryDirectory()
    for number, seed in enumerate(seeds_of(name)):
        Path(corpus.name, f"seed{number}").write_bytes(seed)
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={runs}",
            f"-max_total_time={seconds}",
            f"-rss_limit_mb={_MEMORY_MB}",
            f"-timeout={_SECONDS_PER_INPUT}",
            "-max_len=16384" if name in WEIGHTS else "-max_len=4096",
            f"-artifact_prefix={tempfile.gettempdir()}/fuzz-{name}-",
            corpus.name,
        ],
        function,
    )
    atheris.Fuzz()


def plain(name: str, runs: int, seed: int) -> None:
    """Run one target on damaged copies of its seeds; what goes wrong is raised."""
    sys.path.insert(0, str(ROOT))
    inputs = importlib.import_module("tests.fuzz.mutate").inputs
    begin, slowest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as scratch:
        function = target(name, scratch)
        for data in inputs(seeds_of(name), runs, seed):
            started = time.monotonic()
            function(data)
            slowest = max(slowest, time.monotonic() - started)
    if slowest > _SECONDS_PER_INPUT:
        raise RuntimeError(f"an input took {slowest:.1f} s")
    print(f"Done {runs} runs in {time.monotonic() - begin:.0f} second(s)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="executions per target")
    parser.add_argument("--seconds", type=int, default=0, help="bound per target, 0 for none")
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--plain", action="store_true", help="seeded damage, without atheris")
    parser.add_argument("--seed", type=int, default=0, help="of --plain")
    parser.add_argument("--here", choices=TARGETS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        if options.plain:
            plain(options.here, options.runs, options.seed)
        else:
            fuzz(options.here, options.runs, options.seconds)
        return 0
    failed = 0
    for name in options.target or TARGETS:
        command = [sys.executable, __file__, "--here", name]
        command += ["--runs", str(options.runs), "--seconds", str(options.seconds)]
        command += ["--plain", "--seed", str(options.seed)] if options.plain else []
        done = subprocess.run(command, capture_output=True, text=True)
        output = done.stdout + done.stderr
        found = re.search(r"Done (\d+) runs in (\d+) second", output)
        if found and done.returncode == 0:
            print(f"{name}: {found[1]} executions in {found[2]} s, only our own errors", flush=True)
        else:
            failed += 1
            print(f"{name}: FAILED\n{output[-3000:]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
