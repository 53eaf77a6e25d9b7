"""BERT's WordPiece, uncased, as the text encoder of InternVideo2 stage 2 uses it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.text import vocabulary
from data_pipelines.text.base import mask_to_end
from data_pipelines.text.caption import clean_caption, replace_surrogates

ORIGIN = (
    "give 'bert:PATH' with vocab.txt or tokenizer.json of the model the weights were trained with "
    "(InternVideo2 stage 2: bert-large-uncased, the same file as bert-base-uncased, 30522 lines)"
)
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPieceTokenizer:
    """See `base.Tokenizer`. Rows are [CLS], ids, [SEP], [PAD]...; a long row keeps its [SEP].

    Lower case and no accents, CJK characters one by one, words of more than 100 characters and
    words without pieces become [UNK].

    Args:
      length: ids per row.
      path: `vocab.txt` (one token a line) or a `tokenizer.json`, whose own rules then hold.
      clean: `caption.clean_caption` first.
    """

    def __init__(self, length: int, path: str, *, clean: bool = False):
        if length < 2:
            raise ValueError(f"a context of {length} has no room for [CLS] and [SEP]")
        self.length, self.clean = length, clean
        self._data = vocabulary.text(vocabulary.read(path, ORIGIN), path, ORIGIN)
        try:
            tokenizer = _build(self._data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {ORIGIN}") from error
        ids = [tokenizer.token_to_id(token) for token in SPECIALS]
        self.pad_id, self.unknown_id, self.start_id, self.end_id, self.mask_id = ids
        self.vocab_size = tokenizer.get_vocab_size()
        digest = hashlib.sha256(self._data.encode()).hexdigest()[:12]
        self.identity = f"bert/{digest}/{length}/{'clean' if clean else 'plain'}"

    def __repr__(self) -> str:
        return f"WordPieceTokenizer({self.identity})"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.full((len(texts), self.length), self.pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start_id, *self.encode(text)[: self.length - 2], self.end_id]
            row[: len(ids)] = ids
        return rows

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """(..., L) ids -> bool: True up to the last end token."""
        return mask_to_end(ids, self.end_id)

    def encode(self, text: str) -> list[int]:
        """Ids of a text without [CLS], [SEP] and padding."""
        text = clean_caption(text) if self.clean else text
        text = replace_surrogates(text)
        return _build(self._data).encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; ValueError for one outside the vocabulary."""
        if len(outside := [i for i in map(int, ids) if not 0 <= i < self.vocab_size]):
            raise ValueError(f"id {outside[0]} is outside the vocabulary of {self.vocab_size}")
        return _build(self._data).decode(list(map(int, ids)), skip_special_tokens=False)


@functools.lru_cache(maxsize=4)
def _build(data: str) -> Any:
    """A `tokenizers.Tokenizer`, kept apart from ours so that ours can be pickled."""
    try:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise ImportError(
            f"the BERT tokenizer needs the library tokenizers: {vocabulary.MISSING}"
        ) from error
    if data.lstrip().startswith("{"):
        try:
            json.loads(data)
            tokenizer = Tokenizer.from_str(data)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"not a tokenizer.json ({error})") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        tokens = data.replace("\r\n", "\n").rstrip("\n").split("\n")
        ids = {token: i for i, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()  # type: ignore
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore
        tokenizer.decoder = decoders.WordPiece()  # type: ignore
    missing = [token for token in SPECIALS if tokenizer.token_to_id(token) is None]
    if missing:
        raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
    tokenizer.add_special_tokens(list(SPECIALS))
    largest, size = max(tokenizer.get_vocab().values()), tokenizer.get_vocab_size()
    if largest >= size:
        raise ValueError(
            f"the vocabulary has {size} tokens and the id {largest}; expected ids 0 to {size - 1}, "
            "each token once"
        )
    try:
        tokenizer.encode("\ue000", add_special_tokens=False)  # no vocabulary has it
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"the vocabulary cannot be used ({error})") from error
    return tokenizer
