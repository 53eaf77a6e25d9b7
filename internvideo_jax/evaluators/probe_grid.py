"""Which of the heads of a probe is best, chosen on other clips than it is then scored on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from internvideo_jax.evaluators import metrics
from internvideo_jax.evaluators.base import EvalContext, describe_data
from internvideo_jax.evaluators.classification import Accuracy
from internvideo_jax.protocols import Heads, Model
from internvideo_jax.tasks import Input, Result
from internvideo_jax.telemetry.pictures import grid_picture
from internvideo_jax.types import Params

SELECTION_SPLITS = ("val", "validation")


@dataclasses.dataclass(frozen=True)
class ProbeGrid(Accuracy):
    """Accuracy of the best head of a `probe`, measured as `classification` measures it.

    The choice is made on `selection_split`; without one on `val` where that is not the test split;
    without that on the records of the training split that `config.model.hold_out` keeps from the
    heads. Never on the test split, which only the chosen head sees. Equal heads: the first.
    """

    name: str = "probe_grid"
    selection_split: str = ""
    train_split: str = "train"  # which config.model.hold_out is about

    def check(self, context: EvalContext) -> None:
        """Opens what selects; ValueError where there is nothing that may."""
        _heads(context)
        context.open(self.selection(context)[0]).close()

    def selection(self, context: EvalContext) -> tuple[Input, int]:
        """What selects, and of which every so many-th record alone does (0 = all do)."""
        data, hold_out = context.data, _heads(context).hold_out
        tested = context.dataset(*self.inputs())
        directory, test, present = tested.manifest.directory, tested.split, tested.manifest.splits
        options = [split for split in SELECTION_SPLITS if split in present and split != test]
        split = self.selection_split or next(iter(options), "")
        if split == test and split:
            raise ValueError(
                f"selection_split and split are both {test!r}: a head that was chosen on the test "
                "split has seen it; name another one, or set config.model.hold_out"
            )
        if split and split != self.train_split:
            return Input(directory, split, self.views, labelled=True, head=True), 0
        if not hold_out or test == self.train_split:
            raise ValueError(
                f"nothing may choose between the heads: {directory} has the splits "
                f"{', '.join(present)}, of which {test!r} is the test. Keep a part of the training "
                "split from them (config.model.hold_out=10), or name a selection_split"
            )
        trained = data.train or directory
        return Input(trained, self.train_split, self.views, labelled=True, head=True), hold_out

    def run(self, context: EvalContext) -> Result:
        """The head that is best on held-out records, tested; and what the others give."""
        heads = _heads(context)
        source, hold_out = self.selection(context)
        accuracy, finite, protocol = self.all_heads(context, source, hold_out)
        best = int(np.where(finite, accuracy, -1.0).argmax())
        rate, decay = heads.pairs[best]
        # One compiled function per head, kept as the context keeps its own.
        compiled = context._compiled.setdefault((self.name, best), {})
        alone = dataclasses.replace(context, model=OneHead(context.model, best), _compiled=compiled)
        found = super().run(alone)
        return dataclasses.replace(
            found,
            metrics={
                **found.metrics,
                "selection_top1": float(accuracy[best]),
                "learning_rate": rate,
                "weight_decay": decay,
            },
            protocol={
                **found.protocol,
                "selection": protocol,
                "head": {"number": best, "learning_rate": rate, "weight_decay": decay},
                "heads": len(heads.pairs),
            },
            tables={
                **found.tables,
                "grid": grid_table(heads.pairs, selection_top1=accuracy),
            },
            pictures={
                **found.pictures,
                **grid_picture_of(heads.learning_rates, heads.weight_decays, accuracy),
            },
        )

    def all_heads(
        self, context: EvalContext, source: Input, hold_out: int
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """(P,) top-1 on the clips that select, (P,) whether all scores of a head are finite, and
        which clips those were. A head that diverged has 0; ValueError when all have.
        """
        views = context.open(source)
        apply = context.model.apply

        def build():
            # Rows first, as the context deals and gathers them.
            return lambda params, batch: apply(params, batch["video"]).swapaxes(0, 1)

        hits, videos = np.zeros(len(_heads(context).pairs)), 0
        finite = np.ones(len(hits), bool)
        rows = context.outputs(views, (self.name, "all"), build, f"{self.name} selection")
        count = self.views.clips * self.views.crops
        for label, record, view, logits in _by_video(rows, count, hold_out):
            finite &= np.isfinite(logits).all(axis=(0, 2))
            if not finite.any():
                raise ValueError(
                    f"the scores of record {record[0]} are not finite, and so no head has finite "
                    "scores: the weights or the record are broken"
                )
            for head in np.flatnonzero(finite):
                _, scores = metrics.merge_views(record, view, logits[:, head], self.merge)
                hits[head] += scores[0].argmax() == label
            videos += 1
        if not videos:
            raise ValueError(
                f"split {source.split!r} has no labelled clip that may choose between the heads"
            )
        return (
            np.where(finite, hits / videos, 0.0),
            finite,
            {
                **describe_data(views.dataset, self.views),
                "merge": self.merge,
                "every": hold_out,  # of whose records only these: number divisible by it; 0 = all
                "videos": videos,
                "not_finite": int((~finite).sum()),  # heads that diverged; no score, never chosen
            },
        )


def _heads(context: EvalContext) -> Heads:
    config = context.model.config
    if config.traits.heads is None:
        raise ValueError(
            f"probe_grid scores the heads of config.model = probe, found {config.name!r}; take the "
            "evaluator classification"
        )
    return config.traits.heads


def _by_video(
    rows: Iterator[tuple[dict[str, np.ndarray], np.ndarray]], count: int, hold_out: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(label, record numbers, views, logits (views, P, K)) of one labelled video after the other.

    A video is given away once all its views are there: the logits of all heads on all videos would
    not fit into memory.

    Args:
      count: views of a video.
    """
    held: dict[int, dict[int, tuple[int, np.ndarray]]] = {}

    def done(record: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        seen = held.pop(record)
        labels, logits = zip(*seen.values(), strict=True)
        return labels[0], np.full(len(seen), record), np.array(list(seen)), np.stack(logits)

    for batch, logits in rows:
        keep = batch["valid"] & (batch["label"] >= 0)
        if hold_out:
            keep &= batch["index"] % hold_out == 0
        for row in np.flatnonzero(keep):
            record, view, label = (int(batch[key][row]) for key in ("index", "view", "label"))
            held.setdefault(record, {})[view] = label, logits[row]
            if len(held[record]) == count:
                yield done(record)
    yield from [done(record) for record in list(held)]


class OneHead:
    """A probe of which only one head is left: an ordinary classifier."""

    def __init__(self, model: Model, head: int):
        self.config, self._model, self._head = model.config, model, head

    def init(self, key: jax.Array) -> Params:
        """Those of all heads."""
        return self._model.init(key)

    def shapes(self) -> Params:
        """Those of all heads."""
        return self._model.shapes()

    def has(self, method: str) -> bool:
        """It gives logits alone."""
        return method == "__call__"

    def apply(
        self, params: Params, *args: Any, method: str = "__call__", **kwargs: Any
    ) -> jax.Array:
        """(B, classes) logits."""
        one = jax.tree.map(lambda leaf: leaf[self._head : self._head + 1], params["heads"])
        return self._model.apply({**params, "heads": one}, *args, **kwargs)[0]


def grid_table(
    pairs: Sequence[tuple[float, float]], **columns: np.ndarray
) -> list[dict[str, float]]:
    """A row per (learning rate, weight decay) with its values of the columns (P,)."""
    return [
        {
            "learning_rate": rate,
            "weight_decay": decay,
            **{name: float(values[number]) for name, values in columns.items()},
        }
        for number, (rate, decay) in enumerate(pairs)
    ]


def grid_picture_of(
    rates: Sequence[float], decays: Sequence[float], accuracy: np.ndarray
) -> dict[str, np.ndarray]:
    """The picture `grid` of (P,) accuracies, the decay changing fastest; none of a single head."""
    if len(accuracy) < 2:
        return {}
    values = accuracy.reshape(len(rates), len(decays))
    rows, columns = ([f"{value:g}" for value in values] for values in (rates, decays))
    return {"grid": grid_picture(values, rows, columns, axes_of=("learning rate", "weight decay"))}
