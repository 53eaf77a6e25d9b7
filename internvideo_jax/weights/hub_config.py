"""What lies beside weights in a folder of Hugging Face: settings, names of classes, pixels.

`config.json` says what the shapes of weights do not: heads, frames, pixels, what the classes are
called. What it asks for and our models do not have is refused with its name and value.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = "config.json"
# Of these the first that is there says how pixels are normalised.
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
SAMPLING_RATE = "frame_sampling_rate"  # stored frames between two frames of a clip; ours alone
LARGEST = 1 << 24  # bytes of such a file: names of a hundred thousand classes
TOWERS = ("encoder", "decoder", "text")
HEADS = ("head/bias", "image_head/bias")  # whose length is the number of classes
_NAMELESS = re.compile(r"LABEL_\d+")  # what transformers calls classes that nobody has named


@dataclasses.dataclass(frozen=True)
class Stated:
    """Attributes:
    settings: fields of config.model, as plain values.
    classes: names of the classes of the head; empty: not known.
    remarks: what someone should know.
    stride: stored frames between two frames of a clip; 0: not known.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    stride: int = 0


@dataclasses.dataclass(frozen=True)
class HubConfig:
    """The values of a `config.json`, or of one of the configs in it.

    Attributes:
      content: its values.
      place: file and place in it, for messages.
    """

    content: Mapping[str, Any]
    place: str

    def size(self, name: str, default: int) -> int:
        """A positive whole number; of [n, n] the n. ValueError for anything else."""
        value = self.content.get(name, default)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise ValueError(f"{self.place}: {name} is {value!r}; expected a number above 0")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false; ValueError for anything else."""
        value = self.content.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.place}: {name} is {value!r}; expected true or false")
        return value

    def only(self, name: str, default: Any, *known: Any) -> Any:
        """The value of a setting; ValueError unless it is one of `known`, which we can compute."""
        value = self.content.get(name, default)
        if value not in known:
            raise ValueError(
                f"{self.place}: {name} is {value!r}, which this model does not have; expected "
                f"{' or '.join(map(repr, known))}"
            )
        return value

    def near(self, name: str, default: float, ours: float) -> tuple[str, ...]:
        """A remark where an epsilon is not ours: nothing is refused for it."""
        value = self.content.get(name, default)
        if not isinstance(value, int | float) or not 0 <= value < 1e-2:
            raise ValueError(f"{self.place}: {name} is {value!r}; expected about {ours:g}")
        return () if value == ours else (f"{name} is {value:g} there, {ours:g} here",)

    def part(self, name: str) -> HubConfig:
        """A config inside this one; ValueError where there is none."""
        inner = self.content.get(name)
        if not isinstance(inner, dict):
            raise ValueError(f"{self.place}: {name} is {type(inner).__name__}, expected settings")
        return HubConfig(inner, f"{self.place}, {name}")

    def classes(self) -> tuple[str, ...]:
        """Names by number; empty where transformers made them up, or there are none."""
        named = self.content.get("id2label") or {}
        if not isinstance(named, dict) or not all(isinstance(each, str) for each in named.values()):
            raise ValueError(f"{self.place}: id2label is no table of number -> name")
        if all(_NAMELESS.fullmatch(name) for name in named.values()):
            return ()
        numbers = {str(number) for number in range(len(named))}
        if named.keys() != numbers:
            odd = sorted(named.keys() - numbers)[0]
            raise ValueError(
                f"{self.place}: id2label has {odd!r}; expected the numbers 0 to {len(named) - 1}"
            )
        return tuple(named[str(number)] for number in range(len(named)))


def labels(count: int, names: Sequence[str]) -> dict[str, Any]:
    """What a `config.json` says of `count` classes.

    Args:
      names: of them; empty: `LABEL_0`, `LABEL_1` ..., as transformers does.

    Raises:
      ValueError: not as many names, or one of them twice.
    """
    if names and len(names) != count:
        raise ValueError(f"{len(names)} class names for a head of {count} classes")
    named = list(names) or [f"LABEL_{number}" for number in range(count)]
    numbers = {name: number for number, name in enumerate(named)}
    if len(numbers) < count:
        twice = next(name for number, name in enumerate(named) if numbers[name] != number)
        raise ValueError(
            f"two classes are called {twice!r}, which label2id of a config.json cannot say; give "
            "other names with --labels"
        )
    return {
        "id2label": {str(number): name for number, name in enumerate(named)},
        "label2id": numbers,
    }


def read(folder: Path) -> HubConfig | None:
    """The `config.json` of a folder; None where there is none; ValueError for an unreadable one."""
    content = _json(folder / CONFIG)
    return None if content is None else HubConfig(content, str(folder / CONFIG))


def pixels(folder: Path) -> tuple[dict[str, Any], int]:
    """`pixel_mean` and `pixel_std` of a folder's processor, as far as it has one, and stride."""
    for name in PROCESSORS:
        content = _json(folder / name)
        if content is None:
            continue
        found = HubConfig(content, str(folder / name))
        found.only("do_rescale", True, True)
        rate = content.get("rescale_factor", 1 / 255)
        if not isinstance(rate, float) or abs(rate * 255 - 1) > 1e-3:
            raise ValueError(f"{found.place}: rescale_factor is {rate!r}; expected 1/255")
        stride = found.size(SAMPLING_RATE, 1) if SAMPLING_RATE in content else 0
        if not found.flag("do_normalize", True):
            return {"pixel_mean": (0.0,) * 3, "pixel_std": (1.0,) * 3}, stride
        values = {
            ours: _colours(found, theirs)
            for ours, theirs in (("pixel_mean", "image_mean"), ("pixel_std", "image_std"))
            if theirs in content
        }
        return values, stride
    return {}, 0


def check_shapes(stated: Stated, params: Mapping[str, np.ndarray], place: str) -> None:
    """ValueError where a `config.json` does not fit the weights beside it."""
    head = next((params[path] for path in HEADS if path in params), None)
    if stated.classes and head is not None and len(stated.classes) != len(head):
        raise ValueError(
            f"{place}: names {len(stated.classes)} classes of id2label, the head has {len(head)}; "
            "take both from one model"
        )
    for name in TOWERS:
        scale, fields = params.get(f"{name}/blocks/norm1/scale"), stated.settings.get(name)
        if scale is None or fields is None:
            continue
        for field, found in zip(("depth", "width"), scale.shape, strict=True):
            if fields[field] != found:
                raise ValueError(
                    f"{place}: {name} has {field} {fields[field]}, the weights beside it {found}; "
                    "take both from one model"
                )


def _colours(config: HubConfig, name: str) -> tuple[float, ...]:
    value = config.content[name]
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(isinstance(each, int | float) for each in values):
        raise ValueError(f"{config.place}: {name} is {value!r}; expected a number for each colour")
    return tuple(float(each) for each in values)


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes are no settings of a model")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a {type(content).__name__}, expected a table of settings")
    return content
