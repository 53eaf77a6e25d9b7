"""The published checkpoints against the recipes, the specification's counts, and the page."""

from __future__ import annotations

from pathlib import PurePath

import pytest

from internvideo_jax.config import TrainConfig, to_typed
from internvideo_jax.families.umt.model import CLASSIFIER, UMTStudentConfig
from internvideo_jax.families.uniformerv2.model import SIZES, UniFormerV2Config
from internvideo_jax.families.videomae import model as videomae
from internvideo_jax.types import flatten_paths
from internvideo_jax.weights import zoo
from internvideo_jax.weights.family import kinds, tower_facts
from tests.internvideo_jax import models_page
from tests.recipes import shipped

# Measured in PyTorch by instantiating the reference's models: classifier with 400, 710 and 174
# classes, pre-training model with 4, 8 and 12 decoder layers.
COUNTS = {
    "small": ((22033936, 22153286, 21946926), (24029376, 25808064, 27586752)),
    "base": ((86534800, 86773190, 86361006), (94210944, 101307264, 108403584)),
    "large": ((304270736, 304588486, 304039086), (317782016, 330389504, 342996992)),
    "huge": ((632119440, 632516550, 631829934), (645659392, 658266880, 670874368)),
    "giant": ((1012174352, 1012611142, 1011855918), (1026306560, 1039676648, 1053046736)),
    "giant16": ((1012681232, 1013118022, 1012362798), (1026998120, 1040368208, 1053738296)),
    "gigantic": ((1843910928, 1844427078, 1843534638), (1859244408, 1873787096, 1888329784)),
}
# The same for InternVideo2: the classifier with 710 classes and the student; of Unmasked Teacher no
# counts of the reference are known.
INTERNVIDEO2_COUNTS = {
    "small": (23591366, 29169792),
    "base": (89986502, 102252288),
    "large": (309476806, 327183872),
    "1b": (1021256134, 1070042752),
    "6b": (5942282694, 6075947392),
}
IMAGE_COUNTS = {
    ("base", "kinetics", 400, False): 114552208,
    ("base", "something", 174, False): 162992814,
    ("large", "kinetics", 400, False): 354099600,
    ("large336", "kinetics", 400, False): 354427280,
    ("large336", "kinetics", 400, True): 354426256,
    ("large", "something", 174, False): 573949966,
}


@pytest.mark.parametrize("size", COUNTS)
def test_sizes_have_the_parameters_of_the_reference(size):
    heads, decoders = COUNTS[size]
    assert tuple(models_page.classifier(size, classes) for classes in (400, 710, 174)) == heads
    first = models_page.pretrained(size, 4)
    # Decoder layers are alike, so two depths give all.
    layer = (models_page.pretrained(size, 12) - first) // 8
    assert (first, first + 4 * layer, first + 8 * layer) == decoders


def test_the_wide_decoder_of_mcg_nju():
    assert models_page.pretrained("huge_nju", 12) == 692487296


@pytest.mark.parametrize("variant", IMAGE_COUNTS)
def test_variants_of_uniformerv2_have_the_parameters_of_the_reference(variant):
    assert models_page.uniformer(*variant) == IMAGE_COUNTS[variant]


@pytest.mark.parametrize("size", INTERNVIDEO2_COUNTS)
def test_sizes_of_internvideo2_have_the_parameters_of_the_reference(size):
    counts = models_page.internvideo2_classes(size), models_page.internvideo2_students(size)
    assert counts == INTERNVIDEO2_COUNTS[size]


def test_names_are_unique_and_rules_exist():
    names = [entry.name for entry in zoo.entries()]
    assert len(set(names)) == len(names)
    assert {entry.kind for entry in zoo.entries()} <= set(kinds())
    published = [entry.file for entry in zoo.entries() if entry.file]
    assert len(set(published)) == len(published)


def recipe(entry: zoo.Entry) -> TrainConfig:
    """The entry's recipe with its settings, as the command line would build it."""
    path, _, options = entry.config.removeprefix("configs/").partition(":")
    config = shipped.module(path).get_config(options)
    with config.unlocked():
        for setting in entry.settings:
            name, _, value = setting.removeprefix("--config.").partition("=")
            *parents, last = name.split(".")
            place = config
            for parent in parents:
                place = place[parent]
            assert last in place, setting
            place[last] = type(place[last])(value)
    return to_typed(TrainConfig, config.to_dict())


@pytest.mark.parametrize("entry", zoo.entries(), ids=lambda entry: entry.name)
def test_the_recipe_has_the_model_and_the_test_of_the_entry(entry):
    if not entry.config:  # initial weights that are no model here
        assert not entry.made and entry.note
        path, _, options = entry.finetune.removeprefix("configs/").partition(":")
        start = to_typed(TrainConfig, shipped.module(path).get_config(options).to_dict()).model
        facts = zoo.facts_of_entry(entry)
        assert (start.patch, start.resolution) == (facts["patch"], entry.pixels)
        assert tower_facts(start.encoder).items() <= facts.items()
        return
    config = recipe(entry)
    facts, built = zoo.facts_of_entry(entry), zoo.facts_of_config(config.model)
    assert built == {name: value for name, value in facts.items() if name != "classes"}
    assert (config.model.frames, config.model.resolution) == (entry.frames, entry.pixels)
    frames = getattr(config.model, "clip_frames", entry.frames)
    assert (config.data.clip.frames, config.data.clip.resolution) == (frames, entry.pixels)
    if not entry.made:
        assert entry.note
    if entry.pretrained:
        path, _, options = entry.finetune.removeprefix("configs/").partition(":")
        start = to_typed(TrainConfig, shipped.module(path).get_config(options).to_dict())
        assert start.model.encoder == config.model.encoder
        return
    test = config.evals["test"]
    assert (test.views.clip.frames, test.views.clip.resolution) == (entry.frames, entry.pixels)
    if entry.protocol:
        protocol = entry.protocol
        assert (test.views.clips, test.views.crops) == (protocol.clips, protocol.crops)
        assert (test.views.clip.sampling, test.merge) == (protocol.sampling, protocol.merge)
    path, _, name = entry.config.removeprefix("configs/").partition(":recipe=")
    row = shipped.module(path).RECIPES.get(name) if name else None
    if entry.source in ("internvideo2", "umt"):
        assert row and row.reported == entry.reported
        return
    if row and row.reported and entry.made:
        assert row.reported.startswith(f"{entry.reported}, ")


def test_finding_by_name():
    assert zoo.find("v2/vit_b_k710_dl_from_giant").size == "base"
    assert zoo.find("vit_b_k710_dl_from_giant.pth").classes == 710
    with pytest.raises(ValueError, match="did you mean 'uniformerv2/sthv2_uniformerv2_b16_16x224'"):
        zoo.find("uniformerv2/sthv2_uniformer_b16_16x224")


def test_a_file_name_is_told_apart_by_folders_and_shapes():
    everything = zoo.match("downloads/ViT-H.pth")
    assert len(everything) == 4
    (one,) = zoo.match("x/HMDB51/VideoMAE/split2_89.92/ViT-H.pth")
    assert one.reported == "89.92"
    facts = zoo.facts_of_entry(zoo.find("ssv1_vit_h"))
    assert [entry.name for entry in zoo.match("ViT-H.pth", facts)] == ["internvideo1/ssv1_vit_h"]
    # A name whose shapes are others is not believed.
    found = zoo.match("vit_b_hybrid_pt_800e_k400_ft.pth", facts)
    assert "internvideo1/vit_b_hybrid_pt_800e_k400_ft" not in {entry.name for entry in found}
    assert zoo.match("unheard_of.pth") == ()


@pytest.mark.parametrize(
    "config",
    [
        videomae.VideoMAEClassifierConfig.of_size("small", classes=400),
        videomae.PretrainConfig.of_size("base", decoder_depth=4),
        UMTStudentConfig.of_size("base"),
        videomae.VideoMAEClassifierConfig.of_size("large", frames=8, classes=400, **CLASSIFIER),
        UniFormerV2Config.of_size("base", classes=400),
        UniFormerV2Config.of_size("base", style="something", classes=174),
        UniFormerV2Config.of_size("large336", classes=400, frozen=True),
    ],
    ids=lambda config: f"{config.name}-{config.encoder.depth}",
)
def test_shapes_tell_what_the_config_said(config):
    # Of UniFormerV2 a file tells how many frames the kernel sees, not how many make a token.
    names = ("patch",) if config.name == "uniformerv2" else ("patch", "tubelet")
    geometry = {name: getattr(config, name) for name in names}
    found = zoo.facts_of_params(config.name, flatten_paths(config.model().shapes()), geometry)
    expected = zoo.facts_of_config(config)
    assert found == expected
    sizes = SIZES if config.name == "uniformerv2" else videomae.SIZES
    assert sizes[zoo.size_of(found)].encoder == config.encoder


def test_a_common_file_name_needs_its_folder():
    assert zoo.match("downloads/pytorch_model.bin") == ()
    (one,) = zoo.match("stage1/S14/S14_ft_k710_f8/pytorch_model.bin")
    assert one.name == "internvideo2/S14_ft_k710_f8"


def test_only_what_is_published_is_named():
    for entry in zoo.entries():
        assert PurePath(entry.file).suffix in (".pth", ".pyth", ".pt", ".bin", "")
        assert not (entry.file and entry.source == "videomae")


def test_the_page_shows_the_tables():
    """After a wanted change: python -m tests.internvideo_jax.models_page, and look at the diff."""
    page = models_page.PAGE.read_text()
    for name, text in models_page.parts().items():
        found = models_page.between(name).search(page)
        assert found, f"docs/models.md has no part {name!r}"
        assert found[2] == text + "\n", name
