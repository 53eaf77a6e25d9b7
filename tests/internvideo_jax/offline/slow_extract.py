"""An extraction that can be killed in the middle; arguments: shards, directory of the features."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from internvideo_jax.offline.extract import Extractor, extract
from tests.internvideo_jax.offline.test_extract import make, settings

run = Extractor._run
Extractor._run = lambda self, video: time.sleep(0.3) or run(self, video)
tool = make(Path(sys.argv[1]))
extract(tool, Path(sys.argv[2]), settings(tool))
