"""How many accelerators a number of clips per second is enough for.

The consumption of a chip is calculated, not measured: FLOPs of one training clip of VideoMAE
pre-training (three times the forward pass, a multiply-add being two), peak FLOP/s of the chip, and
an assumed model FLOP utilisation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

# Dense bf16 peak of one chip (TPU) or one GPU, TFLOP/s, by the vendors' data sheets.
PEAK_TFLOPS = {
    "TPU v4": 275.0,
    "TPU v5e": 197.0,
    "TPU v5p": 459.0,
    "TPU v6e": 918.0,
    "H100": 989.0,
    "H200": 989.0,
}

# What the host does besides decoding, and cores that do not get faster all at once.
USABLE = 0.85


@dataclasses.dataclass(frozen=True)
class Mae:
    """Widths, depths and patch of a masked autoencoder; the MLP is four times as wide."""

    width: int
    depth: int
    decoder_width: int
    decoder_depth: int
    patch: int = 16
    tubelet: int = 2


# The released VideoMAE pre-training models.
MODELS = {
    "ViT-S": Mae(384, 12, 192, 4),
    "ViT-B": Mae(768, 12, 384, 4),
    "ViT-L": Mae(1024, 24, 512, 12),
    "ViT-H": Mae(1280, 32, 640, 12),
}


def train_flops(model: Mae, frames: int, size: int, mask_ratio: float = 0.9) -> float:
    """FLOPs of one training clip of `frames` x `size` x `size` pixels with a tube mask.

    Raises:
      ValueError: the clip does not divide into tokens.
    """
    if frames % model.tubelet or size % model.patch:
        raise ValueError(
            f"a clip of {frames} x {size} x {size} does not divide into tokens of "
            f"{model.tubelet} x {model.patch} x {model.patch}"
        )
    times, positions = frames // model.tubelet, (size // model.patch) ** 2
    tokens = times * positions
    visible = times * (positions - int(mask_ratio * positions))
    token_values = model.tubelet * model.patch**2 * 3
    forward = (
        2 * visible * token_values * model.width
        + _blocks(model.width, model.depth, visible)
        + 2 * visible * model.width * model.decoder_width
        + _blocks(model.decoder_width, model.decoder_depth, tokens)
        + 2 * (tokens - visible) * model.decoder_width * token_values
    )
    return 3.0 * forward


def _blocks(width: int, depth: int, tokens: int) -> int:
    """Projections and MLP, 12 width^2 weights, and the two products of attention."""
    return depth * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)


def report(
    clips_per_core: float,
    cores: int,
    *,
    frames: int,
    size: int,
    bytes_per_clip: float,
    mfu: float,
    per_chip: float | None = None,
) -> Iterator[str]:
    """Lines with the number of chips of each kind that this host can feed.

    Args:
      clips_per_core: measured clips per second of CPU time.
      cores: cores of the host.
      frames, size: of a clip.
      bytes_per_clip: bytes read per clip, for the rate of the storage.
      mfu: assumed model FLOP utilisation, 0 to 1.
      per_chip: clips/s of one chip where that is known; replaces the calculation.
    """
    host = clips_per_core * cores * USABLE
    wire = host * frames * size * size * 3
    yield (
        f"this host: {cores} cores x {clips_per_core:.1f} clips/s x {USABLE:g} usable = "
        f"{host:.0f} clips/s; reads {host * bytes_per_clip / 1e6:.0f} MB/s, sends "
        f"{wire / 1e6:.0f} MB/s of pixels to the devices"
    )
    if per_chip is not None:
        yield f"chips fed at {per_chip:g} clips/s each: {_number(host / per_chip)}"
        return
    flops = {}
    for name, model in MODELS.items():
        try:
            flops[name] = train_flops(model, frames, size)
        except ValueError as error:
            yield f"no calculation for {name}: {error}; give --clips-per-second-per-chip"
    if not flops:
        return
    yield (
        f"chips fed (clips/s one chip takes), VideoMAE pre-training with 90 % masked; assumes "
        f"{mfu:.0%} of peak FLOP/s"
    )
    yield f"{'':10}{'TFLOP/s':>8}" + "".join(f"{name:>18}" for name in flops)
    yield f"{'TFLOP/clip':10}{'':>8}" + "".join(f"{f / 1e12:>18.3f}" for f in flops.values())
    for kind, peak in PEAK_TFLOPS.items():
        cells = []
        for needed in flops.values():
            rate = peak * 1e12 * mfu / needed
            cells.append(f"{_number(host / rate)} ({rate:.0f})")
        yield f"{kind:10}{peak:>8.0f}" + "".join(f"{cell:>18}" for cell in cells)


def _number(chips: float) -> str:
    """Whole chips, or the share of one that could be kept busy."""
    return str(math.floor(chips)) if chips >= 1 else f"{chips:.2f}"
