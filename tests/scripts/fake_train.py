"""Leaves what a training leaves, for test_sweep.py.

Ends at once; with `slow` as its learning rate it goes on until it is told to save, and with `bad`
it fails.
"""

from __future__ import annotations

import json
import pathlib
import signal
import sys
import time

flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(flags["workdir"])
with open(folder / "starts", "a") as file:
    file.write("start\n")
rate = flags["config.optim.lr"]
if rate == "bad":
    sys.exit("error: the rate is bad")
(folder / "run.json").write_text(json.dumps({"config": {}}))
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
slow = rate == "slow" and len((folder / "starts").read_text().split()) == 1
while slow and not stop:
    time.sleep(0.02)
if stop:
    sys.exit(143)
score = float(flags["config.seed"]) + (0.5 if rate == "slow" else float(rate))
rows = [{"step": 1, "train/loss": 9.0}, {"step": 2, "train/loss": 1.0, "eval/test/top1": score}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
(folder / "run.json").write_text(json.dumps({"params_digest": "0"}))
