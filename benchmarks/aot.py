"""Train steps compiled for slices that are not here, compared with what they needed before.

    python benchmarks/aot.py                        every row, against benchmarks/aot.json
    python benchmarks/aot.py --rows=mae-l,mae-g     some rows
    python benchmarks/aot.py --update               store what was found
    python benchmarks/aot.py --table                the stored rows as a table, compiling nothing

Each row is one run of compile_check with --fast in a process of its own, 40 to 100 CPU seconds and
up to 2 GiB; needs pip install 'internvideo-jax[tpu]'. A row is worse when its peak memory or the
bytes that a chip sends grew by more than 2 %; the exit code is then 1. Nothing runs on a chip.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from internvideo_jax import cli

ROOT = Path(__file__).resolve().parents[1]
STORED = Path(__file__).with_suffix(".json")
TOLERANCE = 1.02
GIB = 2**30

PRETRAIN, FINETUNE = "configs/videomae/pretrain.py", "configs/videomae/finetune.py"
UNIFORMER = "configs/uniformerv2/finetune.py"
STAGE1, STAGE1_FINETUNE = "configs/internvideo2/pretrain.py", "configs/internvideo2/finetune.py"
UMT = "configs/umt/pretrain.py"
K_MASH, K_MASH_2M = "k_mash_1.1m", "k_mash_2m"
# Of the facts that compile_check writes, what is stored.
KEPT = (
    "topology",
    "chips",
    "mesh",
    "batch",
    "remat",
    "microbatches",
    "steps",
    "fits",
    "needed",
    "memory",
    "model_flops",
    "frozen_flops",
    "frozen_bytes",
    "executed_flops",
    "wire_bytes",
    "hbm_bytes",
    "seconds",
    "bound",
    "binding",
    "cpu_seconds",
    "versions",
)


@dataclasses.dataclass(frozen=True)
class Row:
    config: str
    topology: str
    mesh: str = ""
    batch: int = 0  # 0: the recipe's
    remat: str = ""  # "": the recipe's
    records: str = "kinetics400"
    overrides: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Of compile_check."""
        found = [f"--config={self.config}", f"--topology={self.topology}"]
        found += [f"--mesh={self.mesh}"] if self.mesh else []
        found += [f"--batch={self.batch}"] if self.batch else []
        found += [f"--remat={self.remat}"] if self.remat else []
        return [*found, f"--records={self.records}", *self.overrides]


ROWS = {
    # What the design asks for: clips per chip and mesh of the prototypes.
    "mae-b": Row(f"{PRETRAIN}:size=base", "v5e:4x4", batch=512),
    "mae-l": Row(
        f"{PRETRAIN}:size=large",
        "v5e:16x16",
        batch=32 * 256,
        overrides=("--config.model.decoder.depth=8",),
    ),
    "mae-h": Row(f"{PRETRAIN}:size=huge,recipe=internvideo1", "v5e:16x16", batch=16 * 256),
    "mae-g": Row(
        f"{PRETRAIN}:size=giant,recipe=v2",
        "v5e:16x16",
        "data=32,fsdp=8",
        batch=8 * 256,
        overrides=("--config.objective.decoder_ratio=0.0",),
    ),
    # Shipped recipes at their own batch.
    "pretrain-small": Row(f"{PRETRAIN}:size=small", "v5e:4x4"),
    "pretrain-base": Row(f"{PRETRAIN}:size=base", "v5e:8x8"),
    "pretrain-large": Row(f"{PRETRAIN}:size=large", "v5e:4x4"),
    "pretrain-huge": Row(f"{PRETRAIN}:size=huge", "v5e:8x8"),
    "pretrain-giant": Row(f"{PRETRAIN}:size=giant,recipe=v2", "v5e:16x16", "data=32,fsdp=8"),
    "finetune-small": Row(f"{FINETUNE}:size=small", "v5e:4x4"),
    "finetune-base": Row(f"{FINETUNE}:size=base", "v5e:8x8"),
    "finetune-large": Row(f"{FINETUNE}:size=large", "v5e:8x8"),
    "finetune-huge": Row(f"{FINETUNE}:size=huge", "v5e:8x8", "data=16,fsdp=4"),
    "finetune-giant": Row(f"{FINETUNE}:size=giant", "v5e:8x16", "data=16,fsdp=8"),
    "uniformerv2-base": Row(f"{UNIFORMER}:size=base", "v5e:4x4"),
    "uniformerv2-large": Row(f"{UNIFORMER}:size=large", "v5e:4x8"),
    # InternVideo2 stage 1 and its fine-tuning, Unmasked Teacher; also at their batch.
    "stage1-1b": Row(f"{STAGE1}:size=1b", "v5e:16x16", "data=32,fsdp=8", records=K_MASH),
    "stage1-1b-cached": Row(
        f"{STAGE1}:size=1b,targets=cached", "v5e:16x16", "data=32,fsdp=8", records=K_MASH
    ),
    "stage1-6b": Row(f"{STAGE1}:size=6b", "v5e:16x16", "data=16,fsdp=16", records=K_MASH_2M),
    "stage1-6b-cached": Row(
        f"{STAGE1}:size=6b,targets=cached", "v5e:16x16", "data=16,fsdp=16", records=K_MASH_2M
    ),
    "stage1-6b-v5p": Row(f"{STAGE1}:size=6b", "v5p:4x4x4", "data=16,fsdp=4", records=K_MASH_2M),
    "stage1-6b-v5p-cached": Row(
        f"{STAGE1}:size=6b,targets=cached", "v5p:4x4x4", "data=16,fsdp=4", records=K_MASH_2M
    ),
    "internvideo2-finetune-1b": Row(
        f"{STAGE1_FINETUNE}:recipe=1b_k710", "v5e:8x16", "data=16,fsdp=8", records="kinetics710"
    ),
    "umt-base": Row(f"{UMT}:size=base", "v5e:8x8", records="kinetics710"),
    "umt-large": Row(f"{UMT}:size=large", "v5e:8x8", records="kinetics710"),
}


def long_clip(frames: int, batch: int, mesh: str = "", *, remat: str = "attention") -> Row:
    """Fine-tuning of the large model on longer clips than the recipe's, few at a time.

    The recipe mixes clips in pairs; these have no other.
    """
    fields = {"data.clip.frames": frames, "model.frames": frames}
    fields |= {"data.repeats": 1, "objective.mixup": 0.0, "objective.cutmix": 0.0}
    return Row(
        f"{FINETUNE}:size=large",
        "v5e:4x4",
        mesh,
        batch=batch,
        remat=remat,
        overrides=tuple(f"--config.{field}={value}" for field, value in fields.items()),
    )


# Long clips, on a device each and shared out.
ROWS |= {
    "long-64": long_clip(64, 16, remat="full"),
    "long-64-sequence": long_clip(64, 4, "data=4,sequence=4"),
    "long-128": long_clip(128, 16, remat="full"),
    "long-128-sequence": long_clip(128, 2, "data=2,sequence=8"),
    "long-256-sequence": long_clip(256, 1, "data=1,sequence=16"),
}


def with_remat(name: str, remat: str) -> Row:
    return dataclasses.replace(ROWS[name], remat=remat)


# The same steps with another choice of what the backward pass keeps.
ROWS |= {
    "mae-l-dots": with_remat("mae-l", "dots"),
    "mae-g-attention": with_remat("mae-g", "attention"),
}


def compile_row(row: Row) -> dict[str, Any]:
    """The facts that compile_check writes; RuntimeError with its message when there are none."""
    with tempfile.TemporaryDirectory() as folder:
        facts = Path(folder) / "facts.json"
        command = [sys.executable, "-m", "internvideo_jax.compile_check", *row.arguments()]
        done = subprocess.run(
            [*command, "--fast", f"--json={facts}"], cwd=ROOT, capture_output=True, text=True
        )
        if not facts.exists():
            raise RuntimeError(done.stderr.strip()[-2000:])
        return json.loads(facts.read_text())


def compare(found: dict[str, Any], stored: dict[str, Any] | None) -> list[str]:
    """What got worse; empty without a stored row."""
    if stored is None:
        return []
    if stored["fits"] and not found["fits"]:
        return ["it does not fit any more"]
    worse = []
    for what, unit in (("peak", GIB), ("wire_bytes", 1e6)):
        now, before = (_value(facts, what) for facts in (found, stored))
        if now is not None and before is not None and now > TOLERANCE * before:
            name = "peak GiB" if what == "peak" else "MB sent"
            worse.append(f"{name} {before / unit:.2f} -> {now / unit:.2f}")
    return worse


def _value(facts: dict[str, Any], what: str) -> float | None:
    if what == "peak":
        return facts["memory"] and facts["memory"]["peak"]
    return facts[what]


HEADER = (
    "| row | slice | mesh | remat | clips per chip | peak GiB | executed / model | teachers | "
    "MB sent | compute, HBM, ICI ms | binds | clips/s, MFU at best | days, chip-hours at best | "
    "CPU s |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(name: str, facts: dict[str, Any]) -> str:
    """One row of the table, in Markdown.

    `teachers` is the memory of frozen networks on a chip and their share of the executed FLOPs;
    `executed / model` and MFU are those of what is trained.
    """
    mesh = ", ".join(f"{axis}={n}" for axis, n in facts["mesh"].items() if n > 1)
    chips, batch = facts["chips"], facts["batch"]
    cells = [name, facts["topology"], mesh, facts["remat"], f"{batch / chips:g}"]
    if not facts["memory"]:
        return f"| {' | '.join(cells)} | does not fit | | | | | | | | {facts['cpu_seconds']:.0f} |"
    wire = "unavailable" if facts["wire_bytes"] is None else f"{facts['wire_bytes'] / 1e6:.0f}"
    limits = [facts["seconds"].get(limit) for limit in ("compute", "HBM", "ICI")]
    days = facts["steps"] * facts["bound"] / 86400
    executed, frozen = facts["executed_flops"], facts.get("frozen_flops", 0.0)
    mfu = facts["model_flops"] / executed * facts["seconds"]["compute"] / facts["bound"]
    cells += [
        f"{facts['memory']['peak'] / GIB:.2f}" + ("" if facts["fits"] else " (does not fit)"),
        f"{(executed - frozen) / facts['model_flops']:.3f}",
        f"{facts['frozen_bytes'] / GIB:.2f} GiB, {100 * frozen / executed:.0f} %" if frozen else "",
        wire,
        ", ".join("?" if s is None else f"{s * 1e3:.3g}" for s in limits),
        facts["binding"],
        f"{batch / facts['bound']:.0f}, {100 * mfu:.1f} %",
        f"{days:.3g}, {days * 24 * chips:.0f}",
        f"{facts['cpu_seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    unknown = [name for name in ROWS_FLAG.value if name not in ROWS]
    if unknown:
        sys.exit(f"error: no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    print(HEADER)
    if TABLE.value:
        for name in ROWS_FLAG.value or ROWS:
            print(line(name, stored[name]) if name in stored else f"| {name} | not stored |")
        return
    failed: dict[str, list[str]] = {}
    for name in ROWS_FLAG.value or ROWS:
        try:
            facts = compile_row(ROWS[name])
        except RuntimeError as error:
            failed[name] = [str(error)]
            continue
        print(line(name, facts), flush=True)
        worse = compare(facts, stored.get(name))
        if worse:
            failed[name] = worse
        if UPDATE.value:
            stored[name] = {key: facts[key] for key in KEPT if key in facts}
            STORED.write_text(json.dumps(stored, indent=1) + "\n")
    for name, worse in failed.items():
        print(f"worse        {name}: {'; '.join(worse)}", file=sys.stderr)
    sys.exit(1 if failed and not UPDATE.value else 0)


if __name__ == "__main__":
    ROWS_FLAG = flags.DEFINE_list("rows", [], "Names of rows; default all.")
    UPDATE = flags.DEFINE_bool("update", False, "Store what was found.")
    TABLE = flags.DEFINE_bool("table", False, "Print the stored rows, compile nothing.")
    cli.run(main)
