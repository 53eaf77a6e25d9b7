"""How long a run is: clips of well-known datasets, steps, days, chip-hours, money."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.stream.mixture import open_components
from internvideo_jax.config import Records, TrainConfig
from internvideo_jax.registry import suggest
from internvideo_jax.run.build import read_data

# Training clips, as their papers give them; what can still be downloaded is up to a tenth less.
RECORDS = {
    "kinetics400": 240_000,
    "kinetics600": 366_000,
    "kinetics700": 530_000,
    "kinetics710": 650_000,
    "something1": 86_017,
    "something2": 168_913,
    "moments": 802_000,
    "unlabeled_hybrid": 1_350_000,  # of VideoMAE V2
    "activitynet": 10_024,
    "hacs": 37_600,
    "ucf101": 9_537,
    "hmdb51": 3_570,
    "k_mash_1.1m": 1_100_000,  # of InternVideo2, without labels
    "k_mash_2m": 2_000_000,
}
CLASSES = {
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "kinetics710": 710,
    "something1": 174,
    "something2": 174,
    "moments": 339,
    "activitynet": 200,
    "hacs": 200,
    "ucf101": 101,
    "hmdb51": 51,
}
SHORT = {
    "k400": "kinetics400",
    "k600": "kinetics600",
    "k700": "kinetics700",
    "k710": "kinetics710",
    "ssv1": "something1",
    "ssv2": "something2",
    "mit": "moments",
    "anet": "activitynet",
    "kmash": "k_mash_1.1m",
    "kmash2m": "k_mash_2m",
}


def find_records(asked: str, config: TrainConfig) -> tuple[Records, int, str]:
    """Training clips, classes (0: unknown) and where the numbers are from.

    Args:
      asked: a number, a name of RECORDS or SHORT, or "". Without it a dataset that lies at
        config.data.train is read, else the path may hold a known name.

    Returns:
      (0, 0, "") when nothing is known.

    Raises:
      ValueError: neither a positive number nor a known name.
    """
    if asked.isdigit() and int(asked) > 0:
        return int(asked), 0, "--records"
    if asked:
        name = SHORT.get(asked.lower(), asked.lower())
        if name not in RECORDS:
            known = [*RECORDS, *SHORT]
            raise ValueError(
                f"--records: expected a number of clips or a dataset, found {asked!r}: "
                f"{suggest(asked, known)}"
            )
        return RECORDS[name], CLASSES.get(name, 0), name
    train = config.data.train
    if not train:
        return 0, 0, ""
    if Path(train).is_dir():
        records, classes = read_data(config, open_components(config.data))
        return records, len(classes), train
    for part in re.split(r"[/_\-.]", train.lower()):
        name = SHORT.get(part, part)
        if name in RECORDS:
            return RECORDS[name], CLASSES.get(name, 0), f"{name}, named in config.data.train"
    return 0, 0, ""


def duration(steps: int, seconds: float, chips: int, price: float = 0.0) -> str:
    """`5.6 days, 2140 chip-hours`, and what they cost at `price` per chip-hour."""
    days = steps * seconds / 86400
    hours = days * 24 * chips
    cost = f", {hours * price:.4g} at {price:g} per chip-hour" if price else ""
    return f"{days:.3g} days, {hours:.4g} chip-hours{cost}"
