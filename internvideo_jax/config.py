"""The typed schema of a run, and the strict road from a plain mapping to it.

Recipes in `configs/` fill these dataclasses; the command line overrides single fields; everything
below the entry points reads frozen dataclasses only. An unknown field is an error that names the
nearest known one, at any depth.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_pipelines.config import DataConfig
from data_pipelines.limits import check_value, limited, limits_of
from internvideo_jax import registry
from internvideo_jax.protocols import ModelConfig
from internvideo_jax.tasks import Evaluator, Objective


def component(kind: str, *, optional: bool = False, many: bool = False) -> Any:
    """A field that holds one registered component, chosen by its `name`; or None if `optional`.

    With `many` it holds a mapping of them by label, empty by default.
    """
    if many:
        return dataclasses.field(default_factory=dict, metadata={"kind": kind, "many": True})
    if optional:
        return dataclasses.field(default=None, metadata={"kind": kind, "optional": True})
    return dataclasses.field(metadata={"kind": kind})


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Logical axes of the device mesh; one of them may be -1, "all that is left"."""

    data: int = limited(-1, least=-1)  # copies of the model, each with its part of the batch
    # The batch is split over this axis too, and so are the parameters.
    fsdp: int = limited(1, least=-1)
    tensor: int = limited(1, least=-1)  # heads and hidden units
    # Parameters smaller than this many elements stay whole on every device.
    shard_above: int = 2**16
    # A larger parameter that fsdp and tensor leave whole on every device is an error: bytes.
    whole_limit: int = 2**26
    # Frozen networks, such as teachers: fsdp (split as the model) | all (over data and fsdp
    # together: least memory, most traffic) | none (whole on every device but for tensor).
    frozen: str = "fsdp"
    # Slices joined by the data-centre network; only `data` spans them. 0 = as the devices say.
    slices: int = 0
    # The tokens of a clip: for long ones. These devices see the same clips.
    sequence: int = limited(1, least=-1)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW or BertAdam, with warm-up and decay to `min_lr`."""

    # adamw, or bert_adam (optim/bert_adam.py: text-video retrieval of InternVideo1).
    algorithm: str = "adamw"
    # optim/schedules.py: cosine (VideoMAE), slowfast (UniFormerV2: over fractional epochs),
    # floored (ViCLIP: never below min_lr, in the warm-up too), unshifted (bert_adam's).
    schedule: str = "cosine"
    lr: float = limited(1.5e-4, least=0)
    min_lr: float = limited(1e-5, least=0)
    warmup_lr: float = limited(0.0, least=0)  # rate of the first step, scaled like the others
    # Learning rates are given for this many examples per step and scaled linearly with
    # data.global_batch, which counts every repeat of a clip (as InternVideo2 does; the VideoMAE
    # recipes count videos: there it is 256 x data.repeats); 0 takes them as they are.
    lr_batch: int = limited(256, least=0)
    warmup_epochs: float = limited(0.0, least=0)
    warmup_steps: int = limited(0, least=0)  # wins over warmup_epochs when positive
    weight_decay: float = limited(0.05, least=0)
    # Regular expressions on the paths of parameters that are decayed although they are no matmul
    # weights; those are always.
    decay_also: Sequence[str] = ()
    b1: float = limited(0.9, least=0, below=1)
    b2: float = limited(0.95, least=0, below=1)
    eps: float = limited(1e-8, least=0)
    layer_decay: float = limited(1.0, above=0)  # lr factor per layer below the head; 1 = off
    # The stack whose depth counts for layer_decay and freeze_layers.
    layer_stack: str = "encoder/blocks"
    # Regular expressions on parameter paths that take the full rate under layer_decay.
    layer_decay_free: Sequence[str] = ()
    clip_norm: float = limited(0.0, least=0)  # global L2 norm of the gradient; 0 = off
    freeze: Sequence[str] = ()  # regular expressions on parameter paths
    # The lowest layers of layer_stack that are not trained. Unlike `freeze` this saves neither time
    # nor memory: layers share one array, and the backward pass goes through all of it.
    freeze_layers: int = 0
    accumulate: int = limited(1, least=1)  # microbatches per step
    ema_decay: float = limited(0.0, least=0, below=1)  # 0 = no averaged parameters
    # Whether the average begins fast: decay min(ema_decay, (1 + s) / (10 + s)) after s updates. The
    # references' averages do not: ema_decay from the first update on.
    ema_ramp: bool = True


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): kernels stay, kernel + alpha / rank * a @ b learns."""

    rank: int = limited(0, least=0)  # 0 = off: everything learns
    alpha: float = limited(0.0, least=0)  # 0 = rank, a factor of 1
    # Regular expressions on parameter paths: kernels that get adapters, and other parameters that
    # learn as they are, such as a head. The rest is frozen.
    targets: Sequence[str] = ("attn/.*kernel$",)
    train: Sequence[str] = ()
    dtype: str = "float32"  # of frozen kernels in memory: float32 | bfloat16


# What products of eight bits are made of (ops/quantized.py): w rounds kernels only.
EIGHT_BITS = ("int8w", "int8", "fp8w", "fp8")


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Products with kernels of 8 bits, in inference and in training (docs/quantization.md)."""

    mode: str = limited("none", known=("none", *EIGHT_BITS))
    # Regular expressions on parameter paths: kernels that are rounded. The default are the
    # projections of attention and the MLPs of all blocks.
    targets: Sequence[str] = (r"blocks/(attn|cross|mlp)/.*kernel$",)
    # In training: products of the gradient in float, or with the gradient rounded as well.
    backward: str = limited("float", known=("float", "rounded"))


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When states are written, and how many are kept."""

    every: int = limited(1000, least=1)  # steps
    # Newest checkpoints kept; two at least, as only the one before the newest is proven.
    keep: int = limited(3, least=1)
    asynchronous: bool = True  # write in the background
    # Continue although the data are not those of the checkpoint: the stream will change.
    accept_new_data: bool = False


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What a run says while it goes on, and leaves at its end."""

    # Steps between log lines, the only points where the host waits for a value.
    every: int = limited(50, least=1)
    report: bool = True  # write report.html at the end
    # tensorboard, wandb, mlflow (each an extra), or module:Class of your own (docs/training.md).
    trackers: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a step counts as hanging: its stacks are written down, and the run may be ended."""

    factor: float = limited(20.0, least=0)  # times the median step; 0 = off
    seconds: float = limited(120.0, least=0)  # but at least this long
    pause_seconds: float = limited(3600.0, least=0)  # limit of one evaluation or save
    abort_seconds: float = limited(0.0, least=0)  # end the process this long after that; 0 = never


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """A trace of a few steps with a one-page summary, in `profile/` of the workdir."""

    start: int = 0  # first traced step, 0 = no trace; the first step of a process compiles
    steps: int = 5


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig = component("model")
    objective: Objective = component("objective")
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig = LoraConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    profile: ProfileConfig = ProfileConfig()
    evals: Mapping[str, Evaluator] = component("evaluator", many=True)
    seed: int = limited(0)  # parameters, masks and drop path; the data have data.seed
    steps: int = 0  # length of the run; either this or epochs
    epochs: float = limited(0.0, least=0)
    # Run, checkpoint, weight file to start from, or the name or address of one (docs/weights.md).
    init_from: str = ""
    # Regular expressions on paths of parameters that must all come from init_from: what a later
    # stage takes over from the one before.
    init_whole: Sequence[str] = ()
    # Rows of the head of those weights that are kept, and of the checkpoint of an evaluation:
    # names | first | fresh | a list file, see checkpoint/classes.py. Empty: all rows if the classes
    # are the same, a fresh head if their number is another.
    head_rows: str = ""
    max_nonfinite: int = 10  # skipped steps of one start after which the run stops


# Names that fields had -> their names now. A class that has a field of the old name keeps it.
FORMER = {
    "ratio": "mask_ratio",
    "segments": "clips",
    "size": "resolution",
    "tensorboard": "trackers",
    "views": "fixed_views",
}


def current(cls: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A plain config that an earlier version wrote, under the names that fields have now.

    Args:
      cls: the dataclass that it is a config of.

    Returns:
      Its values; fields and components that are unknown stay as they are.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints, found = typing.get_type_hints(cls), {}
    for key, value in stored.items():
        name = FORMER[key] if key not in fields and FORMER.get(key) in fields else key
        kind = fields[name].metadata.get("kind") if name in fields else None
        if name == "trackers" and isinstance(value, bool):  # a switch that became a member
            value = (key,) if value else ()
        if not isinstance(value, Mapping):
            found[name] = value
        elif kind and fields[name].metadata.get("many"):
            found[name] = {label: _current(kind, item) for label, item in value.items()}
        elif kind:
            found[name] = _current(kind, value)
        else:
            hint = hints.get(name)
            found[name] = current(hint, value) if dataclasses.is_dataclass(hint) else value  # pyright: ignore[reportArgumentType]
    return found


def _current(kind: str, stored: Any) -> Any:
    known = isinstance(stored, Mapping) and stored.get("name") in registry.KINDS[kind]
    return current(registry.resolve(kind, stored["name"]), stored) if known else stored


def unknown(name: str, fields: Collection[str]) -> str:
    """What to say of a field that is none of `fields`: its name now, or the near matches."""
    now = FORMER.get(name)
    return f"it is called {now} now" if now in fields else registry.suggest(name, fields)


def as_plain(value: object) -> Any:
    """Dataclasses, mappings and sequences as dicts and tuples of plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_plain(vars(value)[f.name]) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(as_plain(item) for item in value)
    return value


def to_typed(cls: type, plain: Mapping[str, Any], path: str = "config") -> Any:
    """Builds the dataclass `cls` from nested mappings.

    Raises:
      ValueError: unknown or missing field, wrong type, unknown component; names the field's path,
        what was found, what was expected and the nearest known name.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints, limits = typing.get_type_hints(cls), limits_of(cls)
    for name in plain:
        if name not in fields:
            raise ValueError(f"unknown field {path}.{name}: {unknown(name, fields)}")
    values = {}
    for name, field in fields.items():
        where = f"{path}.{name}"
        if name not in plain:
            if _required(field):
                raise ValueError(f"missing field {where}: it has no default")
            continue
        found = plain[name]
        kind = field.metadata.get("kind")
        if kind and field.metadata.get("many"):
            values[name] = {
                key: _component(kind, item, f"{where}.{key}")
                for key, item in _mapping(found, where).items()
            }
        elif kind:
            absent = found is None and field.metadata.get("optional")
            values[name] = None if absent else _component(kind, found, where)
        else:
            values[name] = _convert(hints[name], found, where)
            check_value(values[name], limits.get(name), where)
    return cls(**values)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _mapping(found: object, where: str) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise ValueError(f"{where}: expected a mapping, found {found!r}")
    return found


def _component(kind: str, found: object, where: str) -> Any:
    if dataclasses.is_dataclass(found):
        return found
    found = _mapping(found, where)
    if "name" not in found:
        raise ValueError(f"{where}: expected a field `name` that says which {kind} it is")
    return to_typed(registry.resolve(kind, found["name"]), found, where)


def _convert(hint: Any, found: object, where: str) -> Any:
    """`found` as the annotated type; ints become floats, lists become tuples, nothing else."""
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(found):
            return found
        return to_typed(hint, _mapping(found, where), where)  # pyright: ignore[reportArgumentType]
    origin = typing.get_origin(hint)
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        if not isinstance(found, list | tuple):
            raise ValueError(f"{where}: expected a sequence, found {found!r}")
        item = (typing.get_args(hint) or (Any,))[0]
        return tuple(_convert(item, entry, where) for entry in found)
    if origin in (dict, Mapping):
        return dict(_mapping(found, where))
    if isinstance(hint, types.UnionType) or origin is typing.Union or hint is Any:
        return found
    if hint is float and isinstance(found, int) and not isinstance(found, bool):
        return float(found)
    if not isinstance(found, hint) or (hint is int and isinstance(found, bool)):
        raise ValueError(
            f"{where}: expected {hint.__name__}, found {found!r} ({type(found).__name__})"
        )
    return found


Records = int | Mapping[str, int]  # of the training data: one number, or one per media type


def total_steps(config: TrainConfig, records: Records) -> int:
    """Number of optimizer steps of the run. An epoch is as many as `steps_per_epoch` says.

    Raises:
      ValueError: neither or both of steps and epochs given, or an epoch without a single step.
    """
    if (config.steps > 0) == (config.epochs > 0):
        raise ValueError(
            f"config.steps = {config.steps} and config.epochs = {config.epochs}: "
            "expected exactly one of them to be positive"
        )
    if config.steps:
        return config.steps
    each = steps_per_epoch(config, records)
    if (steps := round(config.epochs * each)) < 1:
        raise ValueError(
            f"config.epochs = {config.epochs:g} of {each} steps is no step at all; raise it, or "
            "give the length as config.steps"
        )
    return steps


def steps_per_epoch(config: TrainConfig, records: Records) -> int:
    """Full batches in one pass over all records, each giving `data.repeats` examples.

    Media types are counted apart, as a batch holds one of them.
    """
    data, steps = config.data, 0
    for media, count in ({"video": records} if isinstance(records, int) else records).items():
        full = count * data.repeats // data.batch_of(media)
        if full == 0:
            raise ValueError(
                f"the training split has {count} records, fewer than one batch "
                f"(config.data.global_batch = {data.batch_of(media)}); lower the batch size or "
                "give the length as config.steps"
            )
        steps += full
    return steps


def warmup_steps(config: TrainConfig, records: Records) -> int:
    """Steps of the linear warm-up."""
    if config.optim.warmup_steps > 0 or config.optim.warmup_epochs == 0:
        return config.optim.warmup_steps
    return round(config.optim.warmup_epochs * steps_per_epoch(config, records))
