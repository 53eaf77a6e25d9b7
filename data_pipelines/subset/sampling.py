"""Diversity sampling (InternVid): every source video has the same chance, whatever its clips.

Clip i of a video with n_v clips in the list has the weight 1 / n_v; clips are drawn one after the
other without replacement, each time in proportion to the weights of those left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def inverse_frequency(videos: Sequence[str] | np.ndarray) -> np.ndarray:
    """(n,) float64 probabilities, 1 / n_v scaled to sum 1; `videos` are any comparable names."""
    _, place, counts = np.unique(np.asarray(videos), return_inverse=True, return_counts=True)
    weights = 1.0 / counts[place]
    return weights / weights.sum()


def diverse(videos: Sequence[str] | np.ndarray, count: int, seed: int = 42) -> np.ndarray:
    """The very draw of the reference: numpy's legacy generator; holds the whole list in memory.

    Returns:
      (count,) int64 places in the list, in the order drawn, which is that of the output.

    Raises:
      ValueError: more clips wanted than there are.
    """
    _check(count, len(videos))
    generator = np.random.RandomState(seed)
    chosen = generator.choice(len(videos), count, replace=False, p=inverse_frequency(videos))
    return chosen.astype(np.int64)


def keys(clips_of_video: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Numbers of which the `count` largest are such a draw, with other random numbers.

    log(u) / weight with u uniform (Efraimidis and Spirakis 2006). Needs no list in memory: chunks
    in a row with one generator give what one call would.

    Args:
      clips_of_video: (n,) n_v of each clip.

    Returns:
      (n,) float64, negative.
    """
    # 1 - u is never 0, so the logarithm is finite.
    return np.log(1.0 - generator.random(len(clips_of_video))) * clips_of_video


def _check(count: int, clips: int) -> None:
    if not 0 < count <= clips:
        raise ValueError(
            f"cannot draw {count} of {clips} clips without replacement; ask for 1 to {clips}"
        )
