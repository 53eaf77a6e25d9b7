"""What transformers reads to prepare pixels, so that a model there sees what ours learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BILINEAR, BICUBIC = 2, 3  # as PIL numbers them


def processor(
    kind: tuple[str, str],
    resolution: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    resample: int = BILINEAR,
    crop: bool = True,
) -> dict[str, Any]:
    """Settings of a processor: scale, cut out the middle, normalise.

    Args:
      kind: (field that names the class, the class).
      crop: the short side becomes `resolution` and the middle is cut out; else both sides do.
    """
    square = {"height": resolution, "width": resolution}
    return {
        kind[0]: kind[1],
        "do_resize": True,
        "size": {"shortest_edge": resolution} if crop else square,
        "resample": resample,
        "do_center_crop": crop,
        **({"crop_size": square} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def clip_processors(
    resolution: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """File -> settings, as CLIP's towers have them; none where the mean is not known."""
    if not mean:
        return {}
    kind = ("image_processor_type", "CLIPImageProcessor")
    return {"preprocessor_config.json": processor(kind, resolution, mean, std, resample=BICUBIC)}
