"""Several objectives in one run: the weighted sum of all their terms, each over its own count."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from internvideo_jax.config import component
from internvideo_jax.protocols import Model, ModelConfig
from internvideo_jax.tasks import Frozen, Objective
from internvideo_jax.types import Batch, Found, Loss, Mean, Params, Term


@dataclasses.dataclass(frozen=True)
class Several(Objective):
    """Objectives by label, all of one model and one batch.

    Terms and metrics are logged as `LABEL/...`, the one term of an objective as `LABEL`. Those that
    compare the whole batch (`across`) are computed by gradient caching with microbatches, the
    others beside them, part by part. One of them at most has targets of frozen networks, and one
    that mixes clips (`pairs`) mixes its own copy.
    """

    name: str = "several"
    of: Mapping[str, Objective] = component("objective", many=True)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by label; 1 if absent

    def check(self, config: ModelConfig) -> None:
        """ValueError for no objectives, a wrong weight, or settings that one of them refuses."""
        if not self.of:
            raise ValueError("config.objective.of is empty; expected an objective for each label")
        for label, weight in self.weights.items():
            if label not in self.of or not 0 < weight < math.inf:
                raise ValueError(
                    f"config.objective.weights.{label} = {weight}; expected a positive number for "
                    f"one of the labels {', '.join(self.of)}"
                )
        for objective in self.of.values():
            objective.check(config)
        taught = [
            label
            for label, each in self.of.items()
            if each.networks() or each.cached_shapes(config)
        ]
        if len(taught) > 1:
            raise ValueError(
                f"config.objective.of: {' and '.join(taught)} take targets of frozen networks, "
                "which have one place in the batch; one objective of a run may"
            )

    @property
    def across(self) -> bool:
        """Whether one of them is."""
        return any(each.across for each in self.of.values())

    @property
    def reads(self) -> tuple[str, ...]:
        """What any of them reads."""
        return tuple(dict.fromkeys(kind for each in self.of.values() for kind in each.reads))

    @property
    def pairs(self) -> bool:
        """Whether one of them mixes pairs."""
        return any(each.pairs for each in self.of.values())

    @property
    def beside(self) -> Several | None:
        """The objectives, or what stands beside them, that look at every part alone."""
        rest = {
            label: each.beside if each.across else each
            for label, each in self.of.items()
            if not each.across or each.beside is not None
        }
        return self._some(rest) if rest else None

    def loss(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Loss:
        """The terms of all, by label and name, weighted."""
        return self._sum(
            {label: each.loss(model, params, batch, key, step) for label, each in self.of.items()}
        )

    def embed(
        self, model: Model, params: Params, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, Any]:
        """By label, of those that compare across the batch."""
        return {
            label: each.embed(model, params, batch, key, step)
            for label, each in self.of.items()
            if each.across
        }

    def compare(self, params: Params, embeddings: Mapping[str, Any], batch: Batch) -> Loss:
        """The terms of those that compare across the batch."""
        return self._sum(
            {
                label: self.of[label].compare(params, rows, batch)
                for label, rows in embeddings.items()
            }
        )

    def project(self, params: Params) -> Params:
        """The parameters in the bounds of all."""
        for each in self.of.values():
            params = each.project(params)
        return params

    def networks(self) -> dict[str, Any]:
        """By `of.LABEL.FIELD`."""
        return {
            f"of.{label}.{name}": network
            for label, each in self.of.items()
            for name, network in each.networks().items()
        }

    def targets(self, frozen: Frozen, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """The targets of all, each from the networks below its label."""
        found: dict[str, jax.Array] = {}
        for label, each in self.of.items():
            prefix = f"of.{label}."
            own = {
                name.removeprefix(prefix): network
                for name, network in frozen.items()
                if name.startswith(prefix)
            }
            if own:
                found |= each.targets(own, batch, key)
        return found

    def cached_shapes(self, config: ModelConfig) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Those of all."""
        return {
            name: shape
            for each in self.of.values()
            for name, shape in each.cached_shapes(config).items()
        }

    def target_settings(self) -> dict[str, Any]:
        """Those of the one that has targets, so that they are the same as in a run of it alone."""
        found = [each.target_settings() for each in self.of.values()]
        return next((each for each in found if len(each) > 1), super().target_settings())

    def smallest(self, model: ModelConfig) -> tuple[Several, ModelConfig]:
        """All in small, one after the other on the same model."""
        small = {}
        for label, each in self.of.items():
            small[label], model = each.smallest(model)
        return self._some(small), model

    def flops(self, config: ModelConfig) -> float:
        """The sum: each calls the model for itself."""
        return sum(each.flops(config) for each in self.of.values())

    def _some(self, of: Mapping[str, Any]) -> Several:
        weights = {label: weight for label, weight in self.weights.items() if label in of}
        return dataclasses.replace(self, of=of, weights=weights)

    def _sum(self, losses: Mapping[str, Found]) -> Loss:
        terms, metrics, updates = {}, {}, {}
        for label, found in losses.items():
            loss, weight = Loss.of(found), self.weights.get(label, 1.0)
            if isinstance(loss.terms, Mean):
                terms[label] = Term(loss.terms, weight)
            else:
                for name, term in loss.terms.items():
                    scaled = dataclasses.replace(term, weight=weight * term.weight)
                    terms[f"{label}/{name}"] = scaled
            metrics |= {f"{label}/{name}": mean for name, mean in loss.metrics.items()}
            updates |= loss.updates
        return Loss(terms, metrics, updates)
