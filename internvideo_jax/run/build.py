"""From a config to the pieces of a run, each checked before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipelines.stream import mixture
from internvideo_jax.config import Records, TrainConfig, total_steps, warmup_steps
from internvideo_jax.inference.quantized import network, note
from internvideo_jax.inference.texts import fitting_tokenizer
from internvideo_jax.optim.factory import Optimizer, make_optimizer
from internvideo_jax.optim.schedules import make_schedule
from internvideo_jax.parallel.mesh import SEQUENCE, batch_parts, check_batch, make_mesh
from internvideo_jax.parallel.rules import sharding_notes
from internvideo_jax.protocols import Model, ModelConfig
from internvideo_jax.run import small
from internvideo_jax.run.parameters import Parametrisation, parametrisation
from internvideo_jax.run.state import FrozenPlan, StatePlan, plan_frozen, plan_state
from internvideo_jax.run.target_cache import check_targets
from internvideo_jax.tasks import Objective
from internvideo_jax.telemetry.overview import frozen_table, memory_estimate, parameter_table


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that is known about a run before its first step."""

    config: TrainConfig  # resolved: classes filled in
    classes: tuple[str, ...]  # names for the rows of the head; empty: no head, or not known
    mesh: Mesh
    model: Model
    parametrisation: Parametrisation
    objective: Objective
    optimizer: Optimizer
    plan: StatePlan
    records: int
    steps: int
    summary: str
    # Networks of the step that do not learn, by field of the objective: teachers.
    frozen: Mapping[str, FrozenPlan] = dataclasses.field(default_factory=dict)
    opened: mixture.Opened = ()  # the sets of the training data; empty where none were read

    @property
    def flops(self) -> float:
        """Model FLOPs of one training example; those of frozen networks are not counted."""
        return self.objective.flops(self.config.model)

    @property
    def frozen_flops(self) -> float:
        """FLOPs of the frozen networks for one training example."""
        return self.objective.teacher_flops()


def build(
    config: TrainConfig,
    records: Records | None = None,
    classes: int = 0,
    devices: Sequence[Any] | None = None,
    given: Collection[str] = (),
) -> Run:
    """Builds the pieces of a run.

    Args:
      records, classes: of the training split; by default read from config.data.
      devices: of the mesh; by default all of this job. Those of a described topology do for
        everything but running.
      given: fields that the command line sets; `small.fit` leaves them alone.

    Raises:
      ValueError: settings that contradict each other, the data or the devices.
    """
    names: tuple[str, ...] = ()
    notes: list[str] = []
    opened: mixture.Opened = ()
    if records is None:
        opened = mixture.open_components(config.data)
        records, names = read_data(config, opened)
        classes = len(names)
        check_vocabulary(config)
        check_cached(config)
        notes = check_targets(config, opened)
    per_media = {"video": records} if isinstance(records, int) else records
    config = with_classes(config, classes)
    mesh = make_mesh(config.mesh, devices)
    config, fitted = small.fit(config, per_media, batch_unit(config, mesh), given)
    check(config, per_media, mesh)
    model = network(config)
    steps, warmup = total_steps(config, records), warmup_steps(config, records)
    check_warmup(config, warmup, steps)
    heads = config.model.traits.heads
    grid = heads.head_grid if heads else None
    learning = parametrisation(config.lora, model)
    shapes, _ = jax.eval_shape(learning.split, model.shapes(), jax.random.key(0))
    schedule = _schedule(config, warmup, steps)
    optimizer = make_optimizer(config.optim, shapes, schedule, grid, learning.frozen)
    plan = plan_state(config, model, learning, optimizer, mesh)
    frozen = plan_frozen(config, mesh)
    summary = "\n".join(
        [
            *_tables(config, model, plan, frozen, mesh, notes),
            *([fitted] if fitted else []),
            _length_line(config, mesh, sum(per_media.values()), warmup, steps),
        ]
    )
    total = sum(per_media.values())
    names = names if config.model.traits.classifier else ()
    return Run(
        config,
        names,
        mesh,
        model,
        learning,
        config.objective,
        optimizer,
        plan,
        total,
        steps,
        summary,
        frozen,
        opened,
    )


def check(config: TrainConfig, records: Mapping[str, int], mesh: Mesh) -> None:
    """ValueError for settings that contradict each other, the data or the devices."""
    accumulate = config.optim.accumulate
    check_batch(mesh, config.data.global_batch, "config.data.global_batch", accumulate)
    if "image" in records:
        images = config.data.batch_of("image")
        check_batch(mesh, images, "config.data.image.global_batch", accumulate)
    for media in records:
        check_clip(config, media)
        check_pairs(config, media, mesh)
    check_reads(config)
    config.objective.check(config.model)


def check_warmup(config: TrainConfig, warmup: int, steps: int) -> None:
    """ValueError for a warm-up as long as the run."""
    if warmup >= steps:
        optim = config.optim
        raise ValueError(
            f"the warm-up has {warmup} steps (config.optim.warmup_steps = {optim.warmup_steps}, "
            f"config.optim.warmup_epochs = {optim.warmup_epochs:g}), the run {steps} (config.steps "
            f"= {config.steps}, config.epochs = {config.epochs:g}); expected it to be shorter"
        )


def _rate_scale(config: TrainConfig) -> float:
    """What the rates of the config are multiplied by."""
    return config.data.global_batch / config.optim.lr_batch if config.optim.lr_batch else 1.0


def _schedule(config: TrainConfig, warmup: int, steps: int) -> Any:
    optim, scale = config.optim, _rate_scale(config)
    base, final, start = (scale * rate for rate in (optim.lr, optim.min_lr, optim.warmup_lr))
    return make_schedule(optim.schedule, base, final, start, warmup, steps)


def _tables(
    config: TrainConfig,
    model: Model,
    plan: StatePlan,
    frozen: Mapping[str, FrozenPlan],
    mesh: Mesh,
    notes: Sequence[str],
) -> list[str]:
    """Parameters of all networks, what is odd about them, and the memory they take."""
    shapes, shardings, clip = plan.params, plan.param_shardings, config.data.clip
    return [
        parameter_table(shapes, shardings),
        *sharding_notes(shapes, shardings, config.model.sharding_rules, mesh),
        *head_notes(config.model, mesh.shape["tensor"]),
        *filter(None, [note(model, mesh, training=True)]),
        *token_notes(config.model, mesh.shape.get(SEQUENCE, 1)),
        *notes,
        *(frozen_table(network) for network in frozen.values()),
        memory_estimate(
            plan.shapes,
            plan.shardings,
            config.data.global_batch * clip.frames * clip.resolution**2 * 3,
            [(network.shapes, network.shardings) for network in frozen.values()],
        ),
    ]


def _length_line(config: TrainConfig, mesh: Mesh, clips: int, warmup: int, steps: int) -> str:
    lr, scale = config.optim.lr, _rate_scale(config)
    return (
        f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}; {clips} clips; {steps} "
        f"steps of {config.data.global_batch} clips; learning rate {lr:g} x {scale:g} = "
        f"{lr * scale:g} after {warmup} steps of warm-up"
    )


def batch_unit(config: TrainConfig, mesh: Mesh) -> int:
    """What a batch must be a multiple of: devices x microbatches, whole pairs where clips mix."""
    pairs = 2 if config.objective.pairs else 1
    devices = batch_parts(mesh)
    return config.optim.accumulate * math.lcm(devices, pairs)


def head_notes(model: ModelConfig, tensor: int) -> list[str]:
    """A line for every stack of blocks whose heads the `tensor` axis would cut."""
    return [
        f"config.mesh.tensor = {tensor} does not divide the {tower.heads} heads of "
        f"config.model.{name}: its attention moves data between devices; sizes that do: "
        f"{[n for n in range(1, tensor + 1) if tower.heads % n == 0]}"
        for name, tower in model.traits.stacks.items()
        if tower.heads % tensor
    ]


def token_notes(model: ModelConfig, sequence: int) -> list[str]:
    """A line where the `sequence` axis would leave clips whole on every device."""
    clip = model.inputs.clip
    found = ""
    if clip is None:
        found = "reads no clips"
    elif model.traits.per_frame and clip.grid[0] % sequence:
        fitting = [n for n in range(1, clip.grid[0] + 1) if clip.grid[0] % n == 0]
        found = f"looks at {clip.grid[0]} frames one by one; sizes that share them out: {fitting}"
    elif math.prod(clip.grid) < sequence:
        found = f"has {math.prod(clip.grid)} tokens"
    if sequence == 1 or not found:
        return []
    return [f"config.mesh.sequence = {sequence} splits nothing: config.model {found}"]


def read_data(
    config: TrainConfig, opened: mixture.Opened
) -> tuple[Mapping[str, int], tuple[str, ...]]:
    """Records of each media type and the class names of the training data.

    Raises:
      ValueError: the model learns classes, and the sets of a mixture have different ones.
    """
    classes, _ = mixture.join_classes(opened, config.data.merge_classes)
    if classes is None and config.model.traits.classifier:
        lists = ", ".join(f"{part.name} {len(dataset.classes)}" for part, dataset in opened)
        raise ValueError(
            f"the sets of config.data.mixture have different class lists ({lists} classes); join "
            "them with --config.data.merge_classes=name (the same name is the same class) or "
            "=offset (classes of different sets stay apart), or train without labels"
        )
    parts, records = [part for part, _ in opened], [len(dataset.used) for _, dataset in opened]
    data = config.data
    if not data.global_batch:  # it will follow from the records that are counted here
        data = dataclasses.replace(data, global_batch=data.repeats)
    plan = mixture.make_plan(data, parts, records)
    return plan.media_records(), tuple(classes or ())


def check_reads(config: TrainConfig) -> None:
    """ValueError for a part of the batch that nothing reads, or no device can hold.

    A model says in `inputs`, an objective in `reads` what it takes: text, audio, features.
    """
    data = config.data
    reads = (*config.model.inputs.parts, *config.objective.reads)
    parts = [part.features for part in mixture.components_of(data)]
    for kind, field, value, off in (
        ("text", "text", data.text, "off"),
        ("audio", "audio_seconds", data.audio_seconds, 0.0),
        ("features", "features", next(filter(None, parts), ""), ""),
    ):
        if value != off and kind not in reads:
            raise ValueError(
                f"config.data.{field} = {value!r}, but config.model reads no {kind}; set it to "
                f"{off!r}"
            )
    if data.text != "off" and not data.tokenizer:
        raise ValueError(
            f"config.data.text = {data.text!r} without config.data.tokenizer gives strings, which "
            "no device takes; set it to clip, clip:PATH or bert:PATH"
        )
    text = config.model.inputs.text
    if data.text != "off" and text and data.text_length != text.context:
        raise ValueError(
            f"config.data.text_length = {data.text_length}, config.model.context = {text.context}; "
            "a caption has as many ids as the model reads"
        )


def check_cached(config: TrainConfig) -> None:
    """ValueError where the objective takes features from the batch and a set has none."""
    objective = config.objective
    if "features" not in objective.reads:
        return
    for part in mixture.components_of(config.data):
        if not part.features:
            wanted = ", ".join(objective.cached_shapes(config.model))
            raise ValueError(
                f"config.objective = {objective.name} takes {wanted} from the batch, and "
                "config.data.features names no companion that holds them; make one with `ivj "
                "teach --config=RECIPE --out=features/`, or set "
                "config.objective.clip_teacher to have them computed in the step"
            )


def check_vocabulary(config: TrainConfig) -> None:
    """ValueError where the tokenizer's ids are not those that the model has vectors for."""
    data, text = config.data, config.model.inputs.text
    if text is None or not data.tokenizer:
        return
    fitting_tokenizer(
        data.tokenizer,
        data.text_length,
        text.vocab,
        misfit="config.data.tokenizer = {name!r} has {found} ids, config.model.vocab = {vocab}; "
        "set it to {found} to train from nothing, or take the tokenizer that the weights were "
        "made with",
    )


def check_clip(config: TrainConfig, media: str) -> None:
    """ValueError where the model does not take the clips of a media type."""
    clip, takes = config.data.clip_of(media), config.model.inputs.clip
    if takes is None:
        return
    if media not in takes.media:
        raise ValueError(
            f"config.data.mixture has sets of media={media}, config.model takes "
            f"{', '.join(takes.media)} only"
        )
    frames = 1 if media == "image" else takes.stride * takes.frames
    if (clip.frames, clip.resolution) != (frames, takes.resolution):
        raise ValueError(
            f"config.data.clip gives {clip.frames} frames of {clip.resolution} pixels, "
            f"config.model takes {frames} frames of {takes.resolution}"
        )


def check_pairs(config: TrainConfig, media: str, mesh: Mesh) -> None:
    """ValueError where the objective mixes clips in pairs and a microbatch is odd.

    Clip i is mixed with clip b-1-i of the b clips that one backward pass sees, over all devices:
    the global batch, repeats of a video counted, over optim.accumulate.
    """
    batch, parts = config.data.batch_of(media), config.optim.accumulate
    if not config.objective.pairs or batch // parts % 2 == 0:
        return
    devices = batch_parts(mesh)
    unit = math.lcm(parts * math.lcm(devices, 2), config.data.repeats)
    low = batch // unit * unit
    field = "image.global_batch" if media == "image" else "global_batch"
    micro = f" over config.optim.accumulate = {parts}" if parts > 1 else ""
    nearest = f"{low} and {low + unit}" if low else f"{unit}"
    raise ValueError(
        f"config.data.{field} = {batch}{micro} gives {batch // parts} clips (repeats counted) that "
        "config.objective.mixup and cutmix mix in pairs, and their number must be even; the "
        f"nearest batch that is: {nearest}. Or set config.objective.mixup and cutmix to 0"
    )


def with_classes(config: TrainConfig, classes: int) -> TrainConfig:
    """Fills in the number of classes where the model leaves it to the data.

    Raises:
      ValueError: the model's number is another than the dataset's.
    """
    head = config.model.traits.classifier
    if head is None:
        return config
    if head.classes not in (0, classes):
        raise ValueError(
            f"config.model.classes = {head.classes}, the dataset has {classes} classes; "
            "set it to 0 to take the number from the data"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, classes=classes))
