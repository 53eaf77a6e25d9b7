"""A tokenizer from its name in a config."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.text.base import Tokenizer

WORLD = Path(__file__).with_name("world_merges.txt")


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
