"""A student that sees a part of the tokens, aligned with frozen teachers that see all of them.

InternVideo2 stage 1 and its distillation, Unmasked Teacher.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.limits import limited
from internvideo_jax.config import component
from internvideo_jax.ops import masking
from internvideo_jax.ops.alignment import DISTANCES, alignment_loss
from internvideo_jax.protocols import Model, ModelConfig, Student, clip_of
from internvideo_jax.tasks import Frozen, Objective
from internvideo_jax.types import Batch, Mean, Params

MASKS = ("attention", "random", "tube")
PREFIX = "features/"  # of the parts of a batch that a teacher made
VISIBLE = PREFIX + "visible"
# Weight of the objective -> its feature, which is also the student's output.
HEADS = {"middle": "clip_middle", "final": "clip_final", "mae": "mae"}


@dataclasses.dataclass(frozen=True)
class Alignment(Objective):
    """Distances between the student's features and those of up to two teachers, at visible tokens.

    The clip teacher gives tokens of several layers (`middle`), one vector (`final`) and the
    attention that the mask is drawn by; the MAE teacher tokens of several layers (`mae`). A teacher
    is a network in the step, or None: then its targets come with the batch, as `features/visible`
    (B, V) int32, `features/clip_middle` (B, K, [1+]V, C), `features/clip_final` (B, E) and
    `features/mae` (B, Km, V, C), which `ivj teach` computes beforehand.
    """

    name: str = "alignment"
    mask: str = "attention"  # attention (of the clip teacher) | random | tube: ops/masking.py
    # Attention masks: True shows equally many tokens of every frame, as image teachers need;
    # False draws over the whole clip, as for a video teacher.
    per_frame: bool = True
    mask_ratio: float = 0.8  # share of tokens hidden from the student
    # Weights of the three losses; 0: that one is not computed.
    middle: float = limited(1.0, least=0)
    final: float = limited(1.0, least=0)
    mae: float = limited(1.0, least=0)
    distance: str = "cosine"  # cosine | mse | smooth_l1: ops/alignment.py
    clip_teacher: Any = component("teacher", optional=True)
    mae_teacher: Any = component("teacher", optional=True)

    @property
    def wanted(self) -> dict[str, float]:
        """Heads that are compared, and their weights."""
        return {head: weight for head, weight in self._weights.items() if weight}

    @property
    def _weights(self) -> dict[str, float]:
        return {"middle": self.middle, "final": self.final, "mae": self.mae}

    @property
    def reads(self) -> tuple[str, ...]:
        """What of the batch beside the video: features, unless the teachers give all of them."""
        return ("features",) if self._absent() else ()

    def _absent(self) -> set[str]:
        """What comes with the batch, since no teacher in the step makes it."""
        teachers = {
            "clip_middle": self.clip_teacher,
            "clip_final": self.clip_teacher,
            "mae": self.mae_teacher,
        }
        absent = {HEADS[head] for head in self.wanted if teachers[HEADS[head]] is None}
        # Cached targets are those of the mask that they were gathered at.
        if absent or (self.mask == "attention" and self.clip_teacher is None):
            absent.add("visible")
        return absent

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError where settings, student and teachers do not fit each other."""
        for field, value, known in (
            ("mask", self.mask, MASKS),
            ("distance", self.distance, DISTANCES),
        ):
            if value not in known:
                raise ValueError(
                    f"config.objective.{field} = {value!r}; expected one of {', '.join(known)}"
                )
        student, weights = _student(config), self._weights
        if not self.wanted or not all(0 <= w < math.inf for w in weights.values()):
            raise ValueError(
                f"config.objective has the weights {weights}; expected finite ones, none of them "
                "negative and at least one positive"
            )
        visible = self.visible(config)
        if not 0 < visible < math.prod(student.grid):
            raise ValueError(
                f"config.objective.mask_ratio = {self.mask_ratio} leaves {visible} of "
                f"{math.prod(student.grid)} tokens visible on the grid {student.grid}; expected at "
                "least one visible and one hidden token"
            )
        self._check_heads(student)
        if self.clip_teacher is not None:
            self._check_clip_teacher(student)
        if self.mae_teacher is not None:
            self._check_mae_teacher(student)

    def _check_heads(self, student: Student) -> None:
        fields = {
            "middle": ("clip_layers", bool(student.clip_layers)),
            "final": ("final_width", student.final_width > 0),
            "mae": ("mae_layers", bool(student.mae_layers)),
        }
        for head, weight in self.wanted.items():
            field, there = fields[head]
            if not there:
                raise ValueError(
                    f"config.objective.{head} = {weight}, but the student has no such head "
                    f"(config.model.{field} is empty or 0); set the weight to 0 or give it one"
                )

    def _check_clip_teacher(self, student: Student) -> None:
        teacher, wanted, field = self.clip_teacher, self.wanted, "config.objective.clip_teacher"
        if self.mask != "attention" and not {"middle", "final"} & set(wanted):
            raise ValueError(
                f"{field} = {teacher.name!r} with config.objective.middle = final = 0 and mask = "
                f"{self.mask!r} computes nothing that is used; set it to None or give it a use"
            )
        pairs = [
            ("frames", teacher.frames, "frames", student.frames),
            ("grid", tuple(teacher.grid), "grid", tuple(student.grid)),
        ]
        if "middle" in wanted:
            pairs += [
                ("class_token", teacher.class_token, "class_token", student.class_token),
                ("width", teacher.width, "clip_width", student.clip_width),
                _layers(teacher, "clip_layers", student.clip_layers),
            ]
        if "final" in wanted:
            pairs += [("final_width", teacher.final_width, "final_width", student.final_width)]
        _agree(field, pairs)
        if self.mask == "attention" and teacher.per_frame != self.per_frame:
            raise ValueError(
                f"config.objective.per_frame = {self.per_frame}, but {field} ({teacher.name}) "
                f"attends {'in every frame apart' if teacher.per_frame else 'over the whole clip'};"
                f" set config.objective.per_frame to {teacher.per_frame}"
            )

    def _check_mae_teacher(self, student: Student) -> None:
        teacher, field = self.mae_teacher, "config.objective.mae_teacher"
        if "mae" not in self.wanted:
            raise ValueError(
                f"{field} = {teacher.name!r} with config.objective.mae = 0 computes nothing that "
                "is used; set it to None or give the loss a weight"
            )
        pairs = [
            ("frames", teacher.frames, "clip_frames", student.clip_frames),
            ("grid", tuple(teacher.grid), "grid", tuple(student.grid)),
            ("class_token", teacher.class_token, "class_token of its MAE head", False),
            ("width", teacher.width, "mae_width", student.mae_width),
            _layers(teacher, "mae_layers", student.mae_layers),
        ]
        _agree(field, pairs)

    def visible(self, config: ModelConfig) -> int:
        """Number of patch tokens of an example that the student sees."""
        kind = self.mask
        if kind == "attention":  # the counts of the kinds that draw from the same groups
            kind = "tube" if self.per_frame else "random"
        return sum(masking.visible_per_frame(kind, clip_of(config).grid, self.mask_ratio))

    def cached_shapes(self, config: ModelConfig) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Parts of a batch that come with it: shapes of one example's, and types.

        Of the floating arrays the type is the one that a companion is written in; any other does.
        """
        tokens, student = self.visible(config), _student(config)
        clip = (len(student.clip_layers), tokens + student.class_token, student.clip_width)
        shapes = {
            "visible": ((tokens,), jnp.int32),
            "clip_middle": (clip, jnp.float16),
            "clip_final": ((student.final_width,), jnp.float16),
            "mae": ((len(student.mae_layers), tokens, student.mae_width), jnp.float16),
        }
        absent = self._absent()
        return {PREFIX + name: shape for name, shape in shapes.items() if name in absent}

    def targets(self, frozen: Frozen, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """What the teachers make of a batch: the mask and the features at visible tokens.

        A function of the videos, their positions and the key only, so that it can be computed in
        the step or long before it.

        Args:
          frozen: the teachers in use, by name of their field.
          batch: `video` (B, stride * T, H, W, 3), `position` (B,); where `features/visible` (B, V)
            is there, it is the mask.
          key: of the run, as `loss`.

        Returns:
          `features/...` with examples first, float32: those of the heads with a weight.
        """
        video, visible = batch["video"], batch.get(VISIBLE)
        keys = masking.example_keys(key, batch["position"])
        found: dict[str, jax.Array] = {}
        if "clip_teacher" in frozen:
            model, params = frozen["clip_teacher"]
            clip = clip_of(model.config)
            draw = self._draw(keys, clip.grid, visible)
            made = _visible_targets(model, params, strided(video, clip.frames), draw)
            visible = made["visible"]
            if "middle" in self.wanted:
                found["clip_middle"] = made["middle"].swapaxes(0, 1)
            if "final" in self.wanted:
                found["clip_final"] = made["final"]
        if "mae_teacher" in frozen:
            model, params = frozen["mae_teacher"]
            visible = self._draw(keys, clip_of(model.config).grid, visible)(None)
            made = _visible_targets(model, params, video, lambda _: visible)
            found["mae"] = made["middle"].swapaxes(0, 1)
        if visible is not None:
            found["visible"] = visible
        return {PREFIX + name: value for name, value in found.items()}

    def _draw(
        self, keys: jax.Array, grid: masking.Grid, given: jax.Array | None
    ) -> Callable[[jax.Array | None], jax.Array]:
        def draw(attention: jax.Array | None) -> jax.Array:
            if given is not None:
                return given
            if self.mask != "attention":
                return masking.sample(self.mask, keys, grid, self.mask_ratio)[0]
            if attention is None:
                name = self.clip_teacher.name if self.clip_teacher else "the teacher"
                raise ValueError(
                    f"config.objective.mask = 'attention', but {name} has no attention to draw "
                    f"by; set it to {' or '.join(MASKS[1:])}, or take another clip_teacher"
                )
            return masking.sample_by_attention(keys, attention, self.mask_ratio)

        return draw

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Mean, dict[str, Mean]]:
        """The weighted sum of the losses as an exact mean, and each of them to log.

        Args:
          model: a student; gives `apply` and its `config`.
          batch: `video` (B, stride * T, H, W, 3), `position` (B,) and `features/...` (see
            `targets`).
          key: of the run; masks depend on it and the positions only.
          step: drop path depends on it as well.
        """
        visible = _part(batch, "visible")
        expected = self.visible(model.config)
        if visible.shape[-1] != expected:
            raise ValueError(
                f"{VISIBLE} has {visible.shape[-1]} tokens of an example, "
                f"config.objective.mask_ratio = {self.mask_ratio} with per_frame = "
                f"{self.per_frame} leaves {expected}; give mask_ratio, mask and per_frame the "
                "values that the features were made with"
            )
        keys = masking.example_keys(jax.random.fold_in(key, step), batch["position"])
        video = strided(batch["video"], clip_of(model.config).frames)
        outputs = model.apply(params, video, visible, keys)
        metrics = {
            head: alignment_loss(
                outputs[HEADS[head]],
                _part(batch, HEADS[head]),
                self.distance,
            )
            for head in self.wanted
        }
        # Every head counts examples, so that their totals add up.
        total = sum(weight * metrics[head].total for head, weight in self.wanted.items())
        return Mean(jnp.asarray(total), next(iter(metrics.values())).weight), metrics

    def flops(self, config: ModelConfig) -> float:
        """Model FLOPs of one training example: the student's forward pass, and twice that for the
        backward pass. Those of the teachers are not training: `teacher_flops`.
        """
        return 3.0 * config.forward_flops(self.visible(config))

    def networks(self) -> dict[str, Any]:
        """The teachers that are in the step."""
        teachers = {"clip_teacher": self.clip_teacher, "mae_teacher": self.mae_teacher}
        return {name: teacher for name, teacher in teachers.items() if teacher is not None}

    def target_settings(self) -> dict[str, Any]:
        """The mask, which decides of which tokens there are targets."""
        return {
            "name": self.name,
            "mask": self.mask,
            "per_frame": self.per_frame,
            "mask_ratio": self.mask_ratio,
        }

    def smallest(self, model: ModelConfig) -> tuple[Alignment, ModelConfig]:
        """For a rehearsal: the smallest random teachers, and the student with heads that fit them.

        The teachers take the student's grid, the student the teachers' widths; both keep as many
        of the last aligned layers as the shallower one has.
        """
        teachers, changes, fits = {}, {}, _student(model)
        for branch, teacher, layers, frames in (
            ("clip", self.clip_teacher, tuple(fits.clip_layers), fits.frames),
            ("mae", self.mae_teacher, tuple(fits.mae_layers), fits.clip_frames),
        ):
            if teacher is None:
                continue
            small = teacher.smallest()
            theirs = tuple(small.layers)
            if count := min(len(layers), len(theirs)):
                theirs = theirs[-count:]
                changes |= {f"{branch}_layers": layers[-count:], f"{branch}_width": small.width}
            size = fits.grid[1] * small.patch
            teachers[f"{branch}_teacher"] = dataclasses.replace(
                small, init_from="random", frames=frames, resolution=size, layers=theirs
            )
            if branch == "clip" and fits.final_width:
                changes["final_width"] = small.final_width
        return dataclasses.replace(self, **teachers), dataclasses.replace(model, **changes)


def _student(config: ModelConfig) -> Student:
    if config.traits.student is None:
        raise ValueError(
            "config.objective=alignment needs a student with decoders for a teacher's features, "
            f"such as internvideo2_student or umt_student; config.model is {config.name!r}"
        )
    return config.traits.student


def _part(batch: Batch, name: str) -> jax.Array:
    """`features/NAME` of a batch; ValueError that says how it gets there."""
    if PREFIX + name in batch:
        return batch[PREFIX + name]
    field = "mae_teacher" if name == HEADS["mae"] else "clip_teacher"
    raise ValueError(
        f"the batch has no {PREFIX}{name}; compute it once with `ivj teach "
        "--config=RECIPE --out=features/` and set config.data.features to that folder, or set "
        f"config.objective.{field} to have it computed in the step"
    )


def strided(video: jax.Array, frames: int) -> jax.Array:
    """Every n-th frame of (B, n * frames, H, W, 3), from the first.

    Raises:
      ValueError: the clip is no multiple of `frames` long.
    """
    if video.shape[1] % frames:
        raise ValueError(
            f"a clip of {video.shape[1]} frames gives no {frames} evenly spaced ones; set "
            f"config.data.clip.frames to a multiple of {frames}"
        )
    return video[:, :: video.shape[1] // frames]


def _visible_targets(
    model: Model, params: Params, video: jax.Array, draw: Callable[[Any], jax.Array]
) -> dict[str, jax.Array]:
    return model.apply(params, video, draw, method="visible_targets")


def _layers(teacher: Any, field: str, layers: Any) -> tuple[str, Any, str, Any]:
    return "number of layers", len(teacher.layers), f"number of {field}", len(layers)


def _agree(field: str, pairs: list[tuple[str, Any, str, Any]]) -> None:
    """ValueError that names every property of a teacher that is not the student's."""
    wrong = [
        f"{theirs} {found} there, {ours} {expected} of config.model"
        for theirs, found, ours, expected in pairs
        if found != expected
    ]
    if wrong:
        raise ValueError(
            f"{field} and the student do not fit: {'; '.join(wrong)}. Both must give the same "
            "tokens and features: change the one that is not as published"
        )
