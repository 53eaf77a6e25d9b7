"""What all teachers share: sizing frames, picking visible tokens, unit length.

A teacher adds the network that reads the clip. It runs without gradient and always as in
evaluation; nothing of it is ever drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from internvideo_jax.layers.attention import unit
from internvideo_jax.layers.tower import last_layers
from internvideo_jax.ops.resize import resize_frames

Draw = Callable[[jax.Array | None], jax.Array]


class TeacherOutputs(NamedTuple):
    """What a network saw in a batch.

    A row is a clip, or with teachers that read frames apart a frame: those of a clip in sequence.
    """

    intermediates: jax.Array  # (K, rows, lead + L, D), raw, class token first where there is one
    attention: jax.Array | None = None  # (rows, L): how much the teacher looks at a patch
    final: jax.Array | None = None  # (rows, E), raw


@dataclasses.dataclass(frozen=True)
class Form:
    """How the rows of a `TeacherOutputs` become targets."""

    lead: int  # class tokens of a row
    keeps_lead: bool  # the class token is a target too: the mean over the rows of a clip


class Teacher(nnx.Module):
    """Base of all teachers; `read` is what each of them adds.

    The protocol of `__call__` and `visible_targets`, for K layers, V of N patch tokens, in G rows
    of L = N / G tokens a clip (G = frames where frames are read apart, else 1):

      middle: (K, B, [1 +] N or V, C) float32 of unit length, class token first where it counts.
      final: (B, E) float32 of unit length, of teachers that have one.
      attention: (B, G, L) float32, of teachers that have one. Rows need not sum to one.
      visible: (B, V) int32 (`visible_targets` only).
    """

    form: Form
    config: Any

    def read(self, video: jax.Array) -> TeacherOutputs:
        """(B, T, resolution, resolution, 3) -> what the network saw."""
        raise NotImplementedError

    def finish(self, x: jax.Array) -> jax.Array:
        """(K, B, V, D) raw tokens, layers as in config.layers -> (K, B, V, C) before unit length.

        Works on every token alone.
        """
        return x

    def __call__(self, video: jax.Array) -> dict[str, jax.Array]:
        """The targets of all tokens. video: (B, T, H, W, 3) uint8, or float in 0..1."""
        reading, attention = self._read(video)
        return self._targets(reading, attention, None)

    def visible_targets(self, video: jax.Array, draw: Draw) -> dict[str, jax.Array]:
        """The targets of the tokens that `draw` leaves visible.

        Tokens are picked before they are finished and normalised, so the whole stack never exists
        in float32.

        Args:
          video: (B, T, H, W, 3) uint8, or float in 0..1.
          draw: (B, G, L) attention, or None of teachers without one -> (B, V) int32 numbers of the
            visible patch tokens.
        """
        reading, attention = self._read(video)
        visible = draw(attention)
        return {**self._targets(reading, attention, visible), "visible": visible}

    def _read(self, video: jax.Array) -> tuple[TeacherOutputs, jax.Array | None]:
        config = self.config
        if video.ndim != 5 or video.shape[1] != config.frames or video.shape[-1] != 3:
            raise ValueError(
                f"video is {video.shape} (B, T, H, W, 3), the teacher {config.name!r} reads "
                f"{config.frames} frames"
            )
        reading = self.read(resize_frames(video, config.resolution))
        attention = reading.attention
        if attention is not None:
            attention = attention.astype(jnp.float32).reshape(len(video), -1, attention.shape[-1])
        return reading, attention

    def _targets(
        self, reading: TeacherOutputs, attention: jax.Array | None, visible: jax.Array | None
    ) -> dict[str, jax.Array]:
        batch = reading.intermediates.shape[1] // self._rows(reading)
        targets = {"middle": unit(self.finish(self._picked(reading, batch, visible)))}
        if reading.final is not None:
            final = reading.final.astype(jnp.float32)
            targets["final"] = unit(final.reshape(batch, -1, final.shape[-1]).mean(axis=1))
        if attention is not None:
            targets["attention"] = attention
        return targets

    def _rows(self, reading: TeacherOutputs) -> int:
        """Rows of a clip."""
        t, h, w = self.config.grid
        return t * h * w // (reading.intermediates.shape[2] - self.form.lead)

    def _picked(self, reading: TeacherOutputs, batch: int, visible: jax.Array | None) -> jax.Array:
        """(K, B, [1 +] V, D) raw tokens: those at `visible`, or all of them."""
        lead, x = self.form.lead, reading.intermediates
        layers, _, length, width = x.shape
        rows = x.reshape(layers, batch, -1, length, width)
        if visible is None:
            picked = rows[:, :, :, lead:].reshape(layers, batch, -1, width)
        else:
            # Counted in tokens of whole rows, so that class tokens need no copy to be cut out.
            patches = length - lead
            place = visible // patches * length + lead + visible % patches
            flat = rows.reshape(layers, batch, -1, width)
            picked = jnp.take_along_axis(flat, place[None, :, :, None], axis=2)
        if not self.form.keeps_lead:
            return picked
        token = rows[:, :, :, 0].astype(jnp.float32).mean(axis=2)[:, :, None].astype(x.dtype)
        return jnp.concatenate([token, picked], axis=2)


def check_stated(config: Any, stated: Mapping[str, Any], fields: Sequence[str] = ()) -> None:
    """Compares a teacher with the run that its weights come from, where no shape tells.

    Args:
      stated: config.model of the run; a weight file says less, and what is absent is not compared.
      fields: of the config that decide what the weights mean, beside how pixels are normalised.

    Raises:
      ValueError: another value.
    """
    differing = []
    for name in ("pixel_mean", "pixel_std", *fields):
        here = vars(config)[name]
        there = stated.get(name, here)
        if isinstance(here, Sequence) and not isinstance(here, str):
            here, there = tuple(here), tuple(there)
        if here != there:
            differing.append(f"{name} = {there} there, {here} in the teacher {config.name!r}")
    if differing:
        raise ValueError(
            "the run was trained with other settings, and its weights mean something else: "
            + "; ".join(differing)
        )


def last(depth: int, count: int) -> tuple[int, ...]:
    """Numbers of the last blocks, `count` of them or as many as there are."""
    return last_layers(depth, min(depth, count))


def per_frame(video: jax.Array) -> jax.Array:
    """(B, T, H, W, 3) -> (B * T, 1, H, W, 3)."""
    return video.reshape(-1, 1, *video.shape[2:])
