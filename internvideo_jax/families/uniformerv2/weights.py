"""Names of UniFormerV2; the image transformers that it starts from are other families."""

from __future__ import annotations

from internvideo_jax.families.clip import weights as clip
from internvideo_jax.weights.rules import TOKEN, Layout, Rule, linear, norm

# Convolution over single places: (out, in, 1, 1, 1) -> (in, out).
POINTWISE = Layout(
    lambda x: x[:, :, 0, 0, 0].T, lambda x, _: x.T[:, :, None, None, None], (-1, -1, 1, 1, 1)
)
# One kernel per channel: (D, 1, t, h, w) -> (t, h, w, D).
DEPTHWISE = Layout(
    lambda x: x[:, 0].transpose(1, 2, 3, 0),
    lambda x, _: x.transpose(3, 0, 1, 2)[:, None],
    (-1, 1, -1, -1, -1),
)


def _local_rules(number: int) -> list[Rule]:
    t = f"transformer.resblocks.{{i}}.lmhra{number}.pos_embed."
    p = f"encoder/blocks/local{number}/"
    return [
        *norm(t + "0", p + "norm"),
        Rule(t + "0.running_mean", p + "norm/mean"),
        Rule(t + "0.running_var", p + "norm/var"),
        Rule(t + "0.num_batches_tracked", p + "norm/count"),
        *linear(t + "1", p + "reduce", POINTWISE),
        *linear(t + "2", p + "temporal", DEPTHWISE),
        *linear(t + "3", p + "expand", POINTWISE),
    ]


UNIFORMERV2 = (
    *clip.image_rules("", clip.FRAMES),
    *_local_rules(1),
    *_local_rules(2),
    Rule("transformer.temporal_cls_token", "temporal_cls_token", TOKEN),
    Rule("transformer.balance", "balance"),
    *linear("transformer.dpe.{i}", "global_blocks/dpe", DEPTHWISE),
    *clip.attention_rules("transformer.dec.{i}.", "global_blocks/"),
    *norm("transformer.dec.{i}.ln_3", "global_blocks/norm_context"),
    *norm("transformer.proj.0", "norm"),
    *linear("transformer.proj.2", "head"),
)

RULES = {"uniformerv2": UNIFORMERV2}
IGNORED: dict[str, dict[str, str]] = {"uniformerv2": {}}

# What a file may lack, always as a whole (rules.check_complete).
OPTIONAL = {
    "uniformerv2": (
        r".*/norm/count",
        r"encoder/blocks/local1/.*",
        r"encoder/blocks/local2/.*",
        r"balance",
        r"head/.*",
    )
}

# Leaves that files have and models have not: torch counts batches, nothing reads the number.
FILE_ONLY = ("count",)
geometry = clip.geometry
