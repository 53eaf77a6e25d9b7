"""What docs/models.md shows and the code decides: sizes with counts, published files, notes.

python -m tests.internvideo_jax.models_page     # writes these parts of the page anew
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import jax
import numpy as np

from internvideo_jax.families.internvideo2 import classifier as internvideo2_classifier
from internvideo_jax.families.internvideo2 import model as internvideo2
from internvideo_jax.families.internvideo2 import student as internvideo2_student
from internvideo_jax.families.umt import model as umt
from internvideo_jax.families.uniformerv2 import model as uniformerv2
from internvideo_jax.families.videomae import model as videomae
from internvideo_jax.weights import zoo
from tests.recipes import shipped

PAGE = Path(__file__).resolve().parents[2] / "docs/models.md"
HEADS = (400, 710, 174)  # classes
DECODERS = (4, 8, 12)  # layers


def parameters(config) -> int:
    shapes = jax.tree.leaves(config.model().shapes())
    return sum(int(np.prod(leaf.shape)) for leaf in shapes)


@cache
def classifier(size: str, classes: int) -> int:
    """Measured with 400 classes; a further class is a row of the head and a bias."""
    if classes == HEADS[0]:
        return parameters(videomae.VideoMAEClassifierConfig.of_size(size, classes=classes))
    width = videomae.SIZES[size].encoder.width
    return classifier(size, HEADS[0]) + (classes - HEADS[0]) * (width + 1)


@cache
def pretrained(size: str, depth: int) -> int:
    return parameters(videomae.PretrainConfig.of_size(size, decoder_depth=depth))


@cache
def uniformer(size: str, style: str, classes: int, frozen: bool = False) -> int:
    """Without what is no parameter: the running statistics of the local blocks."""
    config = uniformerv2.UniFormerV2Config.of_size(
        size, style=style, classes=classes, frozen=frozen
    )
    statistics = 2 * config.local_blocks * config.encoder.depth * config.encoder.width
    return parameters(config) - statistics


def video_sizes() -> list[str]:
    rows = [
        "| size | width | layers | heads | hidden | patch | decoder width x heads "
        "| classifier, 400 classes | pre-training, 4 decoder layers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, size in videomae.SIZES.items():
        if name == "tiny":
            continue
        tower = size.encoder
        rows.append(
            f"| {name} | {tower.width} | {tower.depth} | {tower.heads} | {tower.hidden} "
            f"| {size.patch} | {size.decoder_width} x {size.decoder_heads} "
            f"| {classifier(name, 400):,} | {pretrained(name, 4):,} |"
        )
    return rows


def image_sizes() -> list[str]:
    rows = [
        "| size | pixels | width | layers | heads | patch | Kinetics, 400 classes "
        "| Something-Something, 174 classes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, size in uniformerv2.SIZES.items():
        if name == "tiny":
            continue
        tower = size.encoder
        something = "" if name == "large336" else f"{uniformer(name, 'something', 174):,}"
        rows.append(
            f"| {name} | {size.resolution} | {tower.width} | {tower.depth} | {tower.heads} "
            f"| {size.patch} | {uniformer(name, 'kinetics', 400):,} | {something} |"
        )
    return rows


@cache
def internvideo2_classes(size: str) -> int:
    """Of the classifier with 710 classes."""
    return parameters(
        internvideo2_classifier.InternVideo2ClassifierConfig.of_size(size, classes=710)
    )


@cache
def internvideo2_students(size: str) -> int:
    """As pre-trained (1B, 6B) or distilled (S, B, L)."""
    teachers = (
        {"clip_width": 3200, "mae_width": 1408}
        if size in ("1b", "6b")
        else {"clip_width": 1408, "clip_decoder": "mlp"}
    )
    return parameters(internvideo2_student.StudentConfig.of_size(size, **teachers))


@cache
def umt_parameters(size: str, student: bool) -> int:
    if student:
        width = {"base": 512, "large": 768}[size]
        return parameters(umt.UMTStudentConfig.of_size(size, clip_width=width))
    settings = {"frames": 8, "classes": 400, **umt.CLASSIFIER}
    return parameters(videomae.VideoMAEClassifierConfig.of_size(size, **settings))


def internvideo2_sizes() -> list[str]:
    rows = [
        "| size | width | layers | heads | hidden | patch | classifier, 710 classes "
        "| student, as pre-trained or distilled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, size in internvideo2.SIZES.items():
        if name == "tiny":
            continue
        tower = size["encoder"]
        rows.append(
            f"| {name} | {tower.width} | {tower.depth} | {tower.heads} | {tower.hidden} "
            f"| 14 | {internvideo2_classes(name):,} | {internvideo2_students(name):,} |"
        )
    return rows


def umt_sizes() -> list[str]:
    rows = [
        "| size | width | layers | heads | patch | classifier, 400 classes | student | teacher |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, teacher in (("base", "CLIP B/16"), ("large", "CLIP L/14 at 196 pixels")):
        tower = videomae.SIZES[name].encoder
        rows.append(
            f"| {name} | {tower.width} | {tower.depth} | {tower.heads} | 16 "
            f"| {umt_parameters(name, False):,} | {umt_parameters(name, True):,} | {teacher} |"
        )
    return rows


# Of the model zoos, where it is not the test of the script.
ZOO_TESTS = {"umt/something": "umt/something_4"} | {
    f"internvideo2/something_{segments}": "internvideo2/something_4" for segments in (2, 5)
}


def accuracies(family: str) -> list[str]:
    """The model zoo's numbers by recipe, with the protocols of its script and of the zoo."""
    rows = [
        "| recipe | input | test of the script | test of the zoo | reported |",
        "|---|---|---|---|---|",
    ]
    for kind in ("finetune", "probe") if family == "internvideo2" else ("finetune",):
        for name, recipe in shipped.module(f"{family}/{kind}.py").RECIPES.items():
            if not recipe.reported:
                continue
            # The script has 16 frames, the zoo's row says 8.
            frames, pixels = getattr(recipe, "frames", 16), getattr(recipe, "pixels", 224)
            test = recipe.protocol
            rows.append(
                f"| `{family}/{kind}.py:recipe={name}` | {frames} x {pixels}² | `{test}` "
                f"| `{ZOO_TESTS.get(test, test)}` | {recipe.reported} |"
            )
    return rows


def parts() -> dict[str, str]:
    """Name of a part -> its lines, as they stand between two marks on the page."""
    tables = {f"files {source}": zoo.table(source) for source in zoo.sources()}
    notes = {f"notes {source}": zoo.notes(source) for source in zoo.sources()}
    found = {
        "sizes videomae": video_sizes(),
        "sizes uniformerv2": image_sizes(),
        "sizes internvideo2": internvideo2_sizes(),
        "sizes umt": umt_sizes(),
        "accuracies internvideo2": accuracies("internvideo2"),
        "accuracies umt": accuracies("umt"),
    }
    return {name: "\n".join(lines) for name, lines in {**found, **tables, **notes}.items()}


def between(name: str) -> re.Pattern[str]:
    mark = re.escape(name)
    return re.compile(f"(<!-- {mark} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> None:
    page = PAGE.read_text()
    for name, text in parts().items():
        page = between(name).sub(lambda found, text=text: found[1] + text + "\n" + found[3], page)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
