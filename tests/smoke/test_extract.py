"""The command that extracts features, on the weights of a run."""

from __future__ import annotations

import json

from data_pipelines.records import manifest
from data_pipelines.records.companion import open_companion
from tests.conftest import TINY
from tests.smoke.conftest import FINETUNE


def test_features_of_a_run(command, runs, tmp_path):
    arguments = (
        *(FINETUNE, *TINY, f"--checkpoint={runs.folder}/finetune", "--pool=head", "--stride=2"),
        *("--batch=8", f"--config.data.eval={runs.shards}", f"--out={tmp_path}/features"),
    )
    done = command("internvideo_jax.offline.extract", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "20/20 videos" in done.stdout and "ETA 0 s" in done.stdout
    companion = open_companion(tmp_path / "features", manifest.load(str(runs.shards)), "test")
    assert len(companion) == 20 and companion[0]["features"].shape[1] == 32
    about = json.loads((tmp_path / "features/features-test.json").read_text())
    assert about["windows"]["stride"] == 2 and about["params_digest"]
    other = command("internvideo_jax.offline.extract", *arguments, "--stride=3")
    assert other.returncode == 2 and "made with another windows" in other.stderr
    missing = command("internvideo_jax.offline.extract", FINETUNE, "--out=x")
    assert missing.returncode == 2 and "--checkpoint and --out are needed" in missing.stderr
