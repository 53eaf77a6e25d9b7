"""Which tokens the encoder sees and which the decoder reconstructs.

Masks are drawn inside the train step from one key per example, so they do not depend on the
number of hosts, devices or microbatches and need no state. Counts truncate like the reference,
`int(mask_ratio * tokens)`; every example of a batch has the same number of visible tokens.
Token order is time-major, then row, then column.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Grid = tuple[int, int, int]  # tokens in time, height, width


def example_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """One key per example from its place in the training stream: (B,) -> (B,) keys."""
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def check(kind: str, grid: Grid, mask_ratio: float) -> None:
    """Raises ValueError unless the mask leaves at least one visible and one hidden token."""
    visible = sum(visible_per_frame(kind, grid, mask_ratio))
    tokens = int(np.prod(grid))
    if not 0 < visible < tokens:
        raise ValueError(
            f"mask_ratio {mask_ratio} ({kind}) leaves {visible} of {tokens} tokens visible on the "
            f"grid {grid}; expected at least one visible and one hidden token: change it or use "
            "larger clips"
        )


def visible_per_frame(kind: str, grid: Grid, mask_ratio: float) -> tuple[int, ...]:
    """Number of visible tokens in every frame of tokens (one entry for kind `random`).

    Kinds: `tube` hides the same positions in all frames (VideoMAE section 3.3); `random` hides
    anywhere; `progressive` shows fewer and fewer positions over time and `centering` most of them
    in the middle (InternVideo1, unused in the published recipes).
    """
    t, h, w = grid
    if kind == "tube":
        return (h * w - int(mask_ratio * h * w),) * t
    if kind == "random":
        return (t * h * w - int(mask_ratio * t * h * w),)
    if kind in ("progressive", "centering"):
        start, end = int((1 - mask_ratio) * h * w), int(0.05 * h * w)
        if kind == "progressive":
            return tuple(int(count) for count in np.linspace(start, end, t))
        half = [int(count) for count in np.linspace(end, start, t // 2)]
        return tuple(half + half[::-1])
    raise ValueError(f"unknown mask kind {kind!r}; known: tube, random, progressive, centering")


def sample(
    kind: str, keys: jax.Array, grid: Grid, mask_ratio: float
) -> tuple[jax.Array, jax.Array]:
    """Draws an encoder mask per example.

    Args:
      keys: (B,) random keys.

    Returns:
      visible (B, V) and hidden (B, M) int32 token indices, both in increasing order.
    """
    counts = visible_per_frame(kind, grid, mask_ratio)
    per_frame = int(np.prod(grid)) // len(counts)

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Nested top-k sets of one random order: the same order serves every frame.
        order = jax.random.permutation(key, per_frame)
        sets = {count: (jnp.sort(order[:count]), jnp.sort(order[count:])) for count in counts}
        visible = [sets[count][0] + frame * per_frame for frame, count in enumerate(counts)]
        hidden = [sets[count][1] + frame * per_frame for frame, count in enumerate(counts)]
        return jnp.concatenate(visible), jnp.concatenate(hidden)

    visible, hidden = jax.vmap(one)(keys)
    return visible.astype(jnp.int32), hidden.astype(jnp.int32)


def visible_from_noise(attention: jax.Array, noise: jax.Array, mask_ratio: float) -> jax.Array:
    """The tokens that stay visible when patches are drawn by attention without replacement.

    Every group keeps those with the largest attention / noise. For noise of Exp(1) that is a draw
    without replacement with probability proportional to attention (InternVideo2 stage 1, Unmasked
    Teacher): what the teacher looks at is likely to stay visible. Patches without any attention
    come last, in random order.

    Args:
      attention: (B, G, L) not negative, rows need not sum to one; groups are frames, or G = 1.
      noise: (B, G, L) not negative.
      mask_ratio: share of tokens hidden in every group; their number is truncated.

    Returns:
      (B, G * (L - int(L * mask_ratio))) int32 token indices in increasing order.
    """
    groups, tokens = attention.shape[1:]
    # Below this nothing is a probability any more, and zero over zero would be no number.
    least = 1e-30
    score = jnp.maximum(attention.astype(jnp.float32), least) / jnp.maximum(noise, least)
    order = jnp.argsort(score, axis=-1, descending=True)[..., : tokens - int(tokens * mask_ratio)]
    first = jnp.arange(groups, dtype=jnp.int32)[:, None] * tokens
    visible = jnp.sort(order, axis=-1).astype(jnp.int32) + first
    return visible.reshape(len(visible), -1)


def sample_by_attention(keys: jax.Array, attention: jax.Array, mask_ratio: float) -> jax.Array:
    """Draws the visible tokens of every example by attention, see `visible_from_noise`.

    Args:
      keys: (B,) random keys.
      attention: (B, G, L).

    Returns:
      (B, V) int32 increasing token indices.
    """
    noise = jax.vmap(lambda key: jax.random.exponential(key, attention.shape[1:]))(keys)
    return visible_from_noise(attention, noise, mask_ratio)


def running_cell_maps(grid: Grid, mask_ratio: float) -> np.ndarray:
    """The four decoder masks of VideoMAE V2 (section 3.2), one per start of the running cell.

    Returns:
      (4, t, h*w) uint8, 1 = not decoded.
    """
    t, h, w = grid
    masked = int(4 * mask_ratio)
    if not 1 <= masked <= 3 or h % 2 or w % 2:
        raise ValueError(
            "running cell masks 1 to 3 of 4 positions on an even grid; found mask_ratio "
            f"{mask_ratio} ({masked} of 4) on the grid {h} x {w}"
        )
    queue = [1] * masked + [0] * (4 - masked)
    maps = np.zeros((4, t, h, w), np.uint8)
    for start in range(4):
        for frame in range(t):
            cell = np.array([queue[(k + start + frame + 1) % 4] for k in range(4)], np.uint8)
            maps[start, frame] = np.tile(cell.reshape(2, 2), (h // 2, w // 2))
    return maps.reshape(4, t, h * w)


def sample_running_cell(keys: jax.Array, grid: Grid, mask_ratio: float) -> jax.Array:
    """Draws the decoded positions per example: (B,) keys -> (B, M) increasing int32 indices."""
    maps = running_cell_maps(grid, mask_ratio).reshape(4, -1)
    decoded = jnp.asarray(np.stack([np.flatnonzero(row == 0) for row in maps]), jnp.int32)
    start = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(keys)
    return decoded[start]
