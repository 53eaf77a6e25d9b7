"""The published checkpoints of InternVideo2 (single modality). Only data.

File names are those that the model zoo links to. Where an InternVideo2 link leads to the file
of another row, or to no file, `file` is empty and the note says so. 6B was never released.
"""

from __future__ import annotations

from typing import Any

from internvideo_jax.families.umt.zoo import SETS, test_of
from internvideo_jax.weights.entry import CLASSES, HUB, WHOLE, Entry

STAGE1 = "configs/internvideo2/pretrain.py:"
DISTILL = "configs/internvideo2/distill.py:"
FINETUNE = "configs/internvideo2/finetune.py:recipe="
SIZES = {"S14": "small", "B14": "base", "L14": "large", "1B": "1b"}
LICENCE = "Apache-2.0"
STAGE1_1B = f"{HUB}/InternVideo2-Stage1-1B-224p"
# Repositories of the 1B classifiers, behind STAGE1_1B, by what they were trained on last.
SETS_1B = {"K710": "-f8-k710", "K400": "-f8-K400", "K600": "-f8-K600", "K700": "-K700"}
SETS_1B |= {"SSv1": "-f8-SthSth", "SSv2": "-f8-SthSth"}
# Segments that the scripts test on Something-Something; rows of the zoo get a setting.
SCRIPT_SEGMENTS = {("1B", "SSv1"): 2, ("1B", "SSv2"): 2, ("L14", "SSv2"): 2}


def _url(file: str, data: str = "") -> str:
    """Of a file named as its zoo does, empty for none."""
    if not file:
        return ""
    if "/" in file:
        return f"{HUB}/InternVideo2_distillation_models/resolve/main/stage1/{file}"
    return f"{STAGE1_1B}{SETS_1B[data]}/resolve/main/{file}"


def _student(name: str, size: str, data: str, config: str, finetune: str, **more: Any) -> Entry:
    return Entry(
        name=f"internvideo2/{name}",
        licence=LICENCE,
        kind="internvideo2_student",
        size=size,
        data=data,
        frames=8,
        stride=WHOLE,
        config=config,
        finetune=FINETUNE + finetune,
        **more,
    )


def _classifier(
    model: str, name: str, file: str, data: str, top1: str, *, frames: int = 8, note: str = ""
) -> Entry:
    """`model` is a key of SIZES, `name` the published name behind it."""
    recipe = f"{model.removesuffix('14').lower()}_{SETS[data]}" + "_16f" * (frames == 16)
    return Entry(
        name=f"internvideo2/{model}_{name}",
        file=file,
        url=_url(file, data),
        licence=LICENCE,
        kind="internvideo2_classifier",
        size=SIZES[model],
        data=data,
        classes=CLASSES[data],
        frames=frames,
        stride=WHOLE,
        config=FINETUNE + recipe,
        reported=top1,
        note=note,
        **test_of(data, SCRIPT_SEGMENTS.get((model, data), 4)),
    )


def _distilled(model: str, name: str, data: str, top1: str, elsewhere: str = "") -> Entry:
    file = "" if elsewhere else f"{model}/{model}_{name}/pytorch_model.bin"
    note = f"the zoo's link leads to {elsewhere}" if elsewhere else ""
    return _classifier(model, name, file, data, top1, note=note)


_K = "ft_k710_ft_"
_BIN = "pytorch_model.bin"
INTERNVIDEO2 = (
    _student(
        "1B_pt",
        "1b",
        "K-Mash-1.1M",
        STAGE1 + "size=1b",
        "1b_k710",
        file="InternVideo2-Stage1-1B-224p-f8/pretrain.pth",
        url=f"{STAGE1_1B}-f8/resolve/main/pretrain.pth",
        short="internvideo2-1b",
        changes={"clip_width": 3200, "mae_width": 1408, "mae_layers": (36, 37, 38, 39)}
        | {"final_width": 768, "stride": 2},
    ),
    *(
        _student(
            f"{model}_dist_1B_stage2",
            SIZES[model],
            "K-Mash-1.1M",
            f"{DISTILL}size={SIZES[model]}",
            f"{model[0].lower()}_k710",
            file=f"{model}/{model}_dist_1B_stage2/{_BIN}",
            url=_url(f"{model}/{model}_dist_1B_stage2/{_BIN}"),
            short=f"internvideo2-{model.lower()}",
            changes={"clip_width": 1408, "clip_decoder": "mlp", "final_width": 768},
            note="whether the file has the decoders of distillation was not seen",
        )
        for model in ("S14", "B14", "L14")
    ),
    _classifier("1B", "ft_k710_f8", "1B_ft_k710_f8.pth", "K710", "87.6"),
    _distilled("S14", "ft_k710_f8", "K710", "79.6"),
    _distilled("B14", "ft_k710_f8", "K710", "83.5"),
    _distilled("L14", "ft_k710_f8", "K710", "86.2", "the distilled model"),
    _classifier("1B", _K + "k400_f8", "1B_ft_k710_ft_k400_f8.pth", "K400", "91.3"),
    _classifier("1B", _K + "k400_f16", "1B_ft_k710_ft_k400_f16.pth", "K400", "91.6", frames=16),
    _distilled("S14", _K + "k400_f8", "K400", "85.4"),
    _distilled("B14", _K + "k400_f8", "K400", "88.4"),
    _distilled("L14", _K + "k400_f8", "K400", "90.4"),
    _classifier(
        "1B",
        _K + "k600_f8",
        "",
        "K600",
        "91.4",
        note="the zoo's link leads to the model of Kinetics-400",
    ),
    _classifier("1B", _K + "k600_f16", "1B_ft_k710_ft_k600_f16.pth", "K600", "91.6", frames=16),
    _distilled("S14", _K + "k600_f8", "K600", "86.0"),
    _distilled("B14", _K + "k600_f8", "K600", "88.9"),
    _distilled("L14", _K + "k600_f8", "K600", "90.6"),
    _classifier("1B", _K + "k700_f8", "1B_ft_k710_ft_k700_f8.pth", "K700", "85.0"),
    _classifier("1B", _K + "k700_f16", "1B_ft_k710_ft_k700_f16.pth", "K700", "85.4", frames=16),
    _distilled("S14", _K + "k700_f8", "K700", "75.7"),
    _distilled("B14", _K + "k700_f8", "K700", "80.5"),
    _distilled("L14", _K + "k700_f8", "K700", "83.5"),
    _classifier(
        "1B",
        "ft_k710_ft_k400_ft_mit_f8",
        "",
        "MiT",
        "50.8",
        note="the zoo links the repository without a file; the name is that of the script",
    ),
    _classifier("1B", "ft_ssv2_f8", "1B_ft_ssv2_f8.pth", "SSv2", "77.1"),
    _classifier("1B", "ft_ssv1_f8", "1B_ft_ssv1_f8.pth", "SSv1", "68.5"),
    _distilled("S14", "ft_ssv2_f8", "SSv2", "71.6"),
    _distilled("B14", "ft_ssv2_f8", "SSv2", "73.5", "its model of Kinetics-700"),
    _distilled("L14", "ft_ssv2_f8", "SSv2", "76.4"),
)
