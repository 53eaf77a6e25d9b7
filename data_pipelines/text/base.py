"""What every tokenizer offers, and how one is made from its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

WORLD = Path(__file__).with_name("world_merges.txt")


class Tokenizer(Protocol):
    """Captions -> rows of ids of one length; picklable, so that worker processes can have it."""

    length: int  # ids per caption, special tokens and padding included
    vocab_size: int
    pad_id: int
    identity: str  # names vocabulary, length and cleaning; equal identities give equal ids

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) captions, any Unicode and empty ones too -> (N, length) int32."""
        ...

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """(..., length) ids -> bool of the same shape, True up to the end token, False on padding.

        Padding cannot be told by its id alone: the CLIP pad id 0 is also the id of "!".
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, as the reference prints it; special tokens are not removed."""
        ...


def make_tokenizer(name: str, context: int, *, clean: bool = False) -> Tokenizer:
    """A tokenizer from its name in a config.

    Args:
      name: "clip" for the vocabulary of OpenAI's CLIP as a package brings it, "clip:PATH" for a
        merges file (`bpe_simple_vocab_16e6.txt.gz`), "bert:PATH" for a `vocab.txt` or a
        `tokenizer.json`. PATH may be an http(s) address. "world" is CLIP's encoding with merges for
        the words of the built-in world only, other words fall to letters; its end token too has
        the largest id.
      context: ids per caption; 32 for ViCLIP, 77 for InternVideo-MM, 32 or 40 for stage 2.
      clean: apply `caption.clean_caption` first, as the training and the evaluation of ViCLIP and
        of InternVideo2 stage 2 do. The demos and InternVideo-MM do not.

    Raises:
      ValueError: unknown name, context too short, damaged vocabulary.
      FileNotFoundError, ImportError: the vocabulary or the library is not there; the message says
        where it comes from.
    """
    kind, _, path = name.partition(":")
    if kind == "clip":
        from data_pipelines.text.clip import ClipTokenizer

        return ClipTokenizer(context, path, clean=clean)
    if kind == "bert":
        from data_pipelines.text.wordpiece import WordPieceTokenizer

        return WordPieceTokenizer(context, path, clean=clean)
    if name == "world":
        from data_pipelines.text.clip import ClipTokenizer

        return ClipTokenizer(context, str(WORLD), clean=clean)
    raise ValueError(
        f"unknown tokenizer {name!r}; there are 'clip', 'clip:PATH', 'bert:PATH' and 'world'"
    )


def mask_to_end(ids: np.ndarray, end_id: int) -> np.ndarray:
    """True up to the last `end_id` of each row; a caption may hold one literally before it."""
    is_end = np.asarray(ids) == end_id
    return np.flip(np.logical_or.accumulate(np.flip(is_end, -1), axis=-1), -1)
