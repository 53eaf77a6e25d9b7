"""Distances between the features of a student and those of its teacher.

InternVideo2 stage 1, its distillation and Unmasked Teacher take `cosine`; the other two are the
options of their code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from internvideo_jax.types import Mean

DISTANCES = ("cosine", "mse", "smooth_l1")


def alignment_loss(student: jax.Array, target: jax.Array, distance: str = "cosine") -> Mean:
    """Mean distance over an example's layers and tokens, as an exact mean over examples.

    `cosine` is 2 - 2 <student, target>, the squared distance of unit vectors; `mse` and
    `smooth_l1` (Huber with a width of 1) are means over channels as well.

    Args:
      student: (K, B, N, C) with unit norm, layers first, or (B, C).
      target: (B, K, N, C) with unit norm, examples first, or (B, C).

    Returns:
      A Mean whose weight is B: one of several heads adds to the others.

    Raises:
      ValueError: the shapes are of other layers, tokens or channels, or the distance is unknown.
    """
    if student.ndim == 4:
        student = student.swapaxes(0, 1)
    if student.shape != target.shape:
        raise ValueError(
            f"the student's features are {student.shape} and the teacher's {target.shape} "
            "(examples, layers, tokens, channels); expected the same shape"
        )
    # Sums of products instead of a matrix product: that would round to bfloat16 on a TPU.
    student, target = student.astype(jnp.float32), target.astype(jnp.float32)
    axes = tuple(range(1, student.ndim))
    if distance == "cosine":
        return Mean.of(2.0 - 2.0 * (student * target).sum(-1).mean(axes[:-1]))
    difference = student - target
    if distance == "mse":
        return Mean.of((difference**2).mean(axes))
    if distance == "smooth_l1":
        size = jnp.abs(difference)
        return Mean.of(jnp.where(size < 1.0, 0.5 * size**2, size - 0.5).mean(axes))
    raise ValueError(f"unknown distance {distance!r}; known: {', '.join(DISTANCES)}")
