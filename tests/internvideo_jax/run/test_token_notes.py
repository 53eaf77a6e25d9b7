"""What a run says where its mesh has an axis for tokens that the model cannot use."""

from __future__ import annotations

from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.run.build import token_notes


def test_an_axis_that_splits_nothing_is_told():
    frames = UniFormerV2Config.of_size("base", frames=12)
    assert token_notes(frames, 4) == token_notes(frames, 1) == []
    assert token_notes(frames, 8) == [
        "config.mesh.sequence = 8 splits nothing: config.model looks at 12 frames one by one; "
        "sizes that share them out: [1, 2, 3, 4, 6, 12]"
    ]
    tokens = VideoMAEClassifierConfig.of_size("tiny", frames=2, resolution=16)
    assert token_notes(tokens, 4) == []
    assert token_notes(tokens, 8) == [
        "config.mesh.sequence = 8 splits nothing: config.model has 4 tokens"
    ]
