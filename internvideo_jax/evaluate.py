"""Offline evaluation: a checkpoint and evaluators in, one JSON file with protocols out.

    ivj evaluate --config=configs/videomae/finetune.py:size=base \\
        --checkpoint=runs/finetune --out=results.json --config.data.eval=shards/

The checkpoint is a run, one of its steps, or a weight file (.safetensors, .pth). With --protocol
the views of the evaluator `test` are those of a published table (evaluators/protocols.py).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from data_pipelines.records import manifest, storage, trees
from data_pipelines.records.outputs import check_file, check_folder
from internvideo_jax import cli
from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.checkpoint.learned import Learned, learned
from internvideo_jax.checkpoint.metadata import devices, weights_provenance
from internvideo_jax.config import TrainConfig, as_plain
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.evaluators.published.protocols import PROTOCOLS
from internvideo_jax.evaluators.run import (
    PER_VIDEO,
    check_evaluators,
    headline,
    run_evaluators,
    write_json,
)
from internvideo_jax.inference.quantized import network, stated
from internvideo_jax.inference.weights import on_devices
from internvideo_jax.parallel import multihost
from internvideo_jax.parallel.compile_cache import use_compile_cache
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.registry import EVALUATORS, suggest
from internvideo_jax.run import seconds
from internvideo_jax.run.build import with_classes
from internvideo_jax.tasks import Evaluator

DECIDED = ("clip.sampling", "clip.stride", "clips", "crops", "crop_rule")  # by a protocol


def evaluate(
    config: TrainConfig, checkpoint: str, out: str | os.PathLike[str], per_video: str = "off"
) -> dict[str, Any]:
    """Runs every evaluator of the config on a checkpoint and writes `out`.

    Pictures and one JSON per evaluator go to a folder beside `out`, named like it without suffix;
    `per_video` (evaluators/run.py) puts a row for every video there.

    Returns:
      What was written: {"results": {label: {metrics, protocol, pixels, tables}}, ...}.

    Raises:
      ValueError: no evaluator, a checkpoint that does not fill the model, data that do not fit,
        a place that cannot be written.
    """
    check_file("--out", out, (".json",), remote=True)
    above, _, name = os.fspath(out).rpartition("/")
    if storage.is_remote(out):
        with trees.Outbox(above) as box:
            content = _evaluate(config, checkpoint, box.local / name, per_video, os.fspath(out))
            if multihost.is_main():
                box.push(last=name)
        return content
    check_folder("--out, for pictures,", Path(storage.local(out)).with_suffix(""))
    return _evaluate(config, checkpoint, Path(storage.local(out)), per_video, os.fspath(out))


def _evaluate(
    config: TrainConfig, checkpoint: str, out: Path, per_video: str, named: str
) -> dict[str, Any]:
    """`evaluate` into a local file, which is for the place `named`."""
    folder = out.with_suffix("")
    wanted = {label: each for label, each in config.evals.items() if each.every >= 0}
    if not wanted:
        raise ValueError("config.evals is empty: nothing to evaluate")
    # The classes are those of the first set that is looked at.
    first = next(iter(wanted.values())).inputs()[0]
    directory = first.data or config.data.eval or config.data.train
    found = manifest.load(directory)
    classes = found.classes
    config = with_classes(config, len(classes))
    model = network(config)
    mesh = make_mesh(config.mesh)
    context = EvalContext(
        model, mesh, config.data, config.seed, classes=classes, manifests={directory: found}
    )
    check_evaluators(wanted, context)
    tell_seconds(wanted, context, learned(checkpoint))
    params, report = initialise(
        checkpoint, model.shapes(), config.model, rows=config.head_rows, classes=classes
    )
    report.require_all()
    params = on_devices(config, model, params, mesh)
    provenance = {
        **weights_provenance(checkpoint, params),
        "devices": devices(),
        "head": report.head.note if report.head else "",
        **stated(model),
    }
    results = run_evaluators(
        wanted, context, params, folder=folder, provenance=provenance, per_video=per_video
    )
    content = {
        **provenance,
        "config": as_plain(config),
        "results": {
            label: {
                "metrics": dict(result.metrics),
                "protocol": dict(result.protocol),
                "pixels": dict(result.pixels),
                "tables": dict(result.tables),
            }
            for label, result in results.items()
        },
    }
    if multihost.is_main():
        write_json(out, content)
        print(headline(results).replace(" | ", "\n"))
        print(f"written to {named}, pictures in {os.path.splitext(named)[0]}", flush=True)
    return content


def tell_seconds(
    evaluators: Mapping[str, Evaluator], context: EvalContext, weights: Learned
) -> None:
    """Prints how many seconds the clips of the evaluators span, and where that is other."""
    told: set[str] = set()
    for label, evaluator in evaluators.items():
        for source in evaluator.inputs():
            if "video" not in source.parts or not multihost.is_main():
                continue
            lines = list(seconds.of_test(label, source.views, context.dataset(source), weights))
            print("".join(f"{line}\n" for line in lines if line not in told), end="", flush=True)
            told.update(lines)


def with_protocol(config: TrainConfig, name: str, overridden: Collection[str]) -> TrainConfig:
    """The config with the evaluator `test` under a published protocol (protocols.py).

    Args:
      overridden: fields that the command line sets; none may be one that the protocol decides.

    Raises:
      ValueError: an unknown protocol, no such evaluator, or a field that is set twice.
    """
    test = config.evals.get("test")
    if not isinstance(test, Accuracy):
        raise ValueError(
            f"--protocol is for the classification evaluator `test`, which this config lacks; it "
            f"has {', '.join(config.evals) or 'none'}"
        )
    decided = ("protocol", "merge", "mean_ap", *(f"views.{each}" for each in DECIDED))
    twice = sorted({f"evals.test.{each}" for each in decided} & set(overridden))
    if twice:
        raise ValueError(
            f"--protocol={name} and --config.{twice[0]} both decide the views: leave one out "
            f"(a config that has a protocol may be changed field by field; the result says so)"
        )
    return dataclasses.replace(config, evals={**config.evals, "test": test.with_protocol(name)})


def main() -> None:
    """The command `ivj evaluate`."""
    flags.adopt_module_key_flags(cli)
    checkpoint = flags.DEFINE_string(*cli.CHECKPOINT)
    out = flags.DEFINE_string("out", None, "JSON file to write, local or on an object store.")
    protocol = flags.DEFINE_string(
        "protocol",
        "",
        "Published test protocol for the evaluator `test`, instead of the config's: "
        f"{', '.join(PROTOCOLS)}.",
    )
    only = flags.DEFINE_list(
        "only",
        [],
        "Labels of the evaluators to run; default: all. The name of one that the config lacks adds "
        "it, such as zero_shot.",
    )
    per_video = flags.DEFINE_enum(
        "per_video",
        PER_VIDEO[0],
        PER_VIDEO,
        "Also write a row for every video, as JSONL and CSV: its label and the five best classes, "
        "or the scores of all.",
    )

    def run() -> int:
        use_compile_cache(cli.COMPILE_CACHE.value)
        if not checkpoint.value or not out.value:
            raise ValueError(
                "--checkpoint and --out are needed: ivj evaluate --checkpoint=RUN "
                "--config.data.eval=SHARDS --out=results.json; see --help"
            )
        job = cli.COORDINATOR.value, cli.PROCESSES.value, cli.PROCESS.value
        with multihost.joined(*job, notices=False):
            evaluate(selected(), checkpoint.value, out.value, per_video.value)
        return 0

    def selected() -> TrainConfig:
        config = cli.typed_config()
        if protocol.value:
            config = with_protocol(config, protocol.value, cli.overridden())
        unknown = [label for label in only.value if label not in config.evals]
        if unknown:
            known = {*config.evals, *EVALUATORS}
            raise ValueError(f"--only={unknown[0]}: {suggest(unknown[0], known)}")
        if only.value:
            kept = {label: config.evals[label] for label in only.value}
            config = dataclasses.replace(config, evals=kept)
        return config

    cli.run(run, stored=True, evaluators=True)


if __name__ == "__main__":
    main()
