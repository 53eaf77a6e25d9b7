"""What stands between the steps and the checkpoints, so that no broken state becomes the newest.

A step whose loss or gradient is not finite changes nothing (run/step.py). Its parameters may be the
reason: the update before it may have broken them. So a state counts as sound only once a step from
it was: while steps are being skipped nothing is saved, and when the run ends for it, a checkpoint
from which no step was sound is taken out of the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.types import TrainState

COUNTER = "train/nonfinite"  # metric: skipped steps so far, as the state counts them


class Guard:
    """Reports skipped steps, ends the run when there are too many, and saves after sound ones.

    The counter stays on the device until a log point or a save asks for it.

    Args:
      checkpoints: of the run.
      limit: config.max_nonfinite: skipped steps that one start may have.
      step, count: at which this start began, and the state's counter then.
      warn: is told what was skipped, and what therefore was not saved.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        limit: int,
        step: int,
        count: int,
        warn: Callable[[str], None],
    ):
        self._checkpoints, self._limit, self._warn = checkpoints, limit, warn
        self._start, self._first = step, count
        self._seen = step, count  # up to where skipped steps were reported
        self._saved = step, count  # the newest checkpoint
        self._before: int | jax.Array = count
        self._newest: int | jax.Array = count
        self.owes = False  # whether a save is due that fell on a skipped step

    def stepped(self, metrics: dict[str, Any]) -> None:
        """After every step."""
        self._before, self._newest = self._newest, metrics[COUNTER]

    def check(self, step: int) -> None:
        """At a log point. RuntimeError when this start has skipped too many steps."""
        count, (seen, counted) = int(self._newest), self._seen
        total = count - self._first
        if count > counted:
            self._warn(
                f"warning: {count - counted} of steps {seen + 1} to {step} had a loss or gradient "
                f"that is not finite and changed nothing ({total} so far, {self._limit} allowed)"
            )
        if total > self._limit:
            raise RuntimeError(
                f"{total} steps had a loss or gradient that is not finite, config.max_nonfinite "
                f"allows {self._limit}; the last ones lie in steps {seen + 1} to {step}. Lower "
                "config.optim.lr, set config.optim.clip_norm, or look at those batches. "
                + self._what_is_sound(step, count)
            )
        self._seen = step, count

    def save(self, step: int, state: TrainState, meta: dict[str, Any], *, last: bool) -> bool:
        """Saves after a sound step; whether it did.

        Raises:
          RuntimeError: the last step of the run was skipped, so that its state stays unproven; the
            state holds values that cannot be right; the save failed.
        """
        self.check(step)
        count = int(self._newest)
        if count == int(self._before):
            self._checkpoints.save(step, state, meta)
            self._saved, self.owes = (step, count), False
            return True
        if last:
            raise RuntimeError(
                f"step {step}, the last one, had a loss or gradient that is not finite and was "
                "skipped; its state was not saved. If only that batch is to blame, give config."
                f"steps one more. {self._what_is_sound(step, count)}"
            )
        if not self.owes:
            self._warn(f"warning: step {step} is not saved, the next sound one will be")
        self.owes = True
        return False

    def _what_is_sound(self, step: int, count: int) -> str:
        """Takes a checkpoint without a sound step out of the way; says from which one to go on."""
        saved, counted = self._saved
        if step - saved > count - counted:  # some step from it was sound
            return _sentence(self._checkpoints.sound_text())
        if saved > self._start:
            aside = self._checkpoints.set_aside(saved)
            return (
                f"No step from the checkpoint of step {saved} was sound: it is now {aside}; "
                + self._checkpoints.sound_text(without=saved)
            )
        text = self._checkpoints.sound_text(without=saved)
        if not saved:
            return _sentence(text)
        return (
            f"No step was sound since step {saved}, where this start began; the same command goes "
            f"on from there. If no other setting helps, remove or move that step: then {text}"
        )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
