"""How long does saving a checkpoint hold up the training loop? Against the time of one step.

    python benchmarks/checkpoint.py --config=configs/videomae/pretrain.py:size=base \\
        --config.data.global_batch=2 --config.steps=1000 --config.epochs=0 \\
        --config.optim.warmup_epochs=0 --workdir=/tmp/checkpoint_bench

Runs the step on random bytes that already lie in memory, as the loop does (two steps in flight),
and saves after every --every steps in the background. Two figures per save, in units of the median
undisturbed step: `call`, the time in which `save` does not return; `stall`, what the steps up to
the next save took longer than undisturbed ones, all together (writing takes cores from a step that
runs on the CPU, which it does not on a TPU). Undisturbed steps are the last ones before each save,
when the previous one has ended; saves that had not are counted.

Prints medians with quartiles, and their ratio to the step. Exit code 1 when a median call takes
longer than one step, 3 on a busy host.
"""

from __future__ import annotations

import collections
import json
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from absl import flags
from host import Host, spread

from internvideo_jax import cli
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.parallel.mesh import batch_sharding
from internvideo_jax.run.build import build
from internvideo_jax.run.loop import IN_FLIGHT
from internvideo_jax.run.step import init_state, make_train_step

SAVES = flags.DEFINE_integer("saves", 7, "Saves to measure.", lower_bound=3)
EVERY = flags.DEFINE_integer("every", 12, "Steps between two saves.", lower_bound=6)
WORKDIR = flags.DEFINE_string("workdir", None, "Scratch folder; its checkpoints are removed.")
OUT = flags.DEFINE_string("out", "", "JSON file to write.")
ANYWAY = flags.DEFINE_bool("anyway", False, "Conclude on a busy host too.")
UNDISTURBED = 3  # steps before each save


def measure() -> dict[str, Any]:
    config = cli.typed_config()
    run = build(config, records=1_000_000, classes=400)
    data, clip = config.data, config.data.clip
    rng = np.random.default_rng(0)
    shape = (data.global_batch, clip.frames, clip.resolution, clip.resolution, 3)
    batch = {
        "video": rng.integers(0, 256, shape, np.uint8),
        "label": np.zeros(data.global_batch, np.int32),
        "index": np.arange(data.global_batch, dtype=np.int32),
        "position": np.arange(data.global_batch, dtype=np.uint32),
    }
    placed = jax.device_put(batch, batch_sharding(run.mesh))
    state, step_function = init_state(run), make_train_step(run)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    folder = Path(WORKDIR.value or "checkpoint_bench")
    checkpoints = Checkpoints(folder, config.checkpoint)
    in_flight: collections.deque[Any] = collections.deque()
    calls, stalls, steps, late_saves = [], [], [], 0
    number = 0

    def step() -> float:
        nonlocal state, number
        began = time.perf_counter()
        state, metrics = step_function(state, placed)
        in_flight.append(metrics)
        if len(in_flight) > IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        number += 1
        return time.perf_counter() - began

    for save in range(SAVES.value + 1):  # the first one warms up
        while in_flight:  # the steps in flight belong to the steps, not to the save
            jax.block_until_ready(in_flight.popleft())
        began = time.perf_counter()
        if save:
            checkpoints.save(number, state, {})
        called = time.perf_counter() - began
        durations = [step() for _ in range(EVERY.value)]
        while in_flight:
            jax.block_until_ready(in_flight.popleft())
        whole = time.perf_counter() - began
        if not save:
            continue
        waited = time.perf_counter()
        checkpoints.wait()
        late_saves += time.perf_counter() - waited > 0.01
        quiet = durations[-UNDISTURBED:]
        steps += quiet
        calls.append(called)
        stalls.append(whole - EVERY.value * median(quiet))
    checkpoints.close()
    shutil.rmtree(folder / "checkpoints")
    return {
        "config": cli.CONFIG.value.model.name,
        "state_mib": size / 2**20,
        "step": steps,
        "call": calls,
        "stall": stalls,
        "late_saves": late_saves,
    }


def report(facts: dict[str, Any]) -> list[str]:
    """Prints the table; what was missed."""
    one = median(facts["step"])
    print(
        f"{facts['config']}: state {facts['state_mib']:.0f} MiB, {len(facts['call'])} saves, one "
        f"every {EVERY.value} steps"
    )
    for name in ("step", "call", "stall"):
        found = spread(facts[name])
        print(f"  {name:6} {found.text()}, {found.median / one:.2f} steps")
    if facts["late_saves"]:
        print(f"{facts['late_saves']} saves had not ended before the next; give a larger --every")
    called = median(facts["call"]) / one
    return [] if called < 1 else [f"a call of save takes {called:.2f} steps, at most 1"]


def main() -> int:
    host = Host()
    facts = measure()
    missed = report(facts)
    if OUT.value:
        Path(OUT.value).write_text(json.dumps({**facts, "host": host.facts()}, indent=1) + "\n")
    return host.verdict(missed, targets=1, anyway=ANYWAY.value)


if __name__ == "__main__":
    flags.adopt_module_key_flags(cli)
    cli.run(main)
