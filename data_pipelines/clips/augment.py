"""Decoded frames to the pixels of one training clip.

Order, as in the reference: RandAugment on whole frames, crop and resize, flip, colour jitter.
Normalising, random erasing and mixing follow on the device. A clip's pixels depend on its frames,
the settings and the generator only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.clips import colour, rand_augment, transforms
from data_pipelines.clips.warp import INTERPOLATIONS
from data_pipelines.config import AugmentConfig
from data_pipelines.records.manifest import Manifest

CROPS = ("multiscale", "random_resized", "random", "center", "squash")
MOST_SIDE = 16384  # pixels of a resized frame
ARGUMENTS = ("factor", "factor", "factor", "turn")  # of the four parts of the jitter

Edges = tuple[float, float, float, float]  # top, left, bottom, right in shares of the image
Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Random augmentation of one clip, the same for all its frames.

    Crops: `multiscale` takes one of four scales at one of 13 positions; `random_resized` a box of
    random area and aspect ratio; `random` resizes the shorter side to a length drawn from
    `config.short_side` and cuts a square out of that; `center` takes the largest central square;
    `squash` the whole frame, whatever its aspect ratio.

    Attributes:
      resolution: height and width of the result.
      crop: one of CROPS.
      flip: mirror every second clip left-right.
      config: ranges, resizing and colour.

    Raises:
      ValueError: an unknown name, or a range that leads nowhere.
    """

    resolution: int
    crop: str
    flip: bool
    config: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        _check(self.resolution, self.crop, self.config)

    def __call__(
        self,
        frames: Sequence[np.ndarray],
        rng: np.random.Generator,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Augments one clip.

        Args:
          frames: T frames (H, W, 3) uint8 of one shape, not modified; one object may stand at
            several places.
          out: (T, resolution, resolution, 3) uint8 to write into, such as the row of a batch.

        Returns:
          (T, resolution, resolution, 3) uint8.
        """
        config = self.config
        if config.rand_augment:
            drawn = rand_augment.draw(rand_augment.parse_policy(config.rand_augment), rng)
            frames = rand_augment.apply(frames, drawn, config.rand_augment_interpolation)
        height, width = frames[0].shape[:2]
        short, box = self._box(height, width, rng)
        flip = self.flip and bool(rng.random() < 0.5)
        if short:
            resized = {id(frame): frame for frame in frames}
            for key, frame in resized.items():
                resized[key] = transforms.resize_short_side(
                    frame, short, config.resize or "bilinear"
                )
            frames = [resized[id(frame)] for frame in frames]
        # The reference's fine-tuning crop does not antialias, its pre-training crop does.
        method = config.resize or ("bilinear" if self.crop == "random_resized" else "area")
        out = transforms.crop_resize(
            frames, box, self.resolution, method=method, flip=flip, out=out
        )
        changes, done = draw_jitter(config, rng), {}
        for t, frame in enumerate(frames if changes else ()):
            if id(frame) not in done:
                done[id(frame)] = functools.reduce(lambda x, change: change(x), changes, out[t])
            out[t] = done[id(frame)]
        return out

    def window(self, height: int, width: int, rng: np.random.Generator) -> tuple[Edges, bool]:
        """What a clip of frames of this size shows, from the draws that a call would make.

        Returns:
          (edges, whether it is mirrored).
        """
        if self.config.rand_augment:
            rand_augment.draw(rand_augment.parse_policy(self.config.rand_augment), rng)
        short, (top, left, high, wide) = self._box(height, width, rng)
        if short:
            height, width = transforms.short_side_shape(height, width, short)
        edges = top / height, left / width, (top + high) / height, (left + wide) / width
        return edges, self.flip and bool(rng.random() < 0.5)

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, transforms.Box]:
        """The short side that frames are resized to first, 0: as they are, and where to cut."""
        config, resolution = self.config, self.resolution
        if self.crop == "multiscale":
            return 0, transforms.multiscale_crop(height, width, resolution, rng)
        if self.crop == "random_resized":
            area, ratio = _pair(config.area), _pair(config.ratio)
            return 0, transforms.random_resized_crop(height, width, rng, area, ratio)
        if self.crop == "random":
            low, high = config.short_side
            short = transforms.jittered_side((low, high), rng)
            resized = transforms.short_side_shape(height, width, short)
            return short, transforms.random_box(*resized, resolution, rng)
        if self.crop == "center":
            return 0, transforms.center_box(height, width, min(height, width))
        return 0, (0, 0, height, width)


def draw_jitter(config: AugmentConfig, rng: np.random.Generator) -> list[Change]:
    """The colour jitter of one clip as functions of a frame; draws nothing where it is off.

    `config.jitter` gives the half widths of brightness, contrast, saturation (factors about 1, not
    below 0) and hue (share of the circle about 0), applied in a random order as torchvision's
    ColorJitter does; `config.hsv_shift` the half widths of whole-level shifts of hue (of 180),
    saturation and value, the jitter of the reference's spatio-temporal localisation.
    """
    changes: list[Change] = []
    if any(config.jitter):
        values = [rng.uniform(max(0.0, 1 - width), 1 + width) for width in config.jitter[:3]]
        values.append(rng.uniform(-config.jitter[3], config.jitter[3]))
        operations = (colour.brightness, colour.contrast, colour.saturation, colour.hue)
        for i in rng.permutation(4):
            if config.jitter[i]:
                changes.append(functools.partial(operations[i], **{ARGUMENTS[i]: values[i]}))
    if any(config.hsv_shift):
        h, s, v = (int(rng.integers(-width, width + 1)) for width in config.hsv_shift)
        changes.append(functools.partial(colour.shift_hsv, hue=h, saturation=s, value=v))
    return changes


def _pair(values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    return low, high


def _check(resolution: int, crop: str, config: AugmentConfig) -> None:
    where = "config.data.augment"
    if crop not in CROPS:
        raise ValueError(f"unknown config.data.crop {crop!r}; known: {', '.join(CROPS)}")
    if config.resize and config.resize not in transforms.RESIZE:
        known = ", ".join(transforms.RESIZE)
        raise ValueError(f"unknown {where}.resize {config.resize!r}; known: {known}, or empty")
    if config.rand_augment_interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"unknown {where}.rand_augment_interpolation {config.rand_augment_interpolation!r}; "
            f"known: {', '.join(INTERPOLATIONS)}"
        )
    for name, lowest, highest in (("area", 0.0, 1.0), ("ratio", 0.0, float("inf"))):
        found = getattr(config, name)
        if len(found) != 2 or not lowest < found[0] <= found[1] <= highest:
            raise ValueError(
                f"{where}.{name} = {found}: expected two increasing numbers above {lowest:g} and "
                f"not above {highest:g}"
            )
    sides = config.short_side
    if crop == "random" and (len(sides) != 2 or not resolution <= sides[0] <= sides[1]):
        raise ValueError(
            f"{where}.short_side = {sides}: config.data.crop=random needs the shortest and longest "
            f"short side, both at least clip.resolution = {resolution}"
        )
    if crop == "random" and sides[1] > MOST_SIDE:
        raise ValueError(f"{where}.short_side = {sides}: expected at most {MOST_SIDE} pixels")
    if len(config.jitter) != 4 or min(config.jitter) < 0 or config.jitter[3] > 0.5:
        raise ValueError(
            f"{where}.jitter = {config.jitter}: expected brightness, contrast, saturation (0 or "
            "more) and hue (0 to 0.5)"
        )
    if len(config.hsv_shift) != 3 or min(config.hsv_shift) < 0:
        raise ValueError(
            f"{where}.hsv_shift = {config.hsv_shift}: expected three whole numbers, 0 or more"
        )
    if config.rand_augment:
        rand_augment.parse_policy(config.rand_augment)


def resolve_flip(flip: str, manifest: Manifest) -> bool:
    """Whether to mirror: `auto` and `on` respect labels that change under a flip."""
    if flip not in ("off", "on", "auto"):
        raise ValueError(f"unknown config.data.flip {flip!r}; known: off, on, auto")
    if flip == "on" and manifest.flip_changes_label:
        raise ValueError(
            f"config.data.flip=on, but the labels of {manifest.name!r} change under a flip (its "
            "manifest says so); use auto or off"
        )
    return flip == "on" or (flip == "auto" and not manifest.flip_changes_label)
