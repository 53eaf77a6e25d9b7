"""What the search of a mesh chooses from: meshes with what is chosen beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from internvideo_jax.compile_check.aot import frozen_bytes, ragged_shards
from internvideo_jax.parallel.mesh import AXES, SEQUENCE, auto_mesh
from internvideo_jax.parallel.rules import bytes_per_device
from internvideo_jax.run.build import Run
from internvideo_jax.run.state import place_state, plan_frozen
from internvideo_jax.types import flatten_paths

Sizes = tuple[int, ...]  # of the axes data, fsdp, tensor, and of sequence where it is used
TENSOR = (1, 2, 4, 8)
SHARED = (1, 2, 4, 8, 16, 32, 64)  # devices that share the tokens of a clip
LONG = 1024  # tokens that a device should have at least, before those of a clip are shared out


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh with what is chosen beside it."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    microbatches: int
    batch: int
    sequence: int = 1

    @property
    def mesh(self) -> Sizes:
        """Sizes of the axes data, fsdp, tensor, and of sequence where it is used."""
        used = () if self.sequence == 1 else (self.sequence,)
        return self.data, self.fsdp, self.tensor, *used

    @property
    def axes(self) -> dict[str, int]:
        """The same by name."""
        return named(self.mesh)

    @property
    def kind(self) -> tuple[str, int, int]:
        """What decides which activations a device keeps of a clip."""
        return self.remat, self.tensor, self.sequence

    @property
    def rows(self) -> float:
        """Clips that a device works on at a time, alone or with those that share their tokens."""
        return self.batch / (self.data * self.fsdp) / self.microbatches

    @property
    def clips(self) -> float:
        """That a device computes in a step; of one that it shares its part."""
        return self.rows * self.microbatches / self.sequence

    def flags(self) -> list[str]:
        """Of compile_check; the last one is a field of the recipe."""
        return [
            "--mesh=" + ",".join(f"{axis}={n}" for axis, n in self.axes.items()),
            f"--batch={self.batch}",
            f"--remat={self.remat}",
            f"--config.optim.accumulate={self.microbatches}",
        ]

    def training_flags(self) -> list[str]:
        """The same for internvideo_jax.train."""
        return [
            *(f"--config.mesh.{axis}={n}" for axis, n in self.axes.items()),
            f"--config.data.global_batch={self.batch}",
            f"--config.model.remat={self.remat}",
            f"--config.optim.accumulate={self.microbatches}",
        ]


@dataclasses.dataclass(frozen=True)
class Place:
    """What a mesh means for a recipe, without compiling."""

    state: int  # bytes on one device
    gradients: int
    parameters: float  # elements on one device when gathered over fsdp
    ragged: int


def named(sizes: Sizes) -> dict[str, int]:
    """Axis -> size."""
    return dict(zip((*AXES, SEQUENCE), sizes, strict=False))


def meshes(devices: int, heads: list[int], tokens: int = 0) -> Iterator[Sizes]:
    """Sizes in the order of fsdp, then tensor, then sequence; tensor divides all heads.

    Args:
      tokens: of a clip, of which a device gets LONG at least.
    """
    for fsdp in range(1, devices + 1):
        for tensor in TENSOR:
            for sequence in (n for n in SHARED if n == 1 or tokens >= n * LONG):
                within = fsdp * tensor * sequence
                if devices % within == 0 and all(n % tensor == 0 for n in heads):
                    used = () if sequence == 1 else (sequence,)
                    yield devices // within, fsdp, tensor, *used


def place(run: Run, sizes: Sizes) -> tuple[Run, Place]:
    """`run` on another mesh; ValueError where a sharding rule does not fit it."""
    mesh: Any = auto_mesh(named(sizes))
    config = dataclasses.replace(
        run.config, mesh=dataclasses.replace(run.config.mesh, **named(sizes))
    )
    shapes = run.plan.shapes
    shardings, sharded = place_state(shapes, run.model, mesh, config.mesh, check=False)
    plan = dataclasses.replace(run.plan, shardings=shardings, model=sharded)
    frozen = plan_frozen(config, mesh)
    moved = dataclasses.replace(run, config=config, mesh=mesh, plan=plan, frozen=frozen)
    gradients = bytes_per_device(shapes.params, shardings.params)
    state = bytes_per_device(shapes, shardings) + frozen_bytes(moved)
    count = sum(leaf.size for leaf in flatten_paths(plan.params).values())
    return moved, Place(state, gradients, count / sizes[2], len(ragged_shards(moved)))
