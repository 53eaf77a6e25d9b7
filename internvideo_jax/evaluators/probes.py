"""Probes on features in memory: small heads trained on frozen features without augmentation.

Every pair of a learning rate and a weight decay trains at once. The pair that is best on a held-out
part of the training split is retrained on all of it and scored on the test split, which chooses
nothing. For sets that do not fit into memory the same heads train as a run: families/probe.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.limits import limited
from internvideo_jax.config import OptimConfig
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.features import FeatureTask, extract
from internvideo_jax.evaluators.probe_grid import grid_picture_of, grid_table
from internvideo_jax.ops.losses import smooth_labels, soft_cross_entropy
from internvideo_jax.ops.probe_heads import HeadSpec, apply_head, init_head
from internvideo_jax.optim.factory import make_optimizer
from internvideo_jax.optim.schedules import cosine
from internvideo_jax.tasks import Result
from internvideo_jax.types import (
    HeadGrid,
    Tree,
)

ROWS = 512  # clips scored at a time
HELD_OUT = 5  # every fifth training clip selects the learning rate and weight decay

Pairs = Sequence[tuple[float, float]]  # (learning rate, weight decay) of every head


@dataclasses.dataclass(frozen=True)
class LinearProbe(FeatureTask):
    """Softmax regression on mean-pooled, standardised features."""

    name: str = "linear_probe"
    max_clips: int = limited(50000, least=1)  # training clips used
    steps: int = limited(500, least=1)
    batch: int = limited(256, least=1)
    learning_rates: Sequence[float] = limited((1e-3, 3e-3, 1e-2, 3e-2), least=0)
    weight_decays: Sequence[float] = limited((1e-3,), least=0)

    @property
    def spec(self) -> HeadSpec:
        """One linear layer on the pooled vector."""
        return HeadSpec("linear")

    @property
    def pairs(self) -> Pairs:
        """(learning rate, weight decay) of every head, the decay changing fastest."""
        return tuple(itertools.product(self.learning_rates, self.weight_decays))

    def run(self, context: EvalContext) -> Result:
        """The head that is best on held-out clips learns again on all clips, and is tested."""
        return _probe(self, context)


@dataclasses.dataclass(frozen=True)
class ConcatProbe(LinearProbe):
    """The same on class token, means of the patches and pooled vector, as far as there are any."""

    name: str = "concat_probe"
    per_frame: bool = False  # the means of all frames, not one of the clip

    @property
    def spec(self) -> HeadSpec:
        """One linear layer on all that there is, one behind the other."""
        return HeadSpec("concat", per_frame=self.per_frame)


@dataclasses.dataclass(frozen=True)
class AttentiveProbe(LinearProbe):
    """One learned query attends to all tokens, then a linear layer (V-JEPA, Bardes et al. 2024)."""

    name: str = "attentive_probe"
    max_clips: int = 2000  # training clips used; their tokens are kept in memory
    steps: int = 500
    batch: int = 128
    learning_rates: Sequence[float] = (3e-4, 1e-3, 3e-3)
    weight_decays: Sequence[float] = (0.01,)
    heads: int = limited(4, least=1)
    mlp: bool = False  # a MLP after the attention

    @property
    def spec(self) -> HeadSpec:
        """A query over all tokens, then a linear layer."""
        return HeadSpec("attentive", heads=self.heads, mlp=self.mlp)


def _probe(probe: LinearProbe, context: EvalContext) -> Result:
    train_input, test_input = probe.inputs()
    train = extract(context, train_input, probe.spec, limit=probe.max_clips)
    test = extract(context, test_input, probe.spec)
    axes = tuple(range(train.values.ndim - 1))
    centre = train.values.mean(axis=axes, dtype=np.float64).astype(np.float32)
    spread = train.values.std(axis=axes, dtype=np.float64).astype(np.float32) + 1e-6

    def scaled(values: np.ndarray) -> np.ndarray:
        return ((values.astype(np.float32) - centre) / spread).astype(values.dtype)

    values, label = scaled(train.values), train.label
    held = np.arange(len(label)) % HELD_OUT == 0
    pairs = probe.pairs
    fit = Fit(probe, len(train.classes), context.seed)
    trained = fit.train(values[~held], label[~held], pairs)
    accuracy, finite = fit.judge(trained, values[held], label[held])
    best = int(np.where(finite, accuracy, -1.0).argmax())
    final = fit.train(values, label, pairs[best : best + 1])
    tested = scaled(test.values)
    top1, sound = fit.judge(final, tested, test.label)
    if not (finite.any() and sound.all()):
        raise ValueError(
            f"the scores of {probe.name} are not finite after {probe.steps} steps at a learning "
            f"rate of {pairs[best][0]:g}: give smaller learning_rates"
        )
    return Result(
        metrics={
            "top1": float(top1[0]),
            "held_out_top1": float(accuracy[best]),
        },
        protocol={
            **test.protocol,
            "train_split": probe.train_split,
            "train_clips": len(label),
            "steps": probe.steps,
            "batch": probe.batch,
            "learning_rate": pairs[best][0],
            "weight_decay": pairs[best][1],
            "not_finite": int((~finite).sum()),  # pairs that diverged; no score, never chosen
        },
        tables={"grid": grid_table(pairs, held_out_top1=accuracy)},
        pictures=grid_picture_of(probe.learning_rates, probe.weight_decays, accuracy),
        scored=test.scored(np.concatenate([each[0] for each in fit.scores(final, tested)])),
    )


@dataclasses.dataclass(frozen=True)
class Fit:
    """Trains one head per pair on in-memory features, all in one program."""

    probe: LinearProbe
    classes: int
    seed: int

    def train(self, values: np.ndarray, label: np.ndarray, pairs: Pairs) -> Any:
        """Stacked parameters, one row per pair."""
        probe, spec = self.probe, self.probe.spec
        batch = min(probe.batch, len(label))
        rng = np.random.default_rng(self.seed)
        epochs = -(-probe.steps * batch // len(label))
        order = np.concatenate([rng.permutation(len(label)) for _ in range(epochs)])
        rows = jnp.asarray(order[: probe.steps * batch].reshape(probe.steps, batch))
        features, targets = jnp.asarray(values), jnp.asarray(label)
        head = init_head(spec, jax.random.key(self.seed), values.shape[-1], self.classes)
        heads = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(pairs), *x.shape)), head)
        rates, decays = zip(*pairs, strict=True)
        optimizer = make_optimizer(
            OptimConfig(b2=0.999, weight_decay=0.0, clip_norm=1.0),
            heads,
            cosine(1.0, 0.0, probe.steps, warmup=probe.steps // 20),
            HeadGrid("", rates, decays),
        )

        def loss(heads: Tree, at: jax.Array) -> jax.Array:
            logits = logits_of(spec)(heads, features[at])
            target = smooth_labels(targets[at], self.classes, 0.0)
            return soft_cross_entropy(logits, target).mean(axis=1).sum()

        def step(carry: Tree, inputs: Tree) -> tuple[Any, None]:
            heads, state = carry
            number, at = inputs
            heads, state, _ = optimizer.update(jax.grad(loss)(heads, at), state, heads, number)
            return (heads, state), None

        def run(heads: Tree) -> Any:
            carry = heads, optimizer.init(heads)
            return jax.lax.scan(step, carry, (jnp.arange(probe.steps), rows))[0][0]

        return jax.jit(run)(heads)

    def accuracy(self, heads: Tree, values: np.ndarray, label: np.ndarray) -> np.ndarray:
        """(pairs,) top-1 accuracy."""
        return self.judge(heads, values, label)[0]

    def judge(
        self, heads: Tree, values: np.ndarray, label: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(pairs,) top-1 accuracy, 0 for a head whose scores are not all finite, and (pairs,) bool
        whether they are."""
        hits = np.zeros(len(jax.tree.leaves(heads)[0]))
        finite = np.ones(len(hits), bool)
        for start, logits in zip(
            range(0, len(label), ROWS), self.scores(heads, values), strict=True
        ):
            finite &= np.isfinite(logits).all(axis=(1, 2))
            hits += (logits.argmax(axis=-1) == label[start : start + ROWS]).sum(axis=1)
        return np.where(finite, hits / len(label), 0.0), finite

    def scores(self, heads: Tree, values: np.ndarray) -> Iterator[np.ndarray]:
        """(pairs, at most ROWS, classes) logits of one part of the clips after the other."""
        predict = jax.jit(logits_of(self.probe.spec))
        for start in range(0, len(values), ROWS):
            yield np.asarray(predict(heads, jnp.asarray(values[start : start + ROWS])))


def logits_of(spec: HeadSpec) -> Callable[[Any, jax.Array], jax.Array]:
    """(stacked parameters, features of B clips) -> (heads, B, classes)."""
    return jax.vmap(lambda head, x: apply_head(spec, head, x), in_axes=(0, None))
