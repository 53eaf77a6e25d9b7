"""The commands of both packages: what `ivj NAME` starts, here or on the machines of a job."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """What a word after `ivj` starts.

    Attributes:
      module: whose `main()` reads sys.argv.
      does: for the list of commands.
      words: that come before those of the user.
      writes: the flag that says where its results go, and, where that is a file, its name in a
        folder: `workdir`, `out/result.json`. Empty: no one such flag.
      reads: `recipe` where it goes through `cli.run`; else the function of its module that only
        parses a list of words, if there is one.
      joins: whether several processes that start it do one job together.
    """

    module: str
    does: str
    words: tuple[str, ...] = ()
    writes: str = ""
    reads: str = ""
    joins: bool = False

    @property
    def python(self) -> tuple[str, ...]:
        """What follows `python -m`."""
        return (self.module.removesuffix(".__main__"), *self.words)


COMMANDS = {
    "ingest": Command(
        "data_pipelines.ingest.__main__", "videos, images, datasets -> shards", (), "out", "parse"
    ),
    "data": Command("data_pipelines.__main__", "inspect, verify, measure, repair, choose shards"),
    "synthetic": Command("data_pipelines.synthetic", "render the built-in world of videos"),
    "train": Command(
        "internvideo_jax.train", "pre-train, fine-tune or probe", (), "workdir", "recipe", True
    ),
    "adapt": Command(
        "internvideo_jax.adapt.__main__",
        "go on pre-training on a folder of videos",
        (),
        "workdir",
        "recipe",
    ),
    "evaluate": Command(
        "internvideo_jax.evaluate",
        "published tests of a run or a weight file",
        (),
        "out/result.json",
        "recipe",
        True,
    ),
    "predict": Command(
        "internvideo_jax.offline.predict",
        "the likeliest classes of video files",
        (),
        "out/predictions.jsonl",
        "recipe",
    ),
    "compare": Command("internvideo_jax.offline.compare", "where two results differ, and why"),
    "extract": Command(
        "internvideo_jax.offline.extract", "features of sliding windows", (), "out", "recipe"
    ),
    "score": Command(
        "internvideo_jax.offline.score",
        "similarity of clips and their captions",
        (),
        "out",
        "recipe",
    ),
    "teach": Command(
        "internvideo_jax.offline.teach",
        "targets of frozen teachers, kept as shards",
        (),
        "out",
        "recipe",
    ),
    "search": Command("internvideo_jax.search.__main__", "videos of a folder by text", ("search",)),
    "serve": Command("internvideo_jax.search.__main__", "the same as a web page", ("serve",)),
    "weights": Command("internvideo_jax.weights.__main__", "published files: list, import, export"),
    "check": Command(
        "internvideo_jax.compile_check.__main__",
        "what a slice needs, before a run",
        reads="recipe",
    ),
    "launch": Command("internvideo_jax.launch.__main__", "processes, started again when one dies"),
    "reference": Command(
        "internvideo_jax.reference.__main__", "a small run of a recipe beside its stored curves"
    ),
    "report": Command("internvideo_jax.telemetry.report", "one page about one or several runs"),
}
