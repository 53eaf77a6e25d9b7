"""One GPU: clips/s, MFU and memory of whole train steps in bfloat16, beside torch where it is.

    python benchmarks/gpu.py --torch_model=VideoMAE/modeling_pretrain.py --out=gpu.json

Rows: MAE-B and MAE-L pre-training, and a plain ViT of the 1B width (1408 x 40) on all 1568 tokens;
each with XLA's and with cuDNN's attention, and in torch with scaled_dot_product_attention, eager
and compiled. One process per row, one after the other, so that each has the whole memory. A row
that does not run (out of memory, no cuDNN) is printed with its reason. `--tiny` is a rehearsal on
a CPU.
Exit codes: 0, 1 a target was missed, 2 no row ran, 3 the host was busy (--anyway concludes).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import turns
from host import Host, spread
from train_step import own_step

from data_pipelines.config import ClipConfig, DataConfig
from internvideo_jax.config import TrainConfig
from internvideo_jax.families.videomae.model import SIZES, PretrainConfig, VideoMAEClassifierConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.objectives.classification import Classification
from internvideo_jax.objectives.masked_pixels import MaskedPixels
from internvideo_jax.run.build import build

CLASSES = 400
MFU_TARGET = {"mae-large": 0.45}
TORCH = {"torch-sdpa": "sdpa", "torch-compile": "compile"}
OURS = {"xla": "xla", "cudnn": "cudnn"}


@dataclasses.dataclass(frozen=True)
class Model:
    size: str
    batch: int
    decoder_depth: int = 0  # 0 = a classifier on all tokens


MODELS = {
    "mae-base": Model("base", 64, 4),
    "mae-large": Model("large", 64, 12),
    "vit-1b": Model("giant16", 8),
}


def config_of(spec: dict[str, Any]) -> TrainConfig:
    """The run of one row; ValueError for an attention that this version cannot be told."""
    asked = MODELS[spec["model"]]
    changes: dict[str, Any] = {"remat": spec["remat"], "dtype": "bfloat16"}
    if spec["tiny"]:
        changes |= {"resolution": 32, "frames": 16, "patch": 16, "encoder": tower(64, 2, 2)}
    if any(field.name == "attention" for field in dataclasses.fields(PretrainConfig)):
        changes["attention"] = spec["attention"]
    elif spec["attention"] != "xla":
        raise ValueError("config.model has no field `attention` to choose it with")
    encoder = changes.pop("encoder", SIZES[asked.size].encoder)
    changes.setdefault("patch", 16)
    if asked.decoder_depth:
        decoder = SIZES[asked.size].decoder(asked.decoder_depth)
        if spec["tiny"]:
            decoder = tower(32, 1, 2)
        model, objective = PretrainConfig(encoder=encoder, decoder=decoder, **changes), None
    else:
        model = VideoMAEClassifierConfig(encoder=encoder, classes=CLASSES, **changes)
        objective = Classification(smoothing=0.0, mixup=0.0, cutmix=0.0)
    clip = ClipConfig(frames=model.frames, stride=4, resolution=model.resolution)
    return TrainConfig(
        model=model,
        objective=objective or MaskedPixels(mask_ratio=0.5 if spec["tiny"] else 0.9),
        data=DataConfig(global_batch=spec["batch"], clip=clip),
        steps=100_000,
    )


def torch_spec(config: TrainConfig, folder: Path, file: Path, variant: str) -> dict[str, Any]:
    """What `torch_peer.py` needs."""
    model = cast(PretrainConfig, config.model)
    sizes = {
        "img_size": model.resolution,
        "patch_size": model.patch,
        "mlp_ratio": model.encoder.hidden / model.encoder.width,
        "qkv_bias": True,
        "tubelet_size": model.tubelet,
    }
    names = {"width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    pretraining = hasattr(model, "decoder")
    for name, theirs in names.items():
        if pretraining:
            sizes[f"encoder_{theirs}"] = getattr(model.encoder, name)
            sizes[f"decoder_{theirs}"] = getattr(model.decoder, name)
        else:
            sizes[theirs] = getattr(model.encoder, name)
    if pretraining:
        sizes |= {"encoder_num_classes": 0, "decoder_num_classes": model.token_pixels}
    else:
        sizes |= {"num_classes": CLASSES, "all_frames": model.frames, "init_scale": 0.001}
    return {
        "kind": "pretrain" if pretraining else "classifier",
        "torch_model": str(file.resolve()),
        "variant": variant,
        "folder": str(folder),
        "dtype": model.dtype,
        "pixel_mean": list(model.pixel_mean),
        "pixel_std": list(model.pixel_std),
        "sizes": sizes,
    }


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rows of one model: row -> numbers, or {"error": reason}."""
    here = Path(__file__).resolve()
    batch = options.batch or (2 if options.tiny else MODELS[name].batch)
    spec = {"model": name, "tiny": options.tiny, "batch": batch, "remat": options.remat}
    commands: dict[str, list[str]] = {}
    for row, attention in OURS.items():
        file = folder / f"{row}.json"
        file.write_text(json.dumps({**spec, "attention": attention, "folder": str(folder)}))
        commands[row] = [sys.executable, str(here), f"--side={file}"]
    if options.torch_model:
        config = config_of({**spec, "attention": "xla"})
        for row, variant in TORCH.items():
            file = folder / f"{row}.json"
            told = torch_spec(config, folder, options.torch_model, variant)
            file.write_text(json.dumps(told))
            commands[row] = [sys.executable, str(here.parent / "torch_peer.py"), str(file)]
    found, flops, peak = {}, 0.0, None
    for row, command in commands.items():
        try:
            side = turns.Side(command)
        except RuntimeError as error:
            found[row] = {"error": str(error).strip().splitlines()[0][:200]}
            continue
        turns.take_turns({row: side}, options.timed)
        side.close()
        flops = side.facts.get("step_flops", flops)
        peak = side.facts.get("peak_flops", peak)
        seconds = spread(side.seconds)
        found[row] = {
            "step_seconds": dataclasses.asdict(seconds),
            "clips_per_second": batch / seconds.median,
            "teraflops_per_second": flops / seconds.median / 1e12,
            "mfu": flops / seconds.median / peak if peak else None,
            "device_mib": side.facts.get("step_temporaries_mib", 0.0)
            + side.facts.get("step_arguments_mib", 0.0),  # the compiler's figure
            "first_loss": side.facts["first_loss"],
            "batch": batch,
        }
    return found


def line(row: str, numbers: dict[str, Any]) -> str:
    if "error" in numbers:
        return f"  {row:14} did not run: {numbers['error']}"
    mfu = f"MFU {100 * numbers['mfu']:.1f} %" if numbers["mfu"] else "MFU unknown on this device"
    memory = numbers["device_mib"]
    more = f", {memory / 1024:.1f} GiB" if memory else ""
    return (
        f"  {row:14} {numbers['clips_per_second']:8.2f} clips/s, {mfu}, "
        f"{numbers['teraflops_per_second']:.4g} TFLOP/s{more}, first loss "
        f"{numbers['first_loss']:.4f}"
    )


def judge(results: dict[str, dict[str, Any]]) -> tuple[list[str], int]:
    """Missed targets and their number: ahead of torch, and the MFU of MFU_TARGET."""
    missed, count = [], 0
    for name, rows in results.items():
        ran = {row: n["clips_per_second"] for row, n in rows.items() if "error" not in n}
        ours = max((ran[row] for row in OURS if row in ran), default=0.0)
        theirs = max((ran[row] for row in TORCH if row in ran), default=0.0)
        if theirs:
            count += 1
            if ours <= theirs:
                missed.append(f"{name}: {ours:.2f} clips/s, torch {theirs:.2f}")
        mfus = [rows[row]["mfu"] for row in OURS if row in ran]
        if name in MFU_TARGET and any(mfus):
            count += 1
            if max(mfus) < MFU_TARGET[name]:
                missed.append(f"{name}: MFU {max(mfus):.3f}, target {MFU_TARGET[name]}")
    return missed, count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--torch_model", type=Path, help="the reference's modeling_pretrain.py")
    parser.add_argument("--batch", type=int, default=0, help="clips per step; 0 = the model's")
    parser.add_argument("--remat", default="none", help="what our backward pass keeps")
    parser.add_argument("--timed", type=int, default=20, help="timed steps of every row")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the command")
    parser.add_argument("--anyway", action="store_true", help="conclude on a busy host too")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        spec = json.loads(options.side.read_text())
        return turns.serve(
            lambda: own_step(
                build(config_of(spec), records=1_000_000, classes=CLASSES),
                Path(spec["folder"]),
                CLASSES,
            )
        )
    host = Host()
    results = {}
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, options, Path(folder))
        print(name)
        for row, numbers in results[name].items():
            print(line(row, numbers), flush=True)
    if options.out:
        text = json.dumps({"results": results, "host": host.facts()}, indent=1)
        options.out.write_text(text + "\n")
    if all("error" in numbers for rows in results.values() for numbers in rows.values()):
        print("error: no row ran", file=sys.stderr)
        return 2
    missed, targets = judge(results)
    return host.verdict(missed, targets=targets, anyway=options.anyway)


if __name__ == "__main__":
    sys.exit(main())
