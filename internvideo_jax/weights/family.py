"""What a published lineage tells the weight tools: one `Family` object in its own folder.

A family is registered by one line in `registry.py` and imported when weights are first asked about.
No family knows another: whose a file is, is told by the share of its names that each one covers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np

from internvideo_jax.registry import FAMILIES, resolve
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.hub_config import HubConfig, Stated
from internvideo_jax.weights.rules import Rule, Tensors


class Tower(Protocol):
    """A stack of transformer blocks, as far as its shapes tell."""

    @property
    def width(self) -> int:
        """Channels of a token."""
        ...

    @property
    def depth(self) -> int:
        """Number of blocks."""
        ...

    @property
    def hidden(self) -> int:
        """Channels inside an MLP."""
        ...


# What the shapes of a checkpoint tell: `width`, `depth`, `classes` ... Only what is there.
Facts = dict[str, Any]

# Facts that the parameters of every kind tell in the same way: name, path, axis.
SHAPES = (
    ("width", "encoder/blocks/norm1/scale", 1),
    ("depth", "encoder/blocks/norm1/scale", 0),
    ("hidden", "encoder/blocks/mlp/fc1/kernel", 2),
    ("decoder_width", "decoder/blocks/norm1/scale", 1),
    ("decoder_depth", "decoder/blocks/norm1/scale", 0),
    ("heads", "encoder/blocks/attn/scale", 1),
    ("classes", "head/bias", 0),
    ("positions", "encoder/pos_embed/table", 0),
    ("positions", "encoder/pos_embed", 0),
    ("global_blocks", "global_blocks/norm1/scale", 0),
)
NO_HEAD = "no head: enough to fine-tune, not to evaluate"

# A file is not a family's below these: of its names, of the parameters that the rules know.
LEAST_SHARE, LEAST_FILLED = 0.5, 0.25


@dataclasses.dataclass(frozen=True, order=True)
class Cover:
    """How well names fit a file; of two the larger fits better."""

    share: float  # of the tensors in the file, those that the rules know
    whole: float  # of the parameters that may not be absent, those that are there
    filled: float  # of all parameters that the rules know, those that are there


@dataclasses.dataclass(frozen=True)
class Names:
    """What the parameters of one kind of model are called in a file."""

    rules: Sequence[Rule]
    # Regular expression on names of the file -> reason why they are left out on purpose.
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # On our paths: what a file may lack, always as a whole (rules.check_complete).
    optional: Sequence[str] = ()

    def converts(self, name: str) -> bool:
        """Whether a rule has the tensor `name`."""
        return any(rule.match(name) is not None for rule in self.rules)

    def knows(self, name: str) -> bool:
        """Whether the tensor `name` is converted, or left out on purpose."""
        return self.converts(name) or self._ignores(name)

    def cover(self, tensors: Mapping[str, np.ndarray]) -> Cover:
        """Names count where the shape is possible, too."""
        known, there = 0, set()
        for name, tensor in tensors.items():
            rule = next((each for each in self.rules if each.match(name) is not None), None)
            if rule is not None and rule.layout.fits(tensor.shape):
                there.add(rule.path)
                known += 1
            elif rule is None and self._ignores(name):
                known += 1
        paths = {rule.path for rule in self.rules}
        needed = {p for p in paths if not any(re.fullmatch(each, p) for each in self.optional)}
        return Cover(
            known / max(len(tensors), 1),
            len(needed & there) / len(needed) if needed else 1.0,
            len(there) / len(paths),
        )

    def _ignores(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of model of a family, and what can be said of a file that holds one.

    Families override the methods where theirs is more than what all have.
    """

    name: str  # of the model in the registry, or of weights that only start one
    names: Names
    title: str = ""  # empty: nothing is said of such a file
    # Size name -> facts that a file of this size has, `width` among them.
    sizes: Mapping[str, Facts] = dataclasses.field(default_factory=dict)
    # Of a mean of two models: paths that stay the first's, and kind of a file that this one may
    # have started from -> function (first, other) to that file's weights as they went in.
    kept: Sequence[str] = ()
    starts: Mapping[str, Callable[[Tensors, Tensors], Tensors]] = dataclasses.field(
        default_factory=dict
    )

    @classmethod
    def of(
        cls,
        name: str,
        title: str,
        names: Mapping[str, Names],
        sizes: Mapping[str, Facts],
        **more: Any,
    ) -> Self:
        """The kind `name`, of whose names and sizes a family has a table."""
        return cls(name=name, title=title, names=names[name], sizes=sizes, **more)

    def config_of(self, entry: Entry) -> Any:
        """The config of a published model, as its recipe has it but for drop path and the like."""
        changes = {**entry.changes, "frames": entry.frames, "resolution": entry.pixels}
        if not entry.pretrained:
            changes["classes"] = entry.classes
        return resolve("model", self.name).of_size(entry.size, **changes)

    def facts_of_entry(self, entry: Entry) -> Facts:
        """What the shapes of a published model's parameters will tell."""
        return self.facts_of_config(self.config_of(entry))

    def facts_of_config(self, config: Any) -> Facts:
        """What the shapes of this model's parameters will tell."""
        return {"kind": self.name, **tower_facts(config.encoder), "patch": config.patch}

    def facts_of_params(self, params: Mapping[str, Any], geometry: Mapping[str, Any]) -> Facts:
        """What the shapes of these parameters tell.

        Args:
          params: path -> anything with a `shape`.
          geometry: patch size, and tubelet where there is one.
        """
        facts: Facts = {"kind": self.name, **geometry}
        for fact, path, axis in SHAPES:
            if path in params and axis < len(params[path].shape):
                facts[fact] = params[path].shape[axis]
        return facts

    def size_of(self, facts: Facts) -> str:
        """The size name of these facts, empty when no published model has these shapes."""
        if "width" not in facts:
            return ""
        return next((name for name, size in self.sizes.items() if agree(size, facts)), "")

    def shape(self, facts: Facts) -> list[str]:
        """What is told of the shapes beside width, depth, patch, classes and decoder."""
        return [f"{facts['positions']} positions"] if "positions" in facts else []

    def remarks(self, facts: Facts) -> list[str]:
        """What someone who wants to use the file should know."""
        return []

    def settings(self, facts: Facts) -> tuple[str, ...]:
        """To add to a recipe that reads the file."""
        return ()

    def can_be_evaluated(self, facts: Facts) -> bool:
        """Whether the file holds all that a test needs."""
        return "classes" in facts


class HuggingFace(Protocol):
    """The layout of Hugging Face transformers for some kinds of a family."""

    @property
    def names(self) -> Mapping[str, Names]:
        """By kind."""
        ...

    @property
    def recipes(self) -> Mapping[str, str]:
        """Kind -> a recipe that loads a model of it, whatever its size; kinds that are models."""
        ...

    def full_names(self, names: Iterable[str]) -> dict[str, str]:
        """Names of a file -> as the rules have them: a bare model has no prefix."""
        ...

    def geometry(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Patch size, and tubelet where there is one."""
        ...

    def stated(self, kind: str, config: HubConfig) -> Stated:
        """What a `config.json` says; ValueError for what our model does not have."""
        ...

    def made(self, kind: str, settings: Mapping[str, Any], params: Tensors) -> Any:
        """The config of a model of these settings, as `config_json` takes it."""
        ...

    def guess(
        self, kind: Kind, params: Tensors, geometry: Mapping[str, int], given: Mapping[str, int]
    ) -> dict[str, Any]:
        """Settings from the parameters, as far as they tell; `given` is the rest."""
        ...

    def config_json(self, config: Any, classes: Sequence[str] = ()) -> dict[str, Any]:
        """The content of `config.json`; ValueError where the layout cannot express the model."""
        ...

    def processors(self, config: Any) -> dict[str, dict[str, Any]]:
        """File name -> content, of what prepares pixels; empty where that is not known."""
        ...


def _same(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _no_recipe(facts: Facts, size: str) -> str:
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A published lineage."""

    title: str
    kinds: Sequence[Kind]
    # Patch size, and tubelet where there is one, from the tensors of a file.
    geometry: Callable[[Mapping[str, np.ndarray]], dict[str, int]]
    # Published checkpoints by the part of their name before the slash.
    sources: Mapping[str, Sequence[Entry]] = dataclasses.field(default_factory=dict)
    huggingface: HuggingFace | None = None
    # Names of a file -> without what files of this family may have before some of them.
    short_names: Callable[[Iterable[str]], dict[str, str]] = _same
    # The recipe for a file of these facts and size, which may be another family's whose weights
    # this one starts from; empty: none.
    recipe: Callable[[Facts, str], str] = _no_recipe

    def recognise(self, tensors: Mapping[str, np.ndarray]) -> Recognised | None:
        """The kind that covers the file best, None where none covers enough of it."""
        short = {"": self.short_names(tensors)}
        if self.huggingface is not None:
            short["huggingface"] = self.huggingface.full_names(tensors)
        renamed = {
            layout: {known: tensors[name] for name, known in names.items()}
            for layout, names in short.items()
        }
        found = [
            Recognised(names.cover(renamed[layout]), self, kind, layout, names, renamed[layout])
            for layout, kind, names in self.layouts()
        ]
        enough = [
            each
            for each in found
            if each.cover.share >= LEAST_SHARE and each.cover.filled >= LEAST_FILLED
        ]
        return max(enough, key=lambda each: each.cover, default=None)

    def layouts(self) -> list[tuple[str, Kind, Names]]:
        """All names that files may have: layout (empty: the original one), kind, names."""
        found = [("", kind, kind.names) for kind in self.kinds]
        if (other := self.huggingface) is not None:
            mine = (kind for kind in self.kinds if kind.name in other.names)
            found += [("huggingface", kind, other.names[kind.name]) for kind in mine]
        return found


@dataclasses.dataclass(frozen=True)
class Recognised:
    """Whose a file is."""

    cover: Cover
    family: Family
    kind: Kind
    layout: str  # `huggingface`, or empty: the original names
    names: Names
    tensors: Mapping[str, np.ndarray]  # under the names that the rules have

    def geometry(self) -> dict[str, int]:
        """Patch size, and tubelet where there is one."""
        other = self.family.huggingface
        if self.layout and other is not None:
            return other.geometry(self.tensors)
        return self.family.geometry(self.tensors)


def families() -> list[Family]:
    """All registered families."""
    return [resolve("family", name) for name in FAMILIES]


def recognise(tensors: Mapping[str, np.ndarray]) -> Recognised | None:
    """Of all families the one that covers the file best; of equals the first registered."""
    found = [each for family in families() if (each := family.recognise(tensors)) is not None]
    return max(found, key=lambda each: each.cover, default=None)


def kinds() -> dict[str, Kind]:
    """Kinds of weights by name."""
    return {kind.name: kind for family in families() for kind in family.kinds}


def family_of(kind: str) -> Family | None:
    """The family of a kind of model."""
    return next((each for each in families() if kind in {k.name for k in each.kinds}), None)


def named(
    rules: Mapping[str, Sequence[Rule]],
    ignored: Mapping[str, Mapping[str, str]],
    optional: Mapping[str, Sequence[str]],
) -> dict[str, Names]:
    """Tables by kind, put together by kind."""
    return {kind: Names(rules[kind], ignored[kind], optional[kind]) for kind in rules}


def agree(one: Facts, other: Facts) -> bool:
    """Whether the facts that both have are the same."""
    return all(other[name] == value for name, value in one.items() if name in other)


def image_facts(encoder: Tower, resolution: int, patch: int) -> Facts:
    """Facts of an image transformer with a class token, of so many pixels."""
    return {**tower_facts(encoder), "patch": patch, "positions": 1 + (resolution // patch) ** 2}


def tower_facts(tower: Tower) -> Facts:
    """Of a stack of blocks."""
    return {"width": tower.width, "depth": tower.depth, "hidden": tower.hidden}
