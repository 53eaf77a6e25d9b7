"""What can be said of a recipe on a slice in seconds: nothing is compiled, no TPU compiler needed.

The batch, the mesh and the shardings are those of the slice, on CPU devices that stand for its own.
"""

from __future__ import annotations

from internvideo_jax.compile_check.aot import check_steps, whole_parameters
from internvideo_jax.compile_check.hardware import Slice, open_slice
from internvideo_jax.compile_check.length import find_records
from internvideo_jax.compile_check.report import report
from internvideo_jax.config import Records, TrainConfig
from internvideo_jax.run.build import Run, build

CLASSES = 400  # of a classifier whose dataset is not here: Kinetics-400


def prepare(config: TrainConfig, target: Slice, records: Records, classes: int) -> Run:
    """The pieces of the run on the devices of the slice.

    Without `records` an epoch is one step: enough to compile, of no use for the length.
    """
    return build(config, records or config.data.global_batch, classes, target.devices)


def estimate(
    config: TrainConfig, topology: str, records: str = "", *, classes: int = 0, price: float = 0.0
) -> tuple[str, bool]:
    """What the command prints, and whether state and batch alone fit into the memory.

    Must run before anything else asks jax for devices; arguments as of the command's flags.

    Raises:
      ValueError: a slice that does not exist, or settings that contradict it or each other.
    """
    length, known_classes, source = find_records(records, config)
    target = open_slice(topology, stand_ins=True)
    run = prepare(config, target, length, classes or known_classes or CLASSES)
    checks = check_steps(run, target)
    known = bool(length) or config.steps > 0
    text = "\n\n".join(
        report(run, target, check, length_known=known, length=source, price=price)
        for check in checks
    )
    chip = target.chip
    fits = chip is None or all(check.arguments <= chip.hbm for check in checks)
    return text, fits and not whole_parameters(run)
