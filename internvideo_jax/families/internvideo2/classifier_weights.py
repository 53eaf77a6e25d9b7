"""Names of what InternVideo2's classifier and its probes have behind the attention pool."""

from __future__ import annotations

from internvideo_jax.weights.rules import LINEAR, Rule

HEAD = (
    Rule("fc_norm.weight", "fc_norm/scale"),
    Rule("fc_norm.bias", "fc_norm/bias"),
    Rule("head.weight", "head/kernel", LINEAR),
    Rule("head.bias", "head/bias"),
    Rule("extra_mlp.0.weight", "extra_mlp/norm/scale"),
    Rule("extra_mlp.0.bias", "extra_mlp/norm/bias"),
    Rule("extra_mlp.1.fc1.weight", "extra_mlp/fc1/kernel", LINEAR),
    Rule("extra_mlp.1.fc1.bias", "extra_mlp/fc1/bias"),
    Rule("extra_mlp.1.fc2.weight", "extra_mlp/fc2/kernel", LINEAR),
    Rule("extra_mlp.1.fc2.bias", "extra_mlp/fc2/bias"),
    Rule("down.0.weight", "down/kernel", LINEAR),
    Rule("down.0.bias", "down/bias"),
    Rule("down_norm.weight", "down_norm/scale"),
    Rule("down_norm.bias", "down_norm/bias"),
    Rule("down_norm.running_mean", "down_norm/mean"),
    Rule("down_norm.running_var", "down_norm/var"),
    Rule("down_norm.num_batches_tracked", "down_norm/count"),
)

# What a classifier may lack, always as a whole (rules.check_complete).
OPTIONAL = (
    r"head/.*",
    r"extra_mlp/.*",
    r"down/.*",
    r"down_norm/(scale|bias)",
    r"down_norm/(mean|var)",
    r"down_norm/count",
)
