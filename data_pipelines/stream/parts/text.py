"""The captions of a batch: token ids, or strings without a tokeniser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines import text
from data_pipelines.config import DataConfig
from data_pipelines.stream.parts.base import Batch, Part, Reading, Rows, Spec

Tokenize = Callable[[list[str]], np.ndarray]  # n texts -> (n, L) int32

TEXTS = ("off", "first", "random")
# Draws that do not belong to the pixels have a stream of their own: the high word of the counter.
_COUNTER = [0, 0, 0, 1]


@dataclasses.dataclass(frozen=True)
class Text(Part):
    """`has_text` () bool, and `text` (L,) int32 or, without a tokeniser, the string `caption`.

    Attributes:
      choice: first | random; an evaluation pass takes the first.
      length: ids of a caption.
      ids: whether there are ids; `tokenize` makes them, None where only shapes are asked for.
      prompt: in front of every caption.
    """

    choice: str
    length: int
    ids: bool
    tokenize: Tokenize | None = None
    prompt: str = ""

    def spec(self) -> Spec:
        """See the class."""
        has_text = ((), np.dtype(np.bool_))
        if self.ids:
            return {"text": ((self.length,), np.dtype(np.int32)), "has_text": has_text}
        return {"caption": ((), np.dtype(np.str_)), "has_text": has_text}

    def identity(self) -> Mapping[str, Any]:
        """Which caption is taken, and the tokenizer."""
        return {"text": {"choice": self.choice, "tokenizer": name_of(self.tokenize)}}

    def rows(self, count: int) -> Batch:
        """Captions, which become ids when all are there."""
        return {"caption": np.empty(count, np.object_)}

    def fill(self, reading: Reading, out: Rows) -> None:
        """See `Part.fill`."""
        # Sets that others wrote hold captions that say nothing; there is no text in them.
        captions = [caption for caption in reading.record.captions if caption.strip()]
        for row in range(len(out["caption"])):
            chosen, rng = 0, None
            if captions and self.choice == "random":
                rng = reading.generator(row, _COUNTER)
            if rng is not None:
                chosen = int(rng.integers(len(captions)))
            out["caption"][row] = self.prompt + captions[chosen] if captions else ""

    def finish(self, arrays: Batch) -> Batch:
        """All captions as ids in one go, or as they are."""
        texts = list(arrays["caption"])
        has_text = np.array([bool(text) for text in texts])
        if self.tokenize is None:
            return {"caption": np.array(texts, np.str_), "has_text": has_text}
        return {"text": ids_of(self.tokenize, texts), "has_text": has_text}


def ids_of(tokenize: Tokenize, texts: list[str]) -> np.ndarray:
    """(n, L) int32; ValueError where the tokeniser gives something else."""
    tokens = np.asarray(tokenize(texts))
    if tokens.ndim != 2 or len(tokens) != len(texts) or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"the tokeniser gave {tokens.dtype} {tokens.shape} for {len(texts)} texts; "
            f"expected integers of shape ({len(texts)}, L)"
        )
    return tokens.astype(np.int32)


def check_choice(choice: str) -> None:
    """ValueError for an unknown way to choose captions."""
    if choice not in TEXTS:
        raise ValueError(f"unknown config.data.text {choice!r}; known: {', '.join(TEXTS)}")


def tokenizer_of(config: DataConfig, given: Tokenize | None) -> Tokenize | None:
    """That of the settings, or the caller's own; ValueError for both, or one without text."""
    if not config.tokenizer:
        return given
    if given is not None:
        raise ValueError(
            f"config.data.tokenizer = {config.tokenizer!r} and a tokeniser of the caller's own: "
            "expected one of them"
        )
    if config.text == "off":
        raise ValueError(
            f"config.data.tokenizer = {config.tokenizer!r}, but config.data.text is off; set it to "
            "first or random, or leave the tokenizer out"
        )
    return text.make_tokenizer(config.tokenizer, config.text_length, clean=config.text_clean)


def name_of(tokenize: Tokenize | None) -> str:
    """What stands for a tokeniser in the identity of a stream."""
    if tokenize is None:
        return ""
    name = getattr(tokenize, "identity", "") or getattr(tokenize, "name", "")
    name = name or getattr(tokenize, "__qualname__", "")
    return str(name or type(tokenize).__qualname__)
