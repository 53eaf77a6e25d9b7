"""Train steps whose clips are shared out by tokens, against one device: a function for each model.

Fifty tokens on four devices: thirteen each, eleven for the last. The plain products gather keys,
the blocked form goes round the ring; the first are what `auto` takes for so few.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.config import MeshConfig, OptimConfig, TrainConfig
from internvideo_jax.families.internvideo2.classifier import InternVideo2ClassifierConfig
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.viclip.model import ViCLIPConfig
from internvideo_jax.families.videomae.model import PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.contrastive import Contrastive
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.run.build import build
from internvideo_jax.run.step import init_state, make_train_step

ROWS, STEPS, SIZE = 8, 3, 20
DATA, ALL = {"data": 2, "sequence": 4}, {"fsdp": 2, "sequence": 2, "tensor": 2}
CLIP: dict[str, Any] = {"frames": 4, "resolution": SIZE, "patch": 4, "dtype": "float32"}
PLAIN = Classification(smoothing=0.0, mixup=0.0, cutmix=0.0)


def found(model: Any, objective: Any, mesh: MeshConfig, accumulate: int, seed: int) -> np.ndarray:
    """Loss and norm of the gradient of every step."""
    config = TrainConfig(
        model=model,
        objective=objective,
        data=DataConfig(global_batch=ROWS, clip=ClipConfig(frames=4, stride=1, resolution=SIZE)),
        optim=OptimConfig(lr=1e-3, lr_batch=0, warmup_steps=1, accumulate=accumulate),
        mesh=dataclasses.replace(mesh, shard_above=64),
        steps=STEPS,
        seed=seed,
    )
    devices = jax.devices()[: 1 if mesh == MeshConfig() else 8]
    run = build(config, records=ROWS, classes=3, devices=devices)
    assert run.mesh.shape.get("sequence", 1) == mesh.sequence
    state, step, rng, rows = init_state(run), make_train_step(run), np.random.default_rng(0), []
    for number in range(STEPS):
        batch = {
            "video": rng.integers(0, 256, (ROWS, 4, SIZE, SIZE, 3), dtype=np.uint8),
            "label": rng.integers(0, 3, ROWS).astype(np.int32),
            "index": np.arange(ROWS, dtype=np.int32),
            "position": np.arange(number * ROWS, (number + 1) * ROWS, dtype=np.uint32),
        }
        if model.inputs.text:
            ids = rng.integers(1, 60, (ROWS, model.context)).astype(np.int32)
            batch["text"] = ids
        state, metrics = step(state, batch)
        rows.append([metrics["train/loss"], metrics["train/grad_norm"]])
    return np.array(jax.device_get(rows), np.float64)


def compare(model: Any, objective: Any, *meshes: dict[str, int], accumulate: int = 1) -> None:
    one = found(model, objective, MeshConfig(), accumulate, 0)
    for sizes in meshes:
        split = found(model, objective, MeshConfig(**{"data": 1, **sizes}), accumulate, 0)
        print(f"{model.name} {sizes}: largest difference {np.abs(split - one).max():.1e}")
        np.testing.assert_allclose(split, one, rtol=2e-5, err_msg=f"{model.name} {sizes}")
    assert np.ptp(one[:, 0]) > 1e-4, "the comparison could not fail"


def videomae(*meshes: dict[str, int], attention: str = "blocked", remat: str = "none") -> None:
    """Fourteen visible tokens in the encoder, all fifty in the decoder."""
    model = PretrainConfig(
        encoder=tower(32, 2, 4),
        decoder=tower(32, 1, 2),
        attention=attention,
        remat=remat,
        **CLIP,
    )
    compare(model, MaskedPixels(mask_ratio=0.72), *meshes)


def finetuning() -> None:
    model = VideoMAEClassifierConfig(
        encoder=tower(32, 2, 4), classes=3, drop_path=0.3, head_dropout=0.2, **CLIP
    )
    compare(model, PLAIN, DATA, accumulate=2)
    compare(dataclasses.replace(model, attention="blocked", remat="attention"), PLAIN, ALL)


def viclip() -> None:
    model = ViCLIPConfig.of_size(
        "tiny",
        encoder=tower(32, 2, 4),
        text=tower(32, 1, 2),
        embedding=16,
        context=16,
        vocab=64,
        temperature=0.07,
        attention="blocked",
        **CLIP,
    )
    compare(model, Contrastive(mask_ratio=0.5), DATA)
    compare(dataclasses.replace(model, attention="xla"), Contrastive(), ALL, accumulate=2)


def internvideo2() -> None:
    """With the attention pool, and a class token that makes fifty-one."""
    model = InternVideo2ClassifierConfig(
        encoder=tower(32, 2, 4),
        embedding=16,
        pool_heads=4,
        classes=3,
        attention="blocked",
        remat="dots",
        drop_path=0.2,
        **CLIP,
    )
    compare(model, PLAIN, DATA, ALL)


def uniformerv2() -> None:
    """Frames are shared out: four on two devices; two on four are not, and stay whole."""
    model = UniFormerV2Config(
        encoder=tower(32, 2, 4),
        classes=3,
        local_blocks=1,
        global_layers=(0, 1),
        local_reduction=2.0,
        mlp_dropout=0.2,
        head_dropout=0.0,
        drop_path=0.2,
        attention="blocked",
        **CLIP,
    )
    compare(model, PLAIN, DATA, ALL)
    compare(dataclasses.replace(model, temporal_downsample=True), PLAIN, DATA)
