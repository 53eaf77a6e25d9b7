"""What rooms ask of each other: of models, their configs and frozen networks.

What everything of a kind has is an attribute. What only some have is an object that may be None:
it is asked for once, and says by its type what it can do. Nothing is probed by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

if TYPE_CHECKING:  # the schema of a config is read without jax
    import jax

    from internvideo_jax.types import HeadGrid, Params, Tree

# (regular expression on a parameter's path, its axes): see parallel/rules.py.
ShardingRules = tuple[tuple[str, tuple[Any, ...]], ...]
Grid = tuple[int, int, int]  # patch tokens in time, height, width
Shape = tuple[int, ...]
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class ClipInput:
    """Clips (T, resolution, resolution, 3) that a model reads.

    Attributes:
      frames: T as the model looks at it, in evaluation too.
      tubelet, patch: frames and pixels of a token.
      pixel_mean, pixel_std: of its normalisation, for pixels from 0 to 1.
      stride: the batch of a training step has stride * frames frames; teachers see them all.
      media: types of the datasets whose clips it takes; a clip of `image` has one frame.
    """

    frames: int
    resolution: int
    grid: Grid
    tubelet: int
    patch: int
    pixel_mean: Sequence[float]
    pixel_std: Sequence[float]
    stride: int = 1
    media: tuple[str, ...] = ("video",)


@dataclasses.dataclass(frozen=True)
class TextInput:
    """Ids (context,) below `vocab` that a model reads."""

    context: int
    vocab: int


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The parts of an example that a model reads; None: not that one.

    Of audio, features and segments the shape of one example's array is known.
    """

    clip: ClipInput | None = None
    text: TextInput | None = None
    audio: Shape | None = None
    features: Shape | None = None
    segments: Shape | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of those that it reads."""
        return tuple(name for name, part in vars(self).items() if part is not None)


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Weights of another size, length or family as those of this model.

    Attributes:
      weights: (weights by path, time steps of their position tables or 0 where these are not
        known) -> weights by path; ValueError where they do not fit.
      inside: beginning of the paths of a model inside this one, whose weights these may be.
      of: the config of that model.
    """

    weights: Callable[[Mapping[str, np.ndarray], int], dict[str, np.ndarray]]
    inside: str = ""
    of: ModelConfig | None = None


@dataclasses.dataclass(frozen=True)
class Classes:
    """A head on classes: `model(video)` gives logits (B, classes).

    Attributes:
      classes: rows of the head; 0 = as many as the dataset has.
      trains_statistics: whether training goes through the method `train`, which gives new values of
        running statistics beside the logits.
      pooled: whether the method `pool` gives the vector that enters the head.
    """

    classes: int
    trains_statistics: bool = False
    pooled: bool = False


@dataclasses.dataclass(frozen=True)
class TokenFeatures:
    """The method `features` gives tokens (B, tokens, width) of a clip, a class token not counted.

    Attributes:
      flops: of one clip.
    """

    tokens: int
    width: int
    flops: float


class Stack(Protocol):
    """Transformer blocks of one size."""

    @property
    def width(self) -> int:
        """Channels of a token."""
        ...

    @property
    def depth(self) -> int:
        """Number of blocks."""
        ...

    @property
    def heads(self) -> int:
        """Heads of the attention of each."""
        ...


class Heads(Protocol):
    """Heads that train side by side on one backbone: logits are (P, B, classes)."""

    @property
    def head_grid(self) -> HeadGrid:
        """What the optimizer has to know of them."""
        ...

    @property
    def pairs(self) -> Sequence[tuple[float, float]]:
        """(learning rate, weight decay) of every head, the decay changing fastest."""
        ...

    @property
    def learning_rates(self) -> Sequence[float]:
        """The different ones."""
        ...

    @property
    def weight_decays(self) -> Sequence[float]:
        """The different ones."""
        ...

    @property
    def hold_out(self) -> int:
        """Every so many-th record teaches no head and may choose between them; 0 = none."""
        ...

    def head_flops(self) -> float:
        """Of all heads on one clip."""
        ...


class Student(Protocol):
    """A model with decoders for the features of teachers; a width of 0, no layers: no decoder."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """In the registry."""
        ...

    @property
    def frames(self) -> int:
        """That it sees of a clip."""
        ...

    @property
    def grid(self) -> Grid:
        """Tokens of a clip: time, height, width."""
        ...

    @property
    def patch(self) -> int:
        """Edge of a patch, pixels."""
        ...

    @property
    def clip_frames(self) -> int:
        """Frames of a clip in the batch."""
        ...

    @property
    def class_token(self) -> bool:
        """Whether it is the first of the aligned tokens."""
        ...

    @property
    def clip_layers(self) -> Sequence[int]:
        """Blocks that are aligned with those of the teacher of what clips show."""
        ...

    @property
    def clip_width(self) -> int:
        """Channels of that teacher's tokens."""
        ...

    @property
    def final_width(self) -> int:
        """Channels of its vector of the whole clip."""
        ...

    @property
    def mae_layers(self) -> Sequence[int]:
        """Blocks that are aligned with those of the masked autoencoder."""
        ...

    @property
    def mae_width(self) -> int:
        """Channels of its tokens."""
        ...

    def forward_flops(self, visible: int | None = None, /) -> float:
        """Of one clip of which `visible` tokens are seen; None: all."""
        ...


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a model can do beside being trained.

    Attributes:
      stacks: its stacks of blocks, by field of config.model.
      remat: what backward passes compute anew; None: it cannot choose.
      clip_tables: whether its position tables are of a whole clip, not of a single frame.
      per_frame: whether its blocks look at each frame alone, so that devices share out frames
        where those of other models share out tokens.
      frozen: beginnings of the paths of parameters that never learn.
      check_source: raises ValueError for the stated settings of a run whose weights of the same
        shapes mean something else.
    """

    stacks: Mapping[str, Stack] = dataclasses.field(default_factory=dict)
    remat: str | None = None
    clip_tables: bool = False
    per_frame: bool = False
    adaptation: Adaptation | None = None
    check_source: Callable[[Mapping[str, Any]], None] | None = None
    classifier: Classes | None = None
    features: TokenFeatures | None = None
    heads: Heads | None = None
    student: Student | None = None
    frozen: tuple[str, ...] = ()


def clip_of(config: ModelConfig) -> ClipInput:
    """The clips that a model reads; ValueError for one that reads none."""
    return _there(config, config.inputs.clip, "reads no clips")


def heads_of(config: ModelConfig) -> Heads:
    """The heads of a probe; ValueError for a model without them."""
    return _there(config, config.traits.heads, "has no heads side by side")


def classes_of(config: ModelConfig) -> Classes:
    """The head of a classifier; ValueError for a model without one."""
    return _there(config, config.traits.classifier, "has no classes")


def _there(config: ModelConfig, found: _T | None, without: str) -> _T:
    if found is None:
        raise ValueError(f"config.model is {config.name!r}, which {without}")
    return found


class ModelConfig(Protocol):
    """A frozen dataclass that is config.model. What evaluators ask of a model stands in it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """In the registry."""
        ...

    @property
    def inputs(self) -> Inputs:
        """What it eats."""
        ...

    @property
    def traits(self) -> Traits:
        """What it can do."""
        ...

    @property
    def sharding_rules(self) -> ShardingRules:
        """Which axes of its parameters are split over which axes of the mesh."""
        ...

    @property
    def forward_flops(self) -> Callable[..., float]:
        """Of one example; (tokens that the encoder sees, tokens that are decoded), where a model
        can leave some out."""
        ...

    def model(self) -> Model:
        """The network; ValueError where a setting is missing that the data give."""
        ...

    def smallest(self) -> Self:
        """The same kind of model in small, for rehearsals."""
        ...


class Model(Protocol):
    """Pure functions around a nested dict of arrays."""

    @property
    def config(self) -> ModelConfig:
        """What it was built from."""
        ...

    @property
    def kernels(self) -> frozenset[str]:
        """Paths of the kernels that products may round to eight bits (ops/quantized.py)."""
        ...

    def init(self, key: jax.Array) -> Params:
        """Random parameters."""
        ...

    def shapes(self) -> Params:
        """The parameter tree as `jax.ShapeDtypeStruct`s."""
        ...

    def has(self, method: str) -> bool:
        """Whether the network has a method of that name."""
        ...

    def apply(self, params: Params, *args: Any, method: str = ..., **kwargs: Any) -> Any:
        """What a method of the network gives with these parameters."""
        ...


class TeacherConfig(ModelConfig, Protocol):
    """The config of a network that never learns."""

    @property
    def init_from(self) -> str:
        """Run or weight file; "random" to rehearse."""
        ...

    @property
    def dtype(self) -> str:
        """Of its activations."""
        ...


class FrozenNetwork(Protocol):
    """A network in the step that never learns, before it is loaded."""

    @property
    def field(self) -> str:
        """Where in the config it stands."""
        ...

    @property
    def config(self) -> TeacherConfig:
        """What it was built from."""
        ...

    @property
    def model(self) -> Model:
        """The network."""
        ...

    @property
    def shapes(self) -> Params:
        """Of its parameters."""
        ...

    @property
    def shardings(self) -> Tree:
        """Of its parameters on the mesh."""
        ...


class Device(Protocol):
    """One of `jax.devices()`."""

    @property
    def id(self) -> int:
        """Its number in the job."""
        ...

    @property
    def platform(self) -> str:
        """cpu, gpu or tpu."""
        ...
