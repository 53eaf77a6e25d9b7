"""Names of what InternVideo2's classifier and its probes have behind the attention pool."""

from __future__ import annotations

from internvideo_jax.weights.rules import Rule, linear, norm

HEAD = (
    *norm("fc_norm", "fc_norm"),
    *linear("head", "head"),
    *norm("extra_mlp.0", "extra_mlp/norm"),
    *linear("extra_mlp.1.fc1", "extra_mlp/fc1"),
    *linear("extra_mlp.1.fc2", "extra_mlp/fc2"),
    *linear("down.0", "down"),
    *norm("down_norm", "down_norm"),
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
