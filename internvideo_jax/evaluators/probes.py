"""Linear and attentive probes: small heads trained on frozen features.

Several learning rates train at once. The one that is best on a held-out part of the training split
is retrained on all of it and scored on the test split, which chooses nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import OptimConfig
from internvideo_jax.evaluators.base import EvalContext, Result
from internvideo_jax.evaluators.features import FeatureTask, extract
from internvideo_jax.ops.attention import attend
from internvideo_jax.ops.losses import smooth_labels, soft_cross_entropy
from internvideo_jax.optim.factory import make_optimizer
from internvideo_jax.optim.schedules import cosine

HELD_OUT = 5  # every fifth training clip selects the learning rate

Head = Callable[[Any, jax.Array], jax.Array]  # (params, features) -> logits


@dataclasses.dataclass(frozen=True)
class LinearProbe(FeatureTask):
    """Softmax regression on mean-pooled, standardised features."""

    name: str = "linear_probe"
    max_clips: int = 50000  # training clips used
    steps: int = 500
    batch: int = 256
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2)
    weight_decay: float = 1e-3

    def run(self, context: EvalContext) -> Result:
        return _probe(self, context, pooled=True)

    def head(self, width: int, classes: int) -> tuple[Callable[[jax.Array], Any], Head]:
        def init(key: jax.Array) -> Any:
            del key
            return {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}

        return init, lambda params, x: x @ params["kernel"] + params["bias"]


@dataclasses.dataclass(frozen=True)
class AttentiveProbe(FeatureTask):
    """One learned query attends to all tokens, then a linear layer (V-JEPA, Bardes et al. 2024)."""

    name: str = "attentive_probe"
    max_clips: int = 2000  # training clips used; their tokens are kept in memory
    steps: int = 500
    batch: int = 128
    learning_rates: Sequence[float] = (3e-4, 1e-3, 3e-3)
    weight_decay: float = 0.01
    heads: int = 4

    def run(self, context: EvalContext) -> Result:
        return _probe(self, context, pooled=False)

    def head(self, width: int, classes: int) -> tuple[Callable[[jax.Array], Any], Head]:
        if width % self.heads:
            raise ValueError(f"{self.heads} probe heads do not divide the width {width}")

        def init(key: jax.Array) -> Any:
            query, kv, out = jax.random.split(key, 3)
            scale = width**-0.5
            return {
                "query": 0.02 * jax.random.normal(query, (width,)),
                "kv": {"kernel": scale * jax.random.normal(kv, (2, width, width))},
                "proj": {"kernel": scale * jax.random.normal(out, (width, width))},
                "head": {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)},
            }

        def apply(params: Any, tokens: jax.Array) -> jax.Array:
            tokens = tokens.astype(jnp.float32)
            shape = (*tokens.shape[:2], self.heads, width // self.heads)
            k, v = (
                part.reshape(shape)
                for part in jnp.einsum("bnc,sco->sbno", tokens, params["kv"]["kernel"])
            )
            query = jnp.broadcast_to(params["query"], (len(tokens), 1, width))
            query = query.reshape(len(tokens), 1, self.heads, width // self.heads)
            pooled = attend(query, k, v).reshape(len(tokens), width)
            pooled = pooled @ params["proj"]["kernel"]
            return pooled @ params["head"]["kernel"] + params["head"]["bias"]

        return init, apply


def _probe(probe: LinearProbe | AttentiveProbe, context: EvalContext, *, pooled: bool) -> Result:
    train_input, test_input = probe.inputs()
    train = extract(context, train_input, pooled=pooled, limit=probe.max_clips)
    test = extract(context, test_input, pooled=pooled)
    axes = (0,) if pooled else (0, 1)
    centre = train.values.mean(axis=axes, dtype=np.float64).astype(np.float32)
    spread = train.values.std(axis=axes, dtype=np.float64).astype(np.float32) + 1e-6

    def scaled(values: np.ndarray) -> np.ndarray:
        return ((values.astype(np.float32) - centre) / spread).astype(values.dtype)

    values, label = scaled(train.values), train.label
    held = np.arange(len(label)) % HELD_OUT == 0
    init, head = probe.head(values.shape[-1], len(train.classes))
    rates = np.asarray(probe.learning_rates, np.float32)
    fit = _Fit(probe, init, head, len(train.classes), context.seed)
    accuracy = fit.accuracy(
        fit.train(values[~held], label[~held], rates), values[held], label[held]
    )
    best = int(accuracy.argmax())
    final = fit.train(values, label, rates[best : best + 1])
    return Result(
        metrics={
            "top1": float(fit.accuracy(final, scaled(test.values), test.label)[0]),
            "held_out_top1": float(accuracy[best]),
        },
        protocol={
            **test.protocol,
            "train_split": probe.train_split,
            "train_clips": len(label),
            "steps": probe.steps,
            "batch": probe.batch,
            "learning_rate": float(rates[best]),
            "weight_decay": probe.weight_decay,
        },
        tables={
            "learning_rates": {
                f"{rate:g}": float(a) for rate, a in zip(rates, accuracy, strict=True)
            }
        },
    )


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Trains one head per learning rate on in-memory features, all in one program."""

    probe: LinearProbe | AttentiveProbe
    init: Callable[[jax.Array], Any]
    head: Head
    classes: int
    seed: int

    def train(self, values: np.ndarray, label: np.ndarray, rates: np.ndarray) -> Any:
        """Stacked parameters, one per learning rate."""
        probe = self.probe
        batch = min(probe.batch, len(label))
        rng = np.random.default_rng(self.seed)
        epochs = -(-probe.steps * batch // len(label))
        order = np.concatenate([rng.permutation(len(label)) for _ in range(epochs)])
        rows = jnp.asarray(order[: probe.steps * batch].reshape(probe.steps, batch))
        features, targets = jnp.asarray(values), jnp.asarray(label)
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        optimizer = make_optimizer(
            OptimConfig(b2=0.999, weight_decay=probe.weight_decay, clip_norm=1.0),
            shapes,
            cosine(1.0, 0.0, probe.steps, warmup=probe.steps // 20),
        )

        def loss(params: Any, at: jax.Array) -> jax.Array:
            logits = self.head(params, features[at])
            return soft_cross_entropy(logits, smooth_labels(targets[at], self.classes, 0.0)).mean()

        def one(rate: jax.Array) -> Any:
            def step(carry: Any, inputs: Any) -> tuple[Any, None]:
                params, state = carry
                number, at = inputs
                gradient = jax.grad(loss)(params, at)
                # The schedule runs from 1 to 0; each head scales it with its own rate.
                moved, state, _ = optimizer.update(gradient, state, params, number)
                params = jax.tree.map(lambda p, m: p + rate * (m - p), params, moved)
                return (params, state), None

            params = self.init(jax.random.key(self.seed))
            carry = (params, optimizer.init(params))
            (params, _), _ = jax.lax.scan(step, carry, (jnp.arange(probe.steps), rows))
            return params

        return jax.jit(jax.vmap(one))(jnp.asarray(rates))

    def accuracy(self, params: Any, values: np.ndarray, label: np.ndarray) -> np.ndarray:
        """(rates,) top-1 accuracy."""
        predict = jax.jit(jax.vmap(self.head, in_axes=(0, None)))
        hits = np.zeros(len(jax.tree.leaves(params)[0]))
        for start in range(0, len(label), 512):
            logits = np.asarray(predict(params, jnp.asarray(values[start : start + 512])))
            hits += (logits.argmax(axis=-1) == label[start : start + 512]).sum(axis=1)
        return hits / len(label)
