"""Searches a folder of videos with text.

    ivj search --checkpoint=runs/viclip --videos=clips/ \\
        "a red square moves left" --labels=@classes.txt
    ivj serve --checkpoint=runs/viclip --videos=clips/

`search` prints tables and writes a page with thumbnails, `serve` answers on a small web page. The
files are embedded once: the embeddings are kept by content (docs/video-search.md).
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from data_pipelines.commands.exit_codes import exit_code_of
from data_pipelines.records.outputs import check_file
from internvideo_jax import cli
from internvideo_jax.cli import read_labels
from internvideo_jax.evaluators.published.templates import TEMPLATES
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.protocols import clip_of
from internvideo_jax.registry import suggest
from internvideo_jax.search.answers import Answers
from internvideo_jax.search.cache import EmbeddingCache, default_folder
from internvideo_jax.search.clips import CROPS, Sampling, list_videos
from internvideo_jax.search.encoder import SearchEncoder, open_encoder
from internvideo_jax.search.index import Stopped, VideoIndex, build_index
from internvideo_jax.search.server import Desk, SearchServer, serve
from internvideo_jax.search.sheet import found_table, label_table, write_sheet


@dataclasses.dataclass(frozen=True)
class Settings:
    """What both commands are told, beside the recipe."""

    checkpoint: str
    videos: str
    labels: tuple[str, ...]
    template: str
    cache: Path | str | None
    tokenizer: str
    batch: int
    threads: int
    crop: str
    resize: str
    window: float
    fps: float


def open_parts(settings: Settings) -> tuple[SearchEncoder, Sampling, EmbeddingCache]:
    """The model, what it looks at, and where its embeddings are kept."""
    encoder = open_encoder(
        cli.typed_config(), settings.checkpoint, tokenizer=settings.tokenizer, clips=settings.batch
    )
    clip = clip_of(encoder.model.config)
    sampling = Sampling(
        clip.frames, clip.resolution, settings.crop, settings.resize, settings.window, settings.fps
    )
    cache = EmbeddingCache(settings.cache, encoder.identity, sampling.identity())
    return encoder, sampling, cache


def report(index: VideoIndex, cache: EmbeddingCache) -> None:
    """What became of the files: a line, and one for each that is odd."""
    print(
        f"{len(index.videos)} videos, {len(index.clips)} clips: {index.embedded} files embedded, "
        f"{index.reused} known, {len(index.skipped)} skipped"
    )
    for video in index.videos:
        if video.note:
            print(f"  {video.name}: {video.note}")
    for file in index.skipped:
        print(f"  skipped {file.name}: {file.reason}")
    if cache.damaged:
        print(f"  {cache.damaged} entries of the cache were damaged and made anew")


def search(settings: Settings, queries: Sequence[str], count: int, sheet: str) -> int:
    """Prints the answers; returns the exit code."""
    if not queries and not settings.labels:
        raise ValueError('nothing is asked: give a text such as "a red square moves left", '
                         "or --labels=a,b,c")  # fmt: skip
    rows = list_videos(settings.videos)
    encoder, sampling, cache = open_parts(settings)
    with tqdm(unit="file", desc="embed", disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.update(done - bar.n)

        index = build_index(
            rows, encoder, sampling, cache, threads=settings.threads, progress=progress
        )
    report(index, cache)
    if not index.clips:
        raise ValueError(f"--videos={settings.videos}: none of its files can be used")
    answers, found, probabilities = Answers(index, encoder), [], None
    for query in queries:
        found.append(answers.search(query, count))
        note = f" ({found[-1].note})" if found[-1].note else ""
        print(f"\n{found[-1].query!r}{note}\n{found_table(found[-1], index)}")
    if settings.labels:
        everything = range(len(index.clips))
        probabilities = answers.label(everything, settings.labels, settings.template)
        print(f"\nlabels, template {settings.template}")
        print(label_table(index, settings.labels, probabilities))
    if sheet:
        title = f"Search in {Path(settings.videos).name or settings.videos}"
        write_sheet(sheet, title, index, found, settings.labels, probabilities)
        print(f"\nwritten to {sheet}")
    return 0


def answer_page(settings: Settings, host: str, port: int) -> int:
    """Serves the page until ctrl-c or SIGTERM; returns the exit code."""
    list_videos(settings.videos)  # a wrong folder shows before the model is loaded
    desk = Desk(settings.labels, settings.template)
    try:
        server = SearchServer(host, port, desk)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error.strerror}); give another --port or --host"
        ) from error

    def progress(done: int, total: int, name: str) -> None:
        desk.done, desk.total = done, total

    def build(stop: threading.Event) -> None:
        try:
            encoder, sampling, cache = open_parts(settings)
            index = build_index(
                list_videos(settings.videos),
                encoder,
                sampling,
                cache,
                threads=settings.threads,
                progress=progress,
                stop=stop,
                within=settings.videos,
            )
            report(index, cache)
            answers = Answers(index, encoder)
            if settings.labels:
                answers.label((), settings.labels, settings.template)
            encoder.warm_up()
            desk.answers = answers
            print(f"ready at {server.url}", flush=True)
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001  (the page shows what went wrong)
            desk.error, desk.code = str(error) or repr(error), exit_code_of(error)
            print(f"error: {desk.error}", file=sys.stderr, flush=True)

    print(f"page at {server.url} (ctrl-c stops it)", flush=True)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, server.stop)
    serve(server, build)
    return desk.code


COMMANDS = ("search", "serve")


def main() -> None:
    """The command `ivj search`."""
    flags.adopt_module_key_flags(cli)
    checkpoint = flags.DEFINE_string(
        "checkpoint", None, "Run directory, one of its steps, or a weight file (with --config)."
    )
    videos = flags.DEFINE_string("videos", None, "Folder of video files.")
    labels = flags.DEFINE_string("labels", "", "Classes: a,b,c or @FILE with one a line.")
    template = flags.DEFINE_enum("template", "plain", list(TEMPLATES), "Prompts of the classes.")
    cache = flags.DEFINE_string(
        "cache",
        "",
        "Folder for embeddings, local or on an object store, or off; default: in the user's cache "
        "directory.",
    )
    tokenizer = flags.DEFINE_string(
        "tokenizer", "", "clip, clip:PATH or bert:PATH; default: that of the recipe."
    )
    batch = flags.DEFINE_integer("batch", 8, "Clips embedded per step.", lower_bound=1)
    threads = flags.DEFINE_integer("threads", 2, "Files decoded at a time.", lower_bound=1)
    crop = flags.DEFINE_enum("crop", "squash", CROPS, "How a frame becomes a square.")
    resize = flags.DEFINE_string("resize", "bicubic", "Filter: bicubic, bilinear, pil_bicubic ...")
    window = flags.DEFINE_float("window", 0.0, "Seconds of a clip; 0: one clip per file.")
    fps = flags.DEFINE_float("fps", 0.0, "Frames per second decoded at most; 0: all.")
    count = flags.DEFINE_integer("count", 5, "search: results of a query.", lower_bound=1)
    sheet = flags.DEFINE_string("sheet", "search.html", "search: page to write; empty: none.")
    host = flags.DEFINE_string("host", "127.0.0.1", "serve: address to listen at.")
    port = flags.DEFINE_integer("port", 8000, "serve: port; 0 takes a free one.", lower_bound=0)

    def run(words: Sequence[str]) -> int:
        command, *queries = words or ("",)
        if command not in COMMANDS:
            raise ValueError(f"the first word says what to do; {suggest(command, COMMANDS)}")
        if not checkpoint.value or not videos.value:
            raise ValueError(
                f"--checkpoint and --videos are needed: ivj {command} --checkpoint=viclip-l14 "
                "--videos=FOLDER; see --help"
            )
        use_compile_cache(cli.COMPILE_CACHE.value)
        folder = cache.value or default_folder()
        settings = Settings(
            checkpoint=checkpoint.value,
            videos=videos.value,
            labels=read_labels(labels.value),
            template=template.value,
            cache=None if cache.value == "off" else folder,
            tokenizer=tokenizer.value,
            batch=batch.value,
            threads=threads.value,
            crop=crop.value,
            resize=resize.value,
            window=window.value,
            fps=fps.value,
        )
        if command == "search":
            if sheet.value:
                check_file("--sheet", sheet.value, remote=True)
            return search(settings, queries, count.value, sheet.value)
        if queries:
            raise ValueError(f"unexpected word {queries[0]!r}; queries are typed into the page")
        return answer_page(settings, host.value, port.value)

    cli.run(run, words=True, stored=True)


if __name__ == "__main__":
    main()
