"""The model card of an export: what was learned from what, how it was tested, under which terms.

Only what the run and its results say is written; places on the machine that trained it are not.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

# In the header of a card: what the hub files a model under, by what the architecture ends in.
PIPELINES = {
    "VideoClassification": "video-classification",
    "ImageClassification": "image-classification",
    "CLIPModel": "zero-shot-image-classification",
}
OTHER = "feature-extraction"
FIELDS = ("steps", "epochs", "init_from", "seed")  # of a run's config, beside those of its parts
LICENCE = re.compile(r"[\w.+-]{1,80}")
SHOWN = 20  # classes that are listed


@dataclasses.dataclass(frozen=True)
class Tested:
    """One evaluator's numbers.

    Attributes:
      label: what the config calls it.
      metrics, protocol: as `ivj evaluate` writes them.
    """

    label: str
    metrics: Mapping[str, float]
    protocol: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is known of an export.

    Attributes:
      digest: of the parameters.
      licence: an SPDX name; empty: not stated.
      provenance: of the run (`run.json`); empty: exported from a file.
      tested: its results.
    """

    digest: str
    licence: str = ""
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tested: Sequence[Tested] = ()


def read_results(path: Path, digest: str) -> list[Tested]:
    """The results in a file of `ivj evaluate`.

    Raises:
      ValueError: no such file, or the results of other parameters than `digest`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [
            Tested(label, row["metrics"], row["protocol"])
            for label, row in content["results"].items()
        ]
        whose = content["params_digest"]
    except OSError as error:
        raise ValueError(f"--results={path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"--results={path}: not what `ivj evaluate --out` writes") from error
    if whose != digest:
        raise ValueError(
            f"--results={path}: the results of parameters {whose}, those that are exported are "
            f"{digest}; evaluate what you export"
        )
    return found


def of_step(run: Path, step: int) -> list[Tested]:
    """The results that a run left of a step of its own."""
    found = []
    for path in sorted((run / "results").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["step"] == step:
                found.append(Tested(path.stem, content["metrics"], content["protocol"]))
        except (OSError, ValueError, TypeError, LookupError):
            continue  # not written by this version, or not yet whole
    return found


def check_licence(licence: str) -> None:
    """ValueError for what is no name of a licence."""
    if licence and not LICENCE.fullmatch(licence):
        raise ValueError(f"--licence={licence}: expected a short name such as apache-2.0")


def card(content: Mapping[str, Any], origin: Origin, title: str) -> str:
    """The text of README.md.

    Args:
      content: of `config.json`.
      title: name of the model.
    """
    architecture = content["architectures"][0]
    pipeline = next((p for end, p in PIPELINES.items() if architecture.endswith(end)), OTHER)
    header = [
        "library_name: transformers",
        f"pipeline_tag: {pipeline}",
        "tags:",
        "- internvideo_jax",
        f"- {content['model_type']}",
    ]
    if origin.licence:
        header.insert(0, f"license: {origin.licence.lower()}")
    parts = [
        "\n".join(["---", *header, "---"]),
        f"# {title}",
        f"`{architecture}` of transformers, exported by internvideo_jax; values are moved, never "
        f"changed. Parameters `{origin.digest}`.",
        "## Licence\n\n" + (origin.licence or "Not stated by who exported it."),
        _trained(origin.provenance),
        _tested(origin.tested),
        _classes(content.get("id2label", {})),
        f"## Use\n\n```python\nfrom transformers import {architecture}\n\nmodel = {architecture}"
        '.from_pretrained("PATH_OR_NAME")\n```',
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _trained(provenance: Mapping[str, Any]) -> str:
    config = provenance.get("config", {})
    if not config:
        return "## Training\n\nExported from a weight file, which does not say how it was made."
    data, optim = config.get("data", {}), config.get("optim", {})
    clip = data.get("clip", {})
    rows = {
        "model": config.get("model", {}).get("name", ""),
        "objective": config.get("objective", {}).get("name", ""),
        **{name: _name(config[name]) for name in FIELDS if config.get(name)},
        "data": _name(data.get("train", "")) or ", ".join(data.get("mixture", {})),
        "clips": f"{clip.get('frames')} frames, {clip.get('stride')} apart, "
        f"{clip.get('resolution')} pixels, {clip.get('sampling')}",
        "batch": data.get("global_batch", ""),
        "learning rate": optim.get("lr", ""),
        "optimizer": optim.get("name", ""),
        "version": provenance.get("versions", {}).get("internvideo_jax", ""),
        "revision": provenance.get("git", ""),
    }
    lines = [
        f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in ("", None)
    ]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _name(value: object) -> object:
    """Without the folders of the machine that trained it."""
    if isinstance(value, str) and "://" not in value:
        return PurePath(value).name
    return value


def _cell(value: object) -> str:
    """As the text of a cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _tested(tested: Sequence[Tested]) -> str:
    if not tested:
        return "## Results\n\nNone are stored with it."
    lines = ["## Results", "", "| test | metric | value | protocol |", "|---|---|---|---|"]
    for each in tested:
        protocol = ", ".join(
            f"{name} {_name(value)}"
            for name, value in each.protocol.items()
            if isinstance(value, str | int | float) and not isinstance(value, bool)
        )
        lines += [
            f"| {_cell(each.label)} | {_cell(name)} | {value:.4g} | {_cell(protocol)} |"
            for name, value in each.metrics.items()
        ]
    return "\n".join(lines)


def _classes(names: Mapping[str, str]) -> str:
    if not names:
        return ""
    first = ", ".join(list(names.values())[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"## Classes\n\n{len(names)}: {first}{more}"
