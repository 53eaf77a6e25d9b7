"""The toy's names in torch, its one published file, and its `Family`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.family import Family, Kind, Names, tower_facts
from internvideo_jax.weights.rules import LINEAR, QKV, Layout, Rule
from tests.toy_family.model import SIZES

BIASES = Layout(lambda x: x.reshape(3, -1), lambda x, _: x.reshape(-1), (-1,))
_T, _P = "bert.layer.{i}.", "encoder/blocks/"
RULES = (
    Rule("bert.words", "encoder/token_embed"),
    Rule("bert.places", "encoder/pos_embed"),
    *(
        Rule(f"{_T}{theirs}.{leaf}", f"{_P}{ours}/{name}")
        for theirs, ours in (("ln1", "norm1"), ("ln2", "norm2"))
        for leaf, name in (("weight", "scale"), ("bias", "bias"))
    ),
    Rule(_T + "qkv.weight", _P + "attn/qkv/kernel", QKV),
    Rule(_T + "qkv.bias", _P + "attn/qkv/bias", BIASES),
    *(
        rule
        for theirs, ours in (("out", "attn/proj"), ("up", "mlp/fc1"), ("down", "mlp/fc2"))
        for rule in (
            Rule(f"{_T}{theirs}.weight", f"{_P}{ours}/kernel", LINEAR),
            Rule(f"{_T}{theirs}.bias", f"{_P}{ours}/bias"),
        )
    ),
    Rule("bert.norm.weight", "encoder/norm/scale"),
    Rule("bert.norm.bias", "encoder/norm/bias"),
    Rule("cls.weight", "head/kernel", LINEAR),
    Rule("cls.bias", "head/bias"),
)


class _Toy(Kind):
    def facts_of_entry(self, entry: Entry) -> dict[str, object]:
        return {"kind": self.name, **tower_facts(SIZES[entry.size])}


def geometry(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {}  # there are no pixels


FAMILY = Family(
    title="Toy",
    kinds=(
        _Toy(
            name="toy_text",
            title="toy, masked tokens",
            names=Names(RULES),
            sizes={name: tower_facts(size) for name, size in SIZES.items()},
        ),
    ),
    geometry=geometry,
    sources={
        "toy": (
            Entry(
                name="toy/toy_tiny",
                file="toy_tiny.pth",
                kind="toy_text",
                size="tiny",
                data="none",
                config="configs/toy.py",
                finetune="configs/toy.py:size=tiny",
            ),
        )
    },
)
