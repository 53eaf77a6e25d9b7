"""What a run asks of its tasks: of the objective that it minimises, and of its evaluators.

An ability that only some objectives have says that it is not there, in the base class; nothing is
probed by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from data_pipelines.config import ViewConfig
from internvideo_jax.protocols import Model, ModelConfig

if TYPE_CHECKING:  # the schema of a config is read without jax
    import jax

    from internvideo_jax.types import Batch, Found, Params, Tree

# By name as in `networks`: the network and its weights.
Frozen = Mapping[str, "tuple[Model, Params]"]


class Objective:
    """What is minimised. A subclass is a frozen dataclass; its fields are config.objective.

    It defines `check`, `loss` and `flops`; the rest are abilities that it may have. All methods are
    pure, and what they draw derives from the key of the run and the positions in the batch.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str

    @property
    def across(self) -> bool:
        """Whether the loss compares the examples of the whole batch.

        Then `embed` and `compare` stand beside `loss`, so that microbatches leave it as it is
        (parallel/microbatch.py).
        """
        return False

    @property
    def beside(self) -> Objective | None:
        """Of `across`: what `compare` does not give, as an objective; None: it gives all."""
        return None

    @property
    def reads(self) -> tuple[str, ...]:
        """What it takes of the batch beside the video: text, audio, features."""
        return ()

    @property
    def pairs(self) -> bool:
        """Whether the clips of a microbatch are mixed in pairs, so that it must be even."""
        return False

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError where the settings contradict each other or config.model."""
        raise NotImplementedError

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Found:
        """The terms of a part of a batch, each with its own count, and further means to log.

        Args:
          model: gives `apply` and its `config`.
          key: of the run. step: number of finished steps.
        """
        raise NotImplementedError

    def flops(self, config: ModelConfig) -> float:
        """Model FLOPs of one training example, forward and backward."""
        raise NotImplementedError

    def embed(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Any:
        """Of `across`: a tree of arrays with a row per example, a function of this example only.

        Totals and counts of terms that an example has alone may be among them.
        """
        raise NotImplementedError

    def compare(self, params: Params, embeddings: Tree, batch: Batch) -> Found:
        """Of `across`: the terms between the embeddings of a whole batch."""
        raise NotImplementedError

    def project(self, params: Params) -> Params:
        """The parameters put back into their bounds, after every update."""
        return params

    def networks(self) -> dict[str, Any]:
        """Configs of frozen networks in the step (teachers), by field below config.objective."""
        return {}

    def targets(self, frozen: Frozen, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """What the frozen networks make of a batch: parts `features/NAME` that join it."""
        raise NotImplementedError

    def teacher_flops(self) -> float:
        """FLOPs of the frozen networks for one training example."""
        return sum((each.forward_flops() for each in self.networks().values()), 0.0)

    def cached_shapes(self, config: ModelConfig) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Parts `features/NAME` that come with the batch: shapes of one example's, and types."""
        del config
        return {}

    def target_settings(self) -> dict[str, Any]:
        """Fields that decide what the targets mean, for those that are computed beforehand."""
        return {"name": self.name}

    def smallest(self, model: ModelConfig) -> tuple[Objective, ModelConfig]:
        """For a rehearsal: the objective and config.model in small, as they fit each other."""
        return self, model


@dataclasses.dataclass(frozen=True)
class Input:
    """One split that an evaluator reads."""

    data: str  # directory; empty: the run's
    split: str  # empty: that of `default_split`
    views: ViewConfig
    labelled: bool  # whether it needs labels
    _: dataclasses.KW_ONLY
    head: bool = False  # whether its classes must be those of the model's head
    seconds: float = 0.0  # only so much from the beginning of every clip; 0 = all
    limit: int = 0  # only so many records, evenly spaced; 0 = all
    # Of the batch, as config.data has them: video, audio, text, features, or of config.data.parts.
    parts: tuple[str, ...] = ("video",)


class Scores(Protocol):
    """Scores of the videos of a split."""

    def rows(self, *, every: bool = ...) -> Iterator[dict[str, Any]]:
        """A row per video; with `every` it has the scores of all classes."""
        ...


@dataclasses.dataclass(frozen=True)
class Result:
    """Numbers, and everything needed to say what they mean."""

    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]  # views, merge rule, data fingerprint ...
    tables: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # JSON values
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # (H, W, 3)
    animations: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # (T, H, W, 3)
    captions: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of pictures, by name
    sheets: Mapping[str, str] = dataclasses.field(default_factory=dict)  # CSV, for people
    scored: Scores | None = None  # of every video, for those who ask
    pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # inference/pixels.py
    alarm: str = ""  # why a run should not go on like this
    stops: bool = False  # whether a training run ends for it


class Evaluator(Protocol):
    """A frozen dataclass with the settings of one task, config.evals.LABEL.

    Attributes:
      compares_texts: whether it compares videos with texts.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    compares_texts: ClassVar[bool]

    @property
    def name(self) -> str:
        """In the registry."""
        ...

    @property
    def every(self) -> int:
        """Steps between runs during training; 0 = only at the end, -1 = never."""
        ...

    @property
    def views(self) -> ViewConfig:
        """Which clips of a video it looks at."""
        ...

    def inputs(self) -> Sequence[Input]:
        """The splits that it will read, so that a run can check them before the first step."""
        ...

    # The context is an EvalContext of evaluators/base.py, which knows more than this floor.
    def check(self, context: Any) -> None:
        """ValueError, OSError or ImportError for what a run would stumble over beside `inputs`."""

    def run(self, context: Any) -> Result:
        """Evaluates the model of the context."""
        ...
