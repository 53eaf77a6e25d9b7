"""RandAugment on uint8 clips: policy strings, the table of operations, drawing and applying them.

Operations and magnitudes are those of the fine-tuning recipes of VideoMAE, UniFormerV2 and
InternVideo2, which use timm's policy strings ("RandAugment", Cubuk et al. 2019). The reference
works on PIL images; here every operation is OpenCV and numpy, and a test compares each with PIL:
colours agree level for level, geometry within the tolerances stated there.

One draw serves all frames of a clip. What an operation measures (a histogram, a mean) it measures
in every frame by itself, as the reference does.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.clips import colour
from data_pipelines.clips.warp import rotation, shear_x, shear_y, translation_x, translation_y, warp

Frames = list[np.ndarray]
Draw = tuple[str, float]  # operation, argument in its own unit

LEVELS = 10.0  # magnitudes run from 0 to this
# Each costs a pass over the clip; published recipes draw 2 to 4.
MOST_OPERATIONS = 100
# Beyond it timm draws magnitudes uniformly, which is another policy.
MOST_STD = 100.0


@dataclasses.dataclass(frozen=True)
class Operation:
    """One entry of the table.

    Attributes:
      apply: (frame, argument) -> new frame of the same shape; None for the geometric ones.
      matrix: (argument, height, width) -> output-to-input map; None for the others.
      argument: magnitude 0..10 -> argument; None = the operation takes none.
      signed: the argument is negated for every second clip; with `centre` 1, its distance from 1.
      centre: added after the sign.
    """

    apply: Callable[[np.ndarray, float], np.ndarray] | None = None
    matrix: Callable[[float, int, int], np.ndarray] | None = None
    argument: Callable[[float], float] | None = None
    signed: bool = False
    centre: float = 0.0


def _enhance(apply: Callable[[np.ndarray, float], np.ndarray]) -> Operation:
    return Operation(apply, argument=lambda m: 0.1 + 0.18 * m)


def _enhance_increasing(apply: Callable[[np.ndarray, float], np.ndarray]) -> Operation:
    return Operation(apply, argument=lambda m: 0.09 * m, signed=True, centre=1.0)


# Arguments: degrees; bits kept; threshold; levels added; blend factor; pixels per pixel; share of
# the side.
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(lambda frame, _: colour.autocontrast(frame)),
    "Equalize": Operation(lambda frame, _: colour.equalize(frame)),
    "Invert": Operation(lambda frame, _: colour.invert(frame)),
    "Rotate": Operation(matrix=rotation, argument=lambda m: 3.0 * m, signed=True),
    "Posterize": Operation(colour.posterize, argument=lambda m: int(m / LEVELS * 4)),
    "PosterizeIncreasing": Operation(colour.posterize, argument=lambda m: 4 - int(m / LEVELS * 4)),
    "Solarize": Operation(colour.solarize, argument=lambda m: int(m / LEVELS * 256)),
    "SolarizeIncreasing": Operation(
        colour.solarize, argument=lambda m: 256 - int(m / LEVELS * 256)
    ),
    "SolarizeAdd": Operation(colour.solarize_add, argument=lambda m: int(m / LEVELS * 110)),
    "Color": _enhance(colour.saturation),
    "ColorIncreasing": _enhance_increasing(colour.saturation),
    "Contrast": _enhance(colour.contrast),
    "ContrastIncreasing": _enhance_increasing(colour.contrast),
    "Brightness": _enhance(colour.brightness),
    "BrightnessIncreasing": _enhance_increasing(colour.brightness),
    "Sharpness": _enhance(colour.sharpness),
    "SharpnessIncreasing": _enhance_increasing(colour.sharpness),
    "ShearX": Operation(matrix=shear_x, argument=lambda m: 0.03 * m, signed=True),
    "ShearY": Operation(matrix=shear_y, argument=lambda m: 0.03 * m, signed=True),
    "TranslateXRel": Operation(matrix=translation_x, argument=lambda m: 0.045 * m, signed=True),
    "TranslateYRel": Operation(matrix=translation_y, argument=lambda m: 0.045 * m, signed=True),
}

# What a policy draws from; with `inc1`, the five that have an increasing variant take it.
CHOICES = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
# Weight set `w0` of timm, in the order of CHOICES.
WEIGHTS = (
    (0.025, 0.005, 0.0, 0.3, 0.0, 0.005, 0.005, 0.025, 0.005, 0.005, 0.025, 0.2, 0.2, 0.1, 0.1),
)


@dataclasses.dataclass(frozen=True)
class Policy:
    """What a policy string says.

    Attributes:
      magnitude: mean magnitude, 0..10.
      operations: how many are drawn per clip.
      std: standard deviation of the magnitude.
      increasing: use the variants whose severity grows with the magnitude.
      weights: index into WEIGHTS, drawn without replacement; None = uniform with replacement.
      limit: largest magnitude after the noise.
      probability: chance that a drawn operation is applied.
    """

    magnitude: float = LEVELS
    operations: int = 2
    std: float = 0.0
    increasing: bool = False
    weights: int | None = None
    limit: float = LEVELS
    probability: float = 0.5

    @property
    def choices(self) -> tuple[str, ...]:
        """Names of the operations it draws from."""
        if not self.increasing:
            return CHOICES
        return tuple(
            f"{name}Increasing" if f"{name}Increasing" in OPERATIONS else name for name in CHOICES
        )


FIELDS = {
    "m": "magnitude",
    "n": "operations",
    "mstd": "std",
    "inc": "increasing",
    "w": "weights",
    "mmax": "limit",
    "p": "probability",
}


@functools.lru_cache
def parse_policy(text: str) -> Policy:
    """Reads timm's policy string, such as `rand-m7-n4-mstd0.5-inc1`.

    Raises:
      ValueError: not such a string, an unknown part, or a value outside its range.
    """
    kind, *parts = text.split("-")
    if kind != "rand":
        raise ValueError(
            f"RandAugment policy {text!r} starts with {kind!r}; expected a string such as "
            "rand-m7-n4-mstd0.5-inc1"
        )
    values: dict[str, float] = {}
    for part in parts:
        found = re.fullmatch(r"([a-z]{1,9})([0-9]{1,9}(?:\.[0-9]{1,9})?)", part)
        if found is None or found[1] not in FIELDS:
            raise ValueError(
                f"part {part[:40]!r} of the RandAugment policy {text[:200]!r} is unknown; expected "
                f"one of {', '.join(FIELDS)} followed by a number of at most 9 digits"
            )
        if FIELDS[found[1]] in values:
            raise ValueError(f"the RandAugment policy {text!r} gives {found[1]!r} twice")
        values[FIELDS[found[1]]] = float(found[2])
    whole = {name: values.pop(name) for name in ("operations", "weights") if name in values}
    if any(value != int(value) for value in whole.values()):
        raise ValueError(f"n and w of the RandAugment policy {text!r} must be whole numbers")
    increasing = values.pop("increasing", 0.0)
    policy = Policy(
        **values, **{name: int(value) for name, value in whole.items()}, increasing=increasing > 0
    )
    _check(policy, increasing, text)
    return policy


def _check(policy: Policy, increasing: float, text: str) -> None:
    drawable = len(CHOICES)
    if policy.weights is not None and policy.weights < len(WEIGHTS):
        drawable = sum(weight > 0 for weight in WEIGHTS[policy.weights])
    for right, problem in (
        (policy.magnitude <= LEVELS, f"m must be at most {LEVELS:g}"),
        (policy.limit <= LEVELS, f"mmax must be at most {LEVELS:g}"),
        (policy.operations >= 1, "n must be at least 1"),
        (policy.operations <= MOST_OPERATIONS, f"n must be at most {MOST_OPERATIONS}"),
        (policy.std <= MOST_STD, f"mstd must be at most {MOST_STD:g}"),
        (policy.probability <= 1, "p must be at most 1"),
        (increasing in (0, 1), "inc must be 0 or 1"),
        (policy.weights in (None, *range(len(WEIGHTS))), f"w must be below {len(WEIGHTS)}"),
        (
            policy.weights is None or policy.operations <= drawable,
            f"with w, which draws without replacement, n must be at most {drawable}",
        ),
    ):
        if not right:
            raise ValueError(f"RandAugment policy {text!r}: {problem}")


def draw(policy: Policy, rng: np.random.Generator) -> list[Draw]:
    """The operations for one clip, in order, with their arguments.

    Magnitudes are normal around the policy's and clipped; how often `rng` is called depends on the
    policy alone.
    """
    names = policy.choices
    if policy.weights is None:
        chosen = rng.integers(len(names), size=policy.operations)
    else:
        weights = np.asarray(WEIGHTS[policy.weights])
        chosen = rng.choice(len(names), policy.operations, replace=False, p=weights / weights.sum())
    drawn = []
    for index in chosen:
        applied = rng.random() < policy.probability
        magnitude = min(max(rng.normal(policy.magnitude, policy.std), 0.0), policy.limit)
        sign = -1.0 if rng.random() < 0.5 else 1.0
        if applied:
            drawn.append((names[index], argument(names[index], magnitude, sign)))
    return drawn


def argument(name: str, magnitude: float, sign: float = 1.0) -> float:
    """The argument of operation `name` at a magnitude 0..10; 0 where it takes none."""
    operation = OPERATIONS[name]
    if operation.argument is None:
        return 0.0
    value = operation.argument(magnitude)
    return operation.centre + (sign * value if operation.signed else value)


def apply(frames: Sequence[np.ndarray], drawn: Sequence[Draw], interpolation: str) -> Frames:
    """Applies the drawn operations in order.

    Args:
      frames: (H, W, 3) uint8 each, all of one shape; not modified. An object that appears several
        times is worked on once.
      interpolation: bilinear | bicubic, for the geometric operations.

    Returns:
      as many frames; equal objects in, equal objects out.
    """
    if not drawn:
        return list(frames)
    unique = {id(frame): frame for frame in frames}
    for name, value in drawn:
        operation = OPERATIONS[name]
        if operation.matrix is not None:
            height, width = frames[0].shape[:2]
            matrix = operation.matrix(value, height, width)
            warped = warp(list(unique.values()), matrix, interpolation)
            unique = dict(zip(unique, warped, strict=True))
        elif operation.apply is not None:
            unique = {key: operation.apply(frame, value) for key, frame in unique.items()}
    return [unique[id(frame)] for frame in frames]
