"""Captions to token ids on the host: CLIP byte-pair encoding and BERT WordPiece.

`make_tokenizer` gives a `Tokenizer` by name. The libraries behind it come with
`pip install 'internvideo-jax[text]'` and are imported when a tokenizer is made.
"""

from data_pipelines.text.base import Tokenizer
from data_pipelines.text.made import make_tokenizer

__all__ = ["Tokenizer", "make_tokenizer"]
