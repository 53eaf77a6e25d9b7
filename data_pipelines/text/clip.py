"""CLIP's byte-level byte-pair encoding with the ids of OpenAI's CLIP, ViCLIP and InternVideo-MM.

The library does the merging; cleaning, special tokens, padding, truncation and decoding are the
reference's rules and stand here. Two libraries can do it: `instant-clip-tokenizer` brings the
vocabulary along and has wheels for some platforms only, `tokenizers` runs everywhere and needs the
merges file, which may be in another package. Both give the same ids.
"""

from __future__ import annotations

import functools
import hashlib
import html
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.text import vocabulary
from data_pipelines.text.base import mask_to_end
from data_pipelines.text.caption import clean_caption, replace_surrogates

MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
ORIGIN = (
    f"give 'clip:PATH' with the file {MERGES_FILE}, which is in the repository "
    "openai/CLIP (folder clip) and in the packages open-clip-torch and clip-anytorch"
)
# Modules of packages that bring that file; they are looked for, never imported.
_HOLDERS = ("open_clip", "clip")
# Lines of that file which count, header apart: the rest is not part of the vocabulary.
MERGES = 49152 - 256 - 2
# Of these lines; the packaged vocabulary is the same.
VOCABULARY_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
SPECIALS = ("<|startoftext|>", "<|endoftext|>")
_SPECIAL = re.compile("|".join(map(re.escape, SPECIALS)))
_PIECES = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class _Engine(Protocol):
    size: int  # ids without the two special tokens

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class ClipTokenizer:
    """See `base.Tokenizer`. Rows are start, ids, end, zeros; a long row is cut and ends with end.

    Args:
      length: ids per row.
      path: merges file; empty: the vocabulary of the package `instant-clip-tokenizer`, else the
        merges file of an installed open-clip-torch or clip-anytorch.
      clean: `caption.clean_caption` first.
    """

    pad_id = 0

    def __init__(self, length: int, path: str = "", *, clean: bool = False):
        if length < 2:
            raise ValueError(f"a context of {length} has no room for the start and end tokens")
        _import_ftfy()
        self.length, self.clean = length, clean
        self._merges = _read_merges(path) if path else _installed_merges()
        size = self._engine.size
        self.start_id, self.end_id, self.vocab_size = size, size + 1, size + 2
        digest = VOCABULARY_SHA256 if self._merges is None else _digest(self._merges)
        self.identity = f"clip/{digest[:12]}/{length}/{'clean' if clean else 'plain'}"

    @property
    def _engine(self) -> _Engine:
        # Looked up each time: the libraries' objects cannot be pickled.
        return _packaged() if self._merges is None else _from_merges(self._merges)

    def __repr__(self) -> str:
        return f"ClipTokenizer({self.identity})"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.full((len(texts), self.length), self.pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start_id, *self.encode(text), self.end_id][: self.length]
            ids[-1] = self.end_id
            row[: len(ids)] = ids
        return rows

    def mask(self, ids: np.ndarray) -> np.ndarray:
        """(..., L) ids -> bool: True up to the last end token."""
        return mask_to_end(ids, self.end_id)

    def encode(self, text: str) -> list[int]:
        """Ids of a text without start, end and padding."""
        if self.clean:
            text = clean_caption(text)
        ids: list[int] = []
        for part in _split_specials(basic_clean(text)):
            if part in SPECIALS:
                ids.append(self.start_id + SPECIALS.index(part))
            elif part:
                ids.extend(self._engine.encode(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; ValueError for one outside the vocabulary."""
        parts: list[str] = []
        plain: list[int] = []
        for token in map(int, ids):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"id {token} is outside the vocabulary of {self.vocab_size}")
            if token < self.start_id:
                plain.append(token)
            else:
                parts += [self._engine.decode(plain), SPECIALS[token - self.start_id]]
                plain = []
        return "".join([*parts, self._engine.decode(plain)])


def basic_clean(text: str) -> str:
    """The tokenizer's own: Unicode repaired, HTML unescaped twice, single spaces, lower case."""
    text = html.unescape(html.unescape(_import_ftfy().fix_text(text))).strip()
    return replace_surrogates(re.sub(r"\s+", " ", text).strip().lower())


def _split_specials(text: str) -> Iterator[str]:
    """Cuts out the literal special tokens where the reference's pattern would see them.

    It reads from left to right and takes a run of punctuation whole, so that a special token that
    follows other punctuation directly is punctuation too.
    """
    at = 0
    for found in _SPECIAL.finditer(text):
        start = found.start()
        before = text[start - 1 : start]
        if start > at and not (before.isalnum() or before.isspace()):
            continue
        yield text[at:start]
        yield found.group()
        at = found.end()
    yield text[at:]


def _import_ftfy() -> Any:
    try:
        import ftfy
    except ImportError as error:
        raise ImportError(f"the CLIP tokenizer needs ftfy: {vocabulary.MISSING}") from error
    return ftfy


def _installed_merges() -> str | None:
    """Of a package that brings the file; None where `instant-clip-tokenizer` is there instead.

    Raises:
      ImportError: neither is installed.
    """
    if importlib.util.find_spec("instant_clip_tokenizer"):
        return None
    for spec in filter(None, map(importlib.util.find_spec, _HOLDERS)):
        for folder in spec.submodule_search_locations or ():
            path = Path(folder, MERGES_FILE)
            if path.is_file() and _digest(merges := _read_once(str(path))) == VOCABULARY_SHA256:
                return merges
    raise ImportError(
        "no CLIP vocabulary here: the package instant-clip-tokenizer, which brings one, has "
        f"wheels for Python 3.11 and 3.12 on x86-64 Linux and macOS ({vocabulary.MISSING}); "
        f"elsewhere {ORIGIN}. For plain 'clip' it is enough to have that file installed: "
        "pip install --no-deps clip-anytorch"
    )


@functools.lru_cache(maxsize=1)
def _packaged() -> _Engine:
    from instant_clip_tokenizer import Tokenizer  # type: ignore

    return _Packaged(Tokenizer())


class _Packaged:
    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.size = tokenizer.start_of_text()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))


def _digest(merges: str) -> str:
    return hashlib.sha256(merges.encode()).hexdigest()


def _read_merges(path: str) -> str:
    """The merges that count, one a line."""
    lines = vocabulary.text(vocabulary.read(path, ORIGIN), path, ORIGIN).rstrip("\n").split("\n")
    merges = [line.rstrip("\r") for line in lines[1 : MERGES + 1]]
    for number, line in enumerate(merges, 2):
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is not a pair; {ORIGIN}")
    if not merges:
        raise ValueError(f"{path}: no merges in it; {ORIGIN}")
    made = {symbol + end for symbol in _byte_symbols().values() for end in ("", "</w>")}
    made.update(line.replace(" ", "") for line in merges)
    for number, line in enumerate(merges, 2):
        for part in line.split(" "):
            if part not in made:
                raise ValueError(
                    f"{path}, line {number}: {line[:60]!r} joins {part[:60]!r}, which is neither a "
                    f"character nor made by another line; {ORIGIN}"
                )
    return "\n".join(merges)


@functools.lru_cache(maxsize=2)
def _read_once(path: str) -> str:
    return _read_merges(path)


@functools.lru_cache(maxsize=4)
def _from_merges(merges: str) -> _Engine:
    pairs = (line.split(" ") for line in merges.split("\n"))
    return _Merged([(first, second) for first, second in pairs])


class _Merged:
    def __init__(self, merges: list[tuple[str, str]]):
        try:
            from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        except ImportError as error:
            raise ImportError(
                f"a merges file needs the library tokenizers: {vocabulary.MISSING}"
            ) from error
        symbols = list(_byte_symbols().values())
        symbols += [symbol + "</w>" for symbol in symbols]
        symbols += ["".join(pair) for pair in merges]
        self.size, self._symbols = len(symbols), symbols
        self._bytes = {symbol: byte for byte, symbol in _byte_symbols().items()}
        # Where two merges give one string the later id counts, as in the reference's dictionary.
        ids = {symbol: i for i, symbol in enumerate(symbols)}
        model = models.BPE(ids, merges, end_of_word_suffix="</w>")
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore
            [
                pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        text = "".join(self._symbols[i] for i in ids).replace("</w>", " ")
        data = b"".join(bytes([self._bytes[c]]) if c in self._bytes else c.encode() for c in text)
        return data.decode("utf-8", "replace")


@functools.lru_cache(maxsize=1)
def _byte_symbols() -> dict[int, str]:
    """Byte -> printable character, in the order of the ids: printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
