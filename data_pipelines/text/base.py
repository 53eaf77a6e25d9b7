"""What every tokenizer offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


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


def mask_to_end(ids: np.ndarray, end_id: int) -> np.ndarray:
    """True up to the last `end_id` of each row; a caption may hold one literally before it."""
    is_end = np.asarray(ids) == end_id
    return np.flip(np.logical_or.accumulate(np.flip(is_end, -1), axis=-1), -1)
