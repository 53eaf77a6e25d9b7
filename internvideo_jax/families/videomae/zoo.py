"""Every published checkpoint of VideoMAE, VideoMAE V2, InternVideo1's VideoMAE.

Only data. File names are those that the authors' model zoos print or link to: InternVideo1's README
in both languages, the model zoos of VideoMAE V2 and UniFormerV2, and the listing of the
OpenGVLab/VideoMAE2 repository. MCG-NJU's zoo links to its files without naming them: `file` is
empty there and `name` is that of the recipe here. It is empty as well for five giant models of
VideoMAE V2 of which the zoo prints a model name only; that is the last part of `name`. Where files
share a name, the folders that tell them apart belong to `file`, and `name` is ours.

Accuracies are the authors', top-1 / top-5 or top-1 in per cent. None was measured here.
"""

from __future__ import annotations

from typing import Any

from internvideo_jax.weights.entry import CLASSES, HUB, OSS, WHOLE, Entry, Protocol

FINETUNE = "configs/videomae/finetune.py:recipe="
PRETRAIN = "configs/videomae/pretrain.py:"
KINETICS = Protocol(5, 3, "dense")
SOMETHING = Protocol(2, 3, "segments")
HYBRID = "UnlabeledHybrid"
LICENCES = {"internvideo1": "Apache-2.0", "v2": "MIT", "videomae": "CC-BY-NC-4.0"}
# Names of the first two lie elsewhere than the others.
MAE_FILES = {"vit_l_hybrid_pt_800e.pth": "mae-l", "vit_h_hybrid_pt_1200e.pth": "mae-h"}


def _published(name: str, file: str = "", **more: Any) -> dict[str, Any]:
    """What follows from the source and the file: its address, the licence of its repository."""
    source, url = name.partition("/")[0], ""
    if source == "v2" and file:
        url = f"{HUB}/VideoMAE2/resolve/main/{'distill' if '_dl_' in file else 'mae-g'}/{file}"
    elif file in MAE_FILES:
        url = f"{HUB}/InternVideoMAE_models/resolve/main/{MAE_FILES[file]}/pytorch_model.bin"
    elif file.startswith("vit_"):
        url = f"{OSS}/internvideo/pretrain/videomae/{file}"
    elif file:
        folder = "K400/VideoMAE/" if "/" not in file else ""
        url = f"{OSS}/internvideo/action_recognition/{folder}{file}"
    return {"name": name, "file": file, "url": url, "licence": LICENCES[source], **more}


def _pretrained(name: str, size: str, depth: int, data: str, config: str, **more: Any) -> Entry:
    return Entry(
        kind="videomae_pretrain",
        size=size,
        data=data,
        stride=2 if data.startswith("SSv") else 4,
        changes={"decoder_depth": depth},
        config=PRETRAIN + config,
        **_published(name, **{**more, "finetune": FINETUNE + more["finetune"]}),
    )


def _classifier(name: str, size: str, data: str, recipe: str, **more: Any) -> Entry:
    protocol = SOMETHING if data.startswith("SSv") else KINETICS
    stride = {"SSv1": WHOLE, "SSv2": WHOLE, "HMDB51": 2}.get(data, 4)
    return Entry(
        kind="videomae_classifier",
        size=size,
        data=data,
        classes=CLASSES[data],
        config=FINETUNE + recipe,
        **_published(name, **{"protocol": protocol, "stride": stride, **more}),
    )


_LIKE = "no script was released; model and test are those of the recipe"
_SPLIT = "frames and views are not stated; the recipe takes 16 frames, 5 x 3"

INTERNVIDEO1 = (
    _pretrained(
        "internvideo1/vit_b_hybrid_pt_800e",
        "base",
        4,
        HYBRID,
        "size=base,recipe=internvideo1",
        file="vit_b_hybrid_pt_800e.pth",
        finetune="internvideo1/b_k400",
        note="also as InternVideoMAE_models/mae-b/pytorch_model.bin",
    ),
    _pretrained(
        "internvideo1/vit_l_hybrid_pt_800e",
        "large",
        12,
        HYBRID,
        "size=large,recipe=internvideo1",
        file="vit_l_hybrid_pt_800e.pth",
        finetune="internvideo1/l_k400",
        note="also as InternVideoMAE_models/mae-l/pytorch_model.bin",
    ),
    _pretrained(
        "internvideo1/vit_h_hybrid_pt_1200e",
        "huge",
        8,
        HYBRID,
        "size=huge,recipe=internvideo1",
        file="vit_h_hybrid_pt_1200e.pth",
        finetune="internvideo1/h_k400",
        note="also as InternVideoMAE_models/mae-h/pytorch_model.bin; 300 epochs x 4 crops",
    ),
    _classifier(
        "internvideo1/vit_b_hybrid_pt_800e_k400_ft",
        "base",
        "K400",
        "internvideo1/b_k400",
        file="vit_b_hybrid_pt_800e_k400_ft.pth",
        reported="81.52 / 94.88",
    ),
    _classifier(
        "internvideo1/vit_b_hybrid_pt_800e_k710_ft",
        "base",
        "K710",
        "internvideo1/b_k710",
        file="vit_b_hybrid_pt_800e_k710_ft.pth",
        reported="79.33 / 94.03",
        made=False,
        note=_LIKE,
    ),
    _classifier(
        "internvideo1/vit_b_hybrid_pt_800e_ssv2_ft",
        "base",
        "SSv2",
        "internvideo1/b_ssv2",
        file="vit_b_hybrid_pt_800e_ssv2_ft.pth",
        reported="71.22 / 93.31",
    ),
    _classifier(
        "internvideo1/vit_l_hybrid_pt_800e_k400_ft",
        "large",
        "K400",
        "internvideo1/l_k400",
        file="vit_l_hybrid_pt_800e_k400_ft.pth",
    ),
    _classifier(
        "internvideo1/vit_l_hybrid_pt_800e_k700_ft",
        "large",
        "K700",
        "internvideo1/l_k700",
        file="vit_l_hybrid_pt_800e_k700_ft.pth",
    ),
    _classifier(
        "internvideo1/vit_l_hybrid_pt_800e_ssv2_ft",
        "large",
        "SSv2",
        "internvideo1/l_ssv2",
        file="vit_l_hybrid_pt_800e_ssv2_ft.pth",
    ),
    _classifier(
        "internvideo1/ViT-H_f32_res384_89.54",
        "huge",
        "K400",
        "internvideo1/h_k400",
        file="ViT-H_f32_res384_89.54.pth",
        frames=32,
        stride=None,
        pixels=384,
        changes={"pos_table": "resized"},
        settings=tuple(
            f"--config.{field}={value}"
            for field, value in (
                ("model.frames", 32),
                ("model.resolution", 384),
                ("model.pos_table", "resized"),
                ("data.clip.frames", 32),
                ("data.clip.resolution", 384),
                ("evals.test.views.clip.frames", 32),
                ("evals.test.views.clip.resolution", 384),
            )
        ),
        made=False,
        protocol=None,
        reported="89.54",
        note="accuracy, frames and pixels from the file name; no script was released for them, "
        "stride and views are not stated",
    ),
    _classifier(
        "internvideo1/ssv1_vit_h",
        "huge",
        "SSv1",
        "internvideo1/h_ssv1",
        file="SSV1/VideoMAE/ViT-H.pth",
        made=False,
        protocol=None,
        note=_LIKE + "; accuracy not stated for this model alone",
    ),
    *(
        _classifier(
            f"internvideo1/hmdb51_split{split}_vit_h",
            "huge",
            "HMDB51",
            "internvideo1/h_hmdb51",
            file=f"HMDB51/VideoMAE/split{split}_{top1}/ViT-H.pth",
            made=False,
            protocol=None,
            reported=top1,
            note=_SPLIT,
        )
        for split, top1 in ((1, "89.64"), (2, "89.92"), (3, "88.35"))
    ),
)

_DISTILLED = "distilled from vit_g_hybrid_pt_1200e_k710_ft; the recipe only has its model and test"

V2 = (
    _pretrained(
        "v2/vit_g_hybrid_pt_1200e",
        "giant",
        4,
        HYBRID,
        "size=giant,recipe=v2",
        file="vit_g_hybrid_pt_1200e.pth",
        finetune="v2/g_k400",
        note="300 epochs x 4 crops",
    ),
    _classifier(
        "v2/vit_g_hybrid_pt_1200e_k710_ft",
        "giant",
        "K710",
        "v2/g_k710",
        file="vit_g_hybrid_pt_1200e_k710_ft.pth",
        reported="83.8 / 96.4",
    ),
    _classifier(
        "v2/vit_g_hybrid_pt_1200e_k400_ft", "giant", "K400", "v2/g_k400", reported="87.2 / 97.4"
    ),
    _classifier(
        "v2/vit_g_hybrid_pt_1200e_k710_it_k400_ft",
        "giant",
        "K400",
        "v2/g_k710_k400",
        reported="88.4 / 98.0",
    ),
    _classifier(
        "v2/vit_g_hybrid_pt_1200e_k710_it_k600_ft",
        "giant",
        "K600",
        "v2/g_k710_k600",
        reported="88.8 / 98.2",
    ),
    _classifier(
        "v2/vit_g_hybrid_pt_1200e_ssv2_ft",
        "giant",
        "SSv2",
        "v2/g_ssv2",
        file="vit_g_hybrid_pt_1200e_ssv2_ft.pth",
        reported="77.0 / 95.9",
    ),
    _classifier(
        "v2/vit_g_hybrid_pt_1200e_k710_it_ucf101_ft",
        "giant",
        "UCF101",
        "v2/g_k710_ucf101",
        reported="99.6 / 100",
    ),
    _classifier(
        "v2/vit_g_hybrid_pt_1200e_k710_it_hmdb51_ft",
        "giant",
        "HMDB51",
        "v2/g_k710_hmdb51",
        reported="88.1 / 98.5",
    ),
    _classifier(
        "v2/vit_b_k710_dl_from_giant",
        "base",
        "K710",
        "v2/b_k710",
        short="videomae-v2-b16",
        file="vit_b_k710_dl_from_giant.pth",
        made=False,
        reported="81.5",
        note=_DISTILLED,
    ),
    _classifier(
        "v2/vit_s_k710_dl_from_giant",
        "small",
        "K710",
        "videomae/s_k400",
        short="videomae-v2-s16",
        file="vit_s_k710_dl_from_giant.pth",
        made=False,
        reported="77.6",
        note=_DISTILLED,
    ),
)

# MCG-NJU names no files: the names are those of the recipes here.
_STRIDE = "--config.data.clip.stride=2"
VIDEOMAE = (
    *(
        _pretrained(f"videomae/{name}_pretrained", size, depth, data, config, **more)
        for name, size, depth, data, config, more in (
            (
                "s_k400",
                "small",
                4,
                "K400",
                "size=small,recipe=videomae",
                {"finetune": "videomae/s_k400"},
            ),
            (
                "b_k400_800e",
                "base",
                4,
                "K400",
                "size=base,recipe=videomae",
                {"finetune": "videomae/b_k400_800e", "settings": ("--config.epochs=800",)},
            ),
            (
                "b_k400_1600e",
                "base",
                4,
                "K400",
                "size=base,recipe=videomae",
                {"finetune": "videomae/b_k400_1600e"},
            ),
            (
                "l_k400",
                "large",
                12,
                "K400",
                "size=large,recipe=videomae",
                {"finetune": "videomae/l_k400"},
            ),
            (
                "h_k400",
                "huge_nju",
                12,
                "K400",
                "size=huge,recipe=videomae",
                {
                    "finetune": "videomae/h_k400",
                    "note": "users report that the file has no decoder",
                },
            ),
            (
                "s_ssv2",
                "small",
                4,
                "SSv2",
                "size=small,recipe=videomae",
                {"finetune": "videomae/s_ssv2", "settings": (_STRIDE, "--config.epochs=2400")},
            ),
            (
                "b_ssv2_800e",
                "base",
                4,
                "SSv2",
                "size=base,recipe=videomae",
                {"finetune": "videomae/b_ssv2_800e", "settings": (_STRIDE, "--config.epochs=800")},
            ),
            (
                "b_ssv2_2400e",
                "base",
                4,
                "SSv2",
                "size=base,recipe=videomae",
                {
                    "finetune": "videomae/b_ssv2_2400e",
                    "settings": (_STRIDE, "--config.epochs=2400"),
                },
            ),
            (
                "b_ucf101",
                "base",
                4,
                "UCF101",
                "size=base,recipe=videomae",
                {
                    "finetune": "videomae/b_ucf101",
                    "settings": (
                        "--config.epochs=3200",
                        "--config.objective.mask_ratio=0.75",
                        "--config.optim.lr=3e-4",
                    ),
                    "made": False,
                    "note": "the number of devices, and so the batch, is not stated",
                },
            ),
        )
    ),
    *(
        _classifier(f"videomae/{recipe}", size, data, f"videomae/{recipe}", reported=reported)
        for recipe, size, data, reported in (
            ("s_k400", "small", "K400", "79.0 / 93.8"),
            ("b_k400_800e", "base", "K400", "80.0 / 94.4"),
            ("b_k400_1600e", "base", "K400", "81.5 / 95.1"),
            ("l_k400", "large", "K400", "85.2 / 96.8"),
            ("h_k400", "huge", "K400", "86.6 / 97.1"),
            ("s_ssv2", "small", "SSv2", "66.8 / 90.3"),
            ("b_ssv2_800e", "base", "SSv2", "69.6 / 92.0"),
            ("b_ssv2_2400e", "base", "SSv2", "70.8 / 92.4"),
            ("b_ucf101", "base", "UCF101", "91.3 / 98.5"),
        )
    ),
)
