"""Text before tokenisation."""

from __future__ import annotations

import re

_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


def clean_caption(text: str) -> str:
    """The caption clean-up of ViCLIP and of InternVideo2 stage 2, training and evaluation.

    Lower case; , . ' ! ? " ( ) * # : ; ~ deleted; - and / become spaces; "<person>" becomes
    "person"; runs of whitespace become one space. Prompt templates lose their final dot by it.
    """
    text = _DELETED.sub("", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return _SPACES.sub(" ", text).rstrip("\n").strip(" ")


def replace_surrogates(text: str) -> str:
    """Lone surrogates, which JSON can hold and UTF-8 cannot, become U+FFFD; pairs are joined."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
