"""The smallest student and teachers that alignment works with, and runs of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.checkpoint.frozen import load_frozen
from internvideo_jax.config import MeshConfig, OptimConfig, TrainConfig
from internvideo_jax.layers.functional import FunctionalModel
from internvideo_jax.objectives.alignment import Alignment
from internvideo_jax.ops.pixels import patchify, to_unit
from internvideo_jax.ops.tokens import take
from internvideo_jax.protocols import ClipInput, Inputs, Traits
from internvideo_jax.run.build import Run, build
from internvideo_jax.run.step import init_state, make_train_step
from internvideo_jax.types import Batch

ROWS = 16


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Stack(nnx.Module):
    """Embedding and `depth` layers, whose kernels have the layers as their first axis."""

    def __init__(self, pixels: int, width: int, depth: int, final: int, rngs: nnx.Rngs):
        def kernel(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape) / shape[-2] ** 0.5)

        self.embed = nnx.Dict(kernel=kernel(pixels, width), bias=nnx.Param(jnp.zeros(width)))
        self.blocks = nnx.Dict(kernel=kernel(depth, width, width))
        self.final = nnx.Dict(kernel=kernel(width, final or 1))

    def __call__(self, patches: jax.Array, layers: Sequence[int]) -> tuple[jax.Array, jax.Array]:
        x = (patches - 0.5) @ self.embed["kernel"][...] + self.embed["bias"][...]
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)  # the class token
        intermediates = []
        for layer, kernel in enumerate(self.blocks["kernel"][...]):
            x = x + jnp.tanh(x @ kernel.astype(x.dtype))
            intermediates += [x] if layer in layers else []
        return jnp.stack(intermediates), x.mean(axis=1) @ self.final["kernel"][...].astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Network:
    """What student and teachers share."""

    name: str = "toy"
    frames: int = 2
    resolution: int = 16
    patch: int = 4
    tubelet: int = 1
    channels: int = 32
    depth: int = 2
    dtype: str = "float32"

    sharding_rules: ClassVar[Any] = (
        (r"embed/kernel", (None, "fsdp")),
        (r"blocks/kernel", (None, "fsdp", "tensor")),
        (r"final/kernel", ("fsdp", None)),
    )

    @property
    def grid(self) -> tuple[int, int, int]:
        return (
            self.frames // self.tubelet,
            self.resolution // self.patch,
            self.resolution // self.patch,
        )

    @property
    def pixels(self) -> int:
        return self.tubelet * self.patch**2 * 3

    @property
    def inputs(self) -> Inputs:
        half, shape = (
            (0.5,) * 3,
            (self.frames, self.resolution, self.grid, self.tubelet, self.patch),
        )
        return Inputs(ClipInput(*shape, half, half))

    @property
    def traits(self) -> Traits:
        return Traits()

    def smallest(self) -> Any:
        return self

    def forward_flops(self, visible: int | None = None) -> float:
        tokens = int(np.prod(self.grid)) if visible is None else visible
        return 2.0 * tokens * self.channels * (self.pixels + self.depth * self.channels)


@dataclasses.dataclass(frozen=True)
class Teacher(Network):
    init_from: str = "random"
    layers: Sequence[int] = (0, 1)
    class_token: bool = True
    per_frame: bool = True
    final_width: int = 8
    attends: bool = True

    @property
    def width(self) -> int:
        return self.channels

    def model(self) -> FunctionalModel:
        return FunctionalModel(self, TeacherNetwork)


class TeacherNetwork(nnx.Module):
    def __init__(self, config: Teacher, rngs: nnx.Rngs):
        self.config = config
        self.stack = Stack(config.pixels, config.channels, config.depth, config.final_width, rngs)

    def __call__(self, video: jax.Array) -> dict[str, jax.Array]:
        config = self.config
        assert video.shape[1] == config.frames, video.shape
        patches = patchify(to_unit(video), config.tubelet, config.patch)
        intermediates, final = self.stack(patches, config.layers)
        made = {"middle": unit(intermediates if config.class_token else intermediates[:, :, 1:])}
        if config.final_width:
            made["final"] = unit(final)
        if config.attends:
            groups = config.grid[0] if config.per_frame else 1
            attention = jax.nn.softmax(intermediates[-1, :, 1:, 0]).reshape(len(video), groups, -1)
            made["attention"] = attention
        return made

    def visible_targets(self, video: jax.Array, draw: Any) -> dict[str, jax.Array]:
        made = self(video)
        visible = draw(made.get("attention"))
        places = visible
        if self.config.class_token:
            places = jnp.concatenate([jnp.zeros_like(visible[:, :1]), visible + 1], axis=1)
        middle = jnp.stack([take(layer, places) for layer in made["middle"]])
        return {**made, "middle": middle, "visible": visible}


@dataclasses.dataclass(frozen=True)
class Student(Network):
    stride: int = 2
    clip_layers: Sequence[int] = (0, 1)
    clip_width: int = 32
    final_width: int = 8
    mae_layers: Sequence[int] = (1,)
    mae_width: int = 16
    class_token: ClassVar[bool] = True

    @property
    def inputs(self) -> Inputs:
        clip = super().inputs.clip
        assert clip is not None
        return Inputs(dataclasses.replace(clip, stride=self.stride))

    @property
    def traits(self) -> Traits:
        return Traits(student=self)

    @property
    def clip_frames(self) -> int:
        return self.stride * self.frames

    def model(self) -> FunctionalModel:
        return FunctionalModel(self, StudentNetwork)


class StudentNetwork(nnx.Module):
    def __init__(self, config: Student, rngs: nnx.Rngs):
        self.config = config
        self.stack = Stack(config.pixels, config.channels, config.depth, config.final_width, rngs)
        self.mae = nnx.Param(
            jax.random.normal(rngs.params(), (config.channels, config.mae_width)) * 0.1
        )

    def __call__(
        self, video: jax.Array, visible: jax.Array, keys: Any = None
    ) -> dict[str, jax.Array]:
        config = self.config
        patches = patchify(to_unit(video), config.tubelet, config.patch)
        intermediates, final = self.stack(take(patches, visible), config.clip_layers)
        return {
            "clip_middle": unit(intermediates),
            "clip_final": unit(final),
            "mae": unit(intermediates[-1:, :, 1:] @ self.mae[...]),
        }


CLIP = Teacher(name="toy_clip")
MAE = Teacher(
    name="toy_mae",
    frames=4,
    tubelet=2,
    channels=16,
    layers=(1,),
    class_token=False,
    final_width=0,
    attends=False,
)


def config_of(
    objective: Alignment,
    mesh: tuple[int, int, int] = (1, 1, 1),
    *,
    model: Any = None,
    accumulate: int = 1,
    split: str = "fsdp",
    steps: int = 4,
    **data: Any,
) -> TrainConfig:
    return TrainConfig(
        model=model or Student(),
        objective=objective,
        data=DataConfig(
            global_batch=ROWS, clip=ClipConfig(frames=4, stride=1, resolution=16), **data
        ),
        optim=OptimConfig(lr=1e-2, lr_batch=0, warmup_steps=2, accumulate=accumulate),
        mesh=MeshConfig(*mesh, shard_above=64, frozen=split),
        steps=steps,
    )


def run_of(config: TrainConfig, devices: Any = None) -> Run:
    return build(config, records=ROWS, devices=devices or jax.devices()[:1])


def batch_of(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {
        "video": rng.integers(0, 256, (ROWS, 4, 16, 16, 3), dtype=np.uint8),
        "position": np.arange(number * ROWS, (number + 1) * ROWS, dtype=np.uint32),
    }


FIRST: dict[int, tuple[Run, Any]] = {}


def fresh(run: Run) -> Any:
    """The first state of a run, whose making is compiled once."""
    if id(run) not in FIRST:
        FIRST[id(run)] = run, jax.device_get(init_state(run))
    return jax.tree.map(jax.device_put, FIRST[id(run)][1], run.plan.shardings)


VALUES = ("loss", "grad_norm", "middle", "final", "mae")


def losses(run: Run, extra: Any = lambda batch: {}, step: Any = None) -> np.ndarray:
    """VALUES of every step.

    Args:
      extra: what it makes of a batch is added to it.
      step: the train step; by default a new one.
    """
    if step is None:
        frozen, _ = load_frozen(run.frozen, run.config.seed, lambda _: None)
        step = make_train_step(run, frozen)
    state, found = fresh(run), []
    for number in range(run.steps):
        batch: Batch = batch_of(number)
        state, metrics = step(state, {**batch, **extra(batch)})
        found.append([metrics[f"train/{name}"] for name in VALUES])
    return np.array(jax.device_get(found), np.float64)
