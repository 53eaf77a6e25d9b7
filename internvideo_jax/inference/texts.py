"""Texts as the ids that a model reads, and ids as embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.text import Tokenizer, make_tokenizer
from internvideo_jax.inference.steps import fetched
from internvideo_jax.parallel.mesh import ALONE, BatchShare
from internvideo_jax.protocols import TextInput

MISFIT = (
    "the tokenizer {name!r} has {found} ids, the model's table {vocab}: they belong to different "
    "models"
)

# A batch of this process -> what of it is no video and its embeddings, on the devices.
Start = Callable[[dict[str, np.ndarray]], tuple[dict[str, jax.Array], Any]]


def fitting_tokenizer(
    name: str, length: int, vocab: int, *, clean: bool = True, misfit: str = MISFIT
) -> Tokenizer:
    """The tokenizer of a model with vectors for `vocab` ids.

    Args:
      name, length, clean: as `make_tokenizer`.
      misfit: what is wrong where they do not fit, with {name}, {found} and {vocab}.

    Raises:
      ValueError: the tokenizer has other ids than the model has vectors for.
    """
    tokenizer = make_tokenizer(name, length, clean=clean)
    if tokenizer.vocab_size != vocab:
        raise ValueError(misfit.format(name=name, found=tokenizer.vocab_size, vocab=vocab))
    return tokenizer


@dataclasses.dataclass(frozen=True)
class Texts:
    """The tokenizer of a model, and the same with one id more, which shows what is cut."""

    tokenizer: Tokenizer
    longer: Tokenizer

    @staticmethod
    def of(reads: TextInput, name: str, *, clean: bool, misfit: str = MISFIT) -> Texts:
        """Those of a model that reads such texts; raises as `fitting_tokenizer`."""
        first, second = (
            fitting_tokenizer(name, length, reads.vocab, clean=clean, misfit=misfit)
            for length in (reads.context, reads.context + 1)
        )
        return Texts(first, second)

    def cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the model's context, and lose their end."""
        return int(self.longer.mask(self.longer(texts))[:, -1].sum()) if texts else 0

    def words(self, text: str) -> tuple[bool, bool]:
        """Whether the model gets anything of a text, and whether it gets all of it."""
        ids = int(self.longer.mask(self.longer([text])).sum())
        return ids > 2, ids <= self.tokenizer.length


def embed_rows(
    start: Start, part: str, rows: np.ndarray, size: int, share: BatchShare = ALONE
) -> np.ndarray:
    """(N, ...) of a part of the batch -> (N, E) float32; whole on every process.

    Args:
      size: rows of a step, over all processes.
      share: which of them this process gives.

    Raises:
      ValueError: there are no rows.
    """
    if not len(rows):
        raise ValueError(f"there is no {part} to encode")
    own = slice(share.number * size // share.count, (share.number + 1) * size // share.count)

    def started() -> Iterator[tuple[None, tuple[jax.Array, jax.Array]]]:
        for first in range(0, len(rows), size):
            # The last step repeats the last row, and writes what is there.
            index = np.minimum(np.arange(first, first + size, dtype=np.int32), len(rows) - 1)[own]
            batch, values = start({"index": index, part: rows[index]})
            yield None, (batch["index"], values)

    table: np.ndarray | None = None
    for _, (index, values) in fetched(started()):
        if table is None:
            table = np.empty((len(rows), values.shape[1]), np.float32)
        table[index] = values
    assert table is not None  # noqa: S101  (there are rows)
    return table


def embed_unique(start: Start, ids: np.ndarray, size: int, share: BatchShare = ALONE) -> np.ndarray:
    """(N, S) int32 -> (N, E) float32 as `embed_rows`, each text once: equal ids, equal vectors."""
    different, place = np.unique(ids, axis=0, return_inverse=True)
    return embed_rows(start, "text", different, size, share)[place.ravel()]
