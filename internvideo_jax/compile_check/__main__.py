"""Does this recipe fit a slice, and how fast can it be at best? Compiles, runs nothing.

    ivj check --topology=v5e:16x16 --mesh=data=32,fsdp=8 \\
        --config=configs/videomae/pretrain.py:size=large --batch=2048 --records=k400

Needs neither the slice nor data; of --config.data.train, where given, it says how many seconds a
clip spans, beside what the weights of --config.init_from learned from. TPU slices (v4:4x4x4,
v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4, two of them: v5e:16x16*2) need the TPU compiler, pip
install 'internvideo-jax[tpu]'; gpu:h100x8 gives the state's memory and the compute bound; cpu:8 is
for rehearsals. With --quick nothing is compiled and no TPU compiler needed: what state and batch
take, and the compute bound, in seconds.
With --search it looks for the best mesh, remat policy and microbatches for the recipe's batch, with
--search_batch for the clips per chip too. Exit code 0: it fits, 1: it does not, 2: an error, 3: no
compiler can tell (GPUs).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from data_pipelines.records.outputs import check_file, local_only
from data_pipelines.stream import mixture
from internvideo_jax import cli
from internvideo_jax.checkpoint.learned import learned
from internvideo_jax.compile_check.aot import check_steps, gib, whole_parameters
from internvideo_jax.compile_check.hardware import Slice, open_slice
from internvideo_jax.compile_check.length import duration, find_records
from internvideo_jax.compile_check.mesh_search import (
    CLIPS,
    Candidate,
    Tried,
    policies,
    search,
    single,
    table,
    verdict,
)
from internvideo_jax.compile_check.quick import CLASSES, estimate, prepare
from internvideo_jax.compile_check.report import facts_of, gathers_everything, report
from internvideo_jax.compile_check.search_cache import (
    CompileCache,
    check_apart,
    default_path,
    key_of,
    passed_on,
)
from internvideo_jax.config import MeshConfig, Records, TrainConfig, total_steps
from internvideo_jax.parallel.mesh import SEQUENCE
from internvideo_jax.registry import suggest
from internvideo_jax.run import seconds


def parse_mesh(text: str, shard_above: int) -> MeshConfig:
    """`data=32,fsdp=8` -> MeshConfig; an axis not named is 1, `data` takes what is left.

    Raises:
      ValueError: an unknown axis or a size that is no number.
    """
    sizes = {"data": -1, "fsdp": 1, SEQUENCE: 1, "tensor": 1}
    for item in filter(None, text.split(",")):
        name, _, size = item.partition("=")
        if name not in sizes:
            raise ValueError(f"--mesh: unknown axis {name!r}: {suggest(name, sizes)}")
        try:
            sizes[name] = int(size)
        except ValueError as error:
            raise ValueError(
                f"--mesh: expected a number for {name}, found {size!r}; write data=32,fsdp=8"
            ) from error
    return MeshConfig(
        data=sizes["data"],
        fsdp=sizes["fsdp"],
        tensor=sizes["tensor"],
        shard_above=shard_above,
        sequence=sizes[SEQUENCE],
    )


def adjust(config: TrainConfig, *, mesh: str = "", batch: int = 0, remat: str = "") -> TrainConfig:
    """The config with another mesh, global batch or remat policy where given."""
    if mesh:
        given = parse_mesh(mesh, config.mesh.shard_above)
        now = config.mesh
        given = dataclasses.replace(
            given, whole_limit=now.whole_limit, slices=now.slices, frozen=now.frozen
        )
        config = dataclasses.replace(config, mesh=given)
    if batch:
        data = dataclasses.replace(config.data, global_batch=batch)
        config = dataclasses.replace(config, data=data)
    if remat:
        if config.model.traits.remat is None:
            raise ValueError(f"--remat={remat}: config.model has no remat policies")
        model = dataclasses.replace(config.model, remat=remat)
        config = dataclasses.replace(config, model=model)
    return config


def search_best(
    config: TrainConfig,
    target: Slice,
    records: Records,
    classes: int,
    *,
    compiles: int,
    free_batch: bool,
    fast: bool,
    cache: CompileCache,
    price: float,
    length: str,
) -> int:
    """Searches, prints what was tried and how to use the best; 1 when nothing fits."""
    devices = len(target.devices)
    batches = [devices * clips for clips in CLIPS] if free_batch else [config.data.global_batch]
    alone = dataclasses.replace(target, devices=target.devices[:1])
    run = prepare(single(config), alone, records, classes)
    arguments = passed_on(sys.argv[1:])
    print(
        f"search       {target.name}: {devices} devices, batch "
        f"{'free' if free_batch else batches[0]}, at most {compiles} compiles",
        flush=True,
    )

    def compile_one(candidate: Candidate) -> dict[str, Any]:
        mesh = ",".join(f"{axis}={n}" for axis, n in candidate.axes.items())
        changed = adjust(config, mesh=mesh, batch=candidate.batch, remat=candidate.remat)
        optim = dataclasses.replace(changed.optim, accumulate=candidate.microbatches)
        key = key_of(dataclasses.replace(changed, optim=optim), target.name, classes, fast)
        facts = cache.get(key)
        if facts is None:
            facts = check_apart([*arguments, *candidate.flags()])
            cache.put(key, facts)
        return facts

    def told(item: Tried) -> None:
        what = " ".join(item.candidate.flags())
        print(f"  compiled   {what}: {verdict(item, None)}", flush=True)

    flops = policies(run)
    found = search(
        run,
        target,
        compile_one,
        flops=flops,
        batches=batches,
        compiles=compiles,
        told=told,
    )
    print(table(found))
    best = found.best
    if best is None:
        print("best         none fits: take a larger slice, or free the batch with --search_batch")
        return 1
    bound, batch = best.facts["bound"], best.candidate.batch
    print(
        f"best         {bound * 1e3:.1f} ms per step at best ({best.facts['binding']} binds), "
        f"{batch / bound:.0f} clips/s, peak {gib(best.facts['memory']['peak'])}"
    )
    if records or config.steps:
        data = dataclasses.replace(config.data, global_batch=batch)
        steps = total_steps(dataclasses.replace(config, data=data), records)
        spent = duration(steps, bound, target.chips, price)
        source = f" ({length})" if length else ""
        print(f"run          {steps} steps{source}: at best {spent}")
    print("check again  " + " ".join(best.candidate.flags()))
    print("train with   " + " ".join(best.candidate.training_flags()))
    return 0


def seconds_of(config: TrainConfig) -> list[str]:
    """How many seconds a clip spans, where the config names data that are here."""
    if not (config.data.train or config.data.mixture):
        return []
    found = seconds.of_training(config, mixture.open_components(config.data))
    return seconds.lines(config, found, learned(config.init_from) if config.init_from else None)


def main() -> None:
    """Compiles a recipe for a slice and says what it needs; the exit code."""
    flags.adopt_module_key_flags(cli)
    topology = flags.DEFINE_string(
        "topology", None, "v5e:16x16, v4:4x4x4, v5p:..., v5e:16x16*2, gpu:h100x8, cpu:8"
    )
    mesh = flags.DEFINE_string("mesh", "", "data=32,fsdp=8,tensor=1; default: that of the config")
    batch = flags.DEFINE_integer("batch", 0, "Clips per step over all chips")
    remat = flags.DEFINE_string("remat", "", "Remat policy: none, full, attention, dots")
    records = flags.DEFINE_string(
        "records", "", "Clips of the dataset, or its name (k400, ssv2), for the length of the run"
    )
    classes = flags.DEFINE_integer("classes", 0, "Classes of a classifier's dataset")
    price = flags.DEFINE_float("price", 0.0, "Of one chip-hour, for the cost of the run")
    fast = flags.DEFINE_bool("fast", False, "Compile with fewer optimizations: half the time")
    output = flags.DEFINE_string("json", "", "Write the facts to this file as well")
    brief = flags.DEFINE_bool("quick", False, "Compile nothing: state, batch and compute bound")
    searching = flags.DEFINE_bool("search", False, "Look for the best mesh, remat, microbatches")
    free = flags.DEFINE_bool("search_batch", False, "Search over clips per chip as well")
    compiles = flags.DEFINE_integer("search_compiles", 8, "Most programs to compile", 1)
    remembered = flags.DEFINE_string("search_cache", "", f"Default: {default_path()}")

    def run() -> int:
        if not topology.value:
            raise ValueError("no --topology given; for example --topology=v5e:16x16 or cpu:8")
        config = adjust(cli.typed_config(), mesh=mesh.value, batch=batch.value, remat=remat.value)
        if brief.value:
            text, fits = estimate(
                config, topology.value, records.value, classes=classes.value, price=price.value
            )
            print(text, flush=True)
            return 0 if fits else 1
        length, known_classes, source = find_records(records.value, config)
        many = classes.value or known_classes or CLASSES
        if output.value:
            check_file("--json", output.value)
        target = open_slice(topology.value)
        if searching.value or free.value:
            return search_best(
                config,
                target,
                length,
                many,
                compiles=compiles.value,
                free_batch=free.value,
                fast=fast.value,
                cache=CompileCache(
                    local_only("--search_cache", remembered.value or default_path())
                ),
                price=price.value,
                length=source,
            )
        planned = prepare(config, target, length, many)
        checks = check_steps(planned, target, fast=fast.value)
        known = bool(length) or config.steps > 0
        texts = (
            report(planned, target, each, length_known=known, length=source, price=price.value)
            for each in checks
        )
        print("\n\n".join(texts), flush=True)
        for line in seconds_of(config):
            print(f"seconds      {line}", flush=True)
        if output.value:
            facts = facts_of(planned, target, checks)
            Path(output.value).write_text(json.dumps(facts, indent=2) + "\n")
        if any(check.unknown(target) for check in checks):
            return 3
        bad = whole_parameters(planned) or any(gathers_everything(planned, each) for each in checks)
        return 0 if all(check.fits(target.chip) for check in checks) and not bad else 1

    cli.run(run)


if __name__ == "__main__":
    main()
