"""Videos against texts: recognition, retrieval and choice, each against a computation by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.clips.sampling import beginning, uniform_center
from data_pipelines.clips.transforms import resize
from data_pipelines.config import ClipConfig, DataConfig, ViewConfig
from data_pipelines.records.dataset import open_dataset
from data_pipelines.text import make_tokenizer
from internvideo_jax.config import MeshConfig
from internvideo_jax.evaluators.base import EvalContext
from internvideo_jax.evaluators.metrics import softmax
from internvideo_jax.evaluators.multiple_choice import MultipleChoice, read_questions
from internvideo_jax.evaluators.published import templates
from internvideo_jax.evaluators.published import video_text as presets
from internvideo_jax.evaluators.retrieval import TextVideoRetrieval
from internvideo_jax.evaluators.run import check_evaluators
from internvideo_jax.evaluators.zero_shot import ZeroShot
from internvideo_jax.families.viclip.model import ViCLIPConfig
from internvideo_jax.families.videomae.model import PretrainConfig
from internvideo_jax.layers.tower import tower
from internvideo_jax.parallel.mesh import make_mesh
from internvideo_jax.protocols import ClipInput, Inputs, TextInput, Traits
from internvideo_jax.registry import resolve


@dataclasses.dataclass(frozen=True)
class Config:
    """What evaluators ask of a model's config."""

    name: str = "stand-in"
    frames: int = 4
    resolution: int = 32
    context: int = 16
    vocab: int = 49408

    @property
    def inputs(self) -> Inputs:
        clip = ClipInput(self.frames, self.resolution, (4, 4, 4), 1, 8, (0,) * 3, (1,) * 3)
        return Inputs(clip, TextInput(self.context, self.vocab))

    @property
    def traits(self) -> Traits:
        return Traits()


class StandIn:
    """Two linear encoders: small to compile, and unlike a fresh network they tell clips apart."""

    def __init__(self, config: Config):
        self.config = config

    def init(self) -> dict:
        rng = np.random.default_rng(0)
        sizes = {"video": (4 * 8 * 8 * 3, 8), "text": (self.config.vocab, 8), "place": (16, 8)}
        made = {name: rng.normal(size=size).astype("float32") for name, size in sizes.items()}
        return {**made, "temperature": np.float32(0.01)}

    def apply(self, params, rows, method):
        if method == "encode_text":
            return (params["text"][rows] * params["place"] * (rows > 0)[..., None]).sum(1)
        cells = rows.astype("float32").reshape(-1, 4, 8, 4, 8, 4, 3).mean((3, 5)) / 255
        return (cells - cells.mean((1, 2, 3), keepdims=True)).reshape(len(rows), -1) @ params[
            "video"
        ]


CONFIG = Config()
VIEWS = ViewConfig(
    clip=ClipConfig(frames=4, resolution=32, sampling="uniform"), crop_rule="squash", batch=8
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """23 clips; record n has n % 3 + 1 captions, one of them empty now and then, and a question."""
    from data_pipelines.ingest.__main__ import main as ingest
    from data_pipelines.synthetic import World, write_world

    folder = tmp_path_factory.mktemp("captioned")
    write_world(World(size=48, frames=13), folder / "videos", {"test": 23})
    rows = (folder / "videos/annotations.jsonl").read_text().splitlines()
    with open(folder / "videos/list.jsonl", "w", encoding="utf-8") as file:
        for number, line in enumerate(rows):
            row = json.loads(line)
            first = f"{row.pop('caption')} number {number}"
            row["captions"] = [first, "...", f"Clip {number}: a {row['shape']}"][: number % 3 + 1]
            row["options"] = [first, "a dog barks", "water is poured", first.upper()]
            row["answer"] = 1 + number % 4
            file.write(json.dumps(row) + "\n")
    source, out = f"--source={folder}/videos/list.jsonl", f"--out={folder}/shards"
    assert ingest([source, out, "--name=w", "--workers=1", "--shards=3"]) == 0
    return folder / "shards"


@pytest.fixture(scope="module")
def context(data) -> EvalContext:
    model, mesh = StandIn(CONFIG), make_mesh(MeshConfig(), jax.devices()[:1])
    made = EvalContext(model, mesh, DataConfig(eval=str(data)), progress=False)
    made.params = model.init()
    return made


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def videos_by_hand(context: EvalContext, data: Path, seconds: float = 0.0) -> np.ndarray:
    """(V, E) of length 1: the middle frame of each of four parts, squashed, one clip at a time."""
    dataset = open_dataset(str(data), "test")
    rows = []
    for number in range(len(dataset)):
        record = dataset.load(number)
        frames = len(beginning(record.timestamps_us, seconds))
        found = dataset.frames(number, record, uniform_center(frames, 4))
        video = np.stack([resize(frame, 32, 32, "bicubic") for frame in found])[None]
        rows.append(context.model.apply(context.params, video, method="encode_video")[0])
    return unit(np.stack(rows))


def texts_by_hand(context: EvalContext, texts: list[str], clean: bool = True) -> np.ndarray:
    ids = make_tokenizer("clip", CONFIG.context, clean=clean)(texts)
    return unit(context.model.apply(context.params, ids, method="encode_text"))


@pytest.mark.parametrize("merge", templates.MERGES)
def test_zero_shot_is_what_the_prompts_say(context, data, merge):
    task = ZeroShot(views=VIEWS, merge=merge)
    check_evaluators({"zs": task}, context)
    result = task.run(context)
    dataset = open_dataset(str(data), "test")
    label = np.array([dataset.load(n).labels[0] for n in range(len(dataset))])
    prompts = [t.replace("{}", c) for c in dataset.classes for t in templates.named("kinetics28")]
    text = texts_by_hand(context, prompts).reshape(len(dataset.classes), 28, -1)
    cosines = np.einsum("ne,kae->nka", videos_by_hand(context, data), text)
    expected = {
        "cosine": cosines.mean(2),
        "embedding": videos_by_hand(context, data) @ unit(text.mean(1)).T,
        "probability": softmax(np.moveaxis(cosines, 2, 1) / 0.01).mean(1),
    }[merge]
    table = np.zeros((len(dataset.classes),) * 2, int)
    np.add.at(table, (label, expected.argmax(1)), 1)
    assert result.tables["confusion"] == table.tolist()
    top5 = np.mean([y in row[:5] for y, row in zip(label, np.argsort(-expected), strict=True)])
    assert result.metrics["top1"] == pytest.approx(np.trace(table) / 23)
    assert result.metrics["top5"] == pytest.approx(top5)
    assert result.metrics["top1_top5_mean"] == pytest.approx((np.trace(table) / 23 + top5) / 2)
    assert len(np.unique(expected.argmax(1))) > 2  # the comparison above has something to compare
    assert result.protocol["scale"] == pytest.approx(100 if merge == "probability" else 1)
    assert result.pictures["confusion"].ndim == 3 and result.sheets["per_class"]


def test_class_names_may_come_from_a_file(context, tmp_path):
    plain = ZeroShot(views=VIEWS, texts=("{} {{curly}} braces",))
    other = tmp_path / "names.txt"
    other.write_text("\n".join(f"name {n}" for n in range(10)) + "\n\n")
    renamed = dataclasses.replace(plain, names=str(other)).run(context)
    assert renamed.tables["classes"] == [f"name {n}" for n in range(10)]
    assert renamed.tables["confusion"] != plain.run(context).tables["confusion"]
    other.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"config.evals.zs: .*2 class names, the dataset has 10"):
        check_evaluators({"zs": dataclasses.replace(plain, names=str(other))}, context)


@pytest.mark.parametrize("captions", ["all", "first", "paragraph"])
def test_retrieval_is_what_sorting_says(context, data, captions):
    task = TextVideoRetrieval(views=VIEWS, captions=captions, block=5, pictured=3, seconds=0.5)
    check_evaluators({"r": task}, context)
    result = task.run(context)
    dataset = open_dataset(str(data), "test")
    groups = [[c for c in dataset.load(n).captions if c != "..."] for n in range(len(dataset))]
    if captions != "all":
        groups = [group[:1] if captions == "first" else [" ".join(group)] for group in groups]
    texts = [text for group in groups for text in group]
    owner = np.array([video for video, group in enumerate(groups) for _ in group])
    cosines = texts_by_hand(context, texts) @ videos_by_hand(context, data, 0.5).T
    own = owner[:, None] == np.arange(23)
    weight = {axis: np.exp(cosines) / np.exp(cosines).sum(axis, keepdims=True) for axis in (0, 1)}
    for prefix, t2v, v2t in (
        ("", cosines, cosines),
        ("dsl/", cosines * weight[0], cosines * weight[1]),
    ):
        rank = {
            "t2v": (t2v > (t2v * own).sum(1, keepdims=True)).sum(1),
            "v2t": (v2t > np.where(own, v2t, -9).max(0)).sum(0),
        }
        for way, places in rank.items():
            found = {k: result.metrics[f"{prefix}{way}_{k}"] for k in ("r1", "r5", "mdr", "mnr")}
            assert found == pytest.approx(
                {
                    "r1": np.mean(places < 1),
                    "r5": np.mean(places < 5),
                    "mdr": np.median(places) + 1,
                    "mnr": places.mean() + 1,
                }
            )
    assert result.metrics["texts"] == len(texts) == (30 if captions == "all" else 23)
    assert result.protocol["empty_captions"] == 15
    assert result.protocol["truncated_captions"] == 0
    assert len(result.tables["queries"]) == 3
    assert all(any(f["right"] for f in row["found"]) for row in result.tables["queries"])
    sheet = result.pictures["queries"]
    green = (sheet == (24, 140, 60)).all(-1)
    assert sheet.dtype == np.uint8 and green.any(1).sum() == 3 * 104  # one frame per query


def test_the_first_seconds_give_other_frames(context, data):
    whole, begin = (videos_by_hand(context, data, seconds) for seconds in (0.0, 0.5))
    assert np.abs(whole - begin).max() > 1e-3
    times = [5, 500_000, 1_000_004, 1_000_005, 2_000_000]
    assert list(beginning(times, 1.0)) == times[:3]
    assert list(beginning([7, 9], 1e-9)) == [7]


def test_long_captions_are_cut_and_counted(context):
    encoder = TextVideoRetrieval(views=VIEWS).text_encoder(context)
    fits, long = "word " * 14, "word " * 15
    assert encoder.cut([fits, long, long + "more", "", fits]) == 2
    values = encoder([fits, long, long + "more", fits])
    assert (values[1] == values[2]).all() and (values[0] == values[3]).all()


def test_more_texts_than_a_batch_come_back_in_their_places(context):
    encoder = TextVideoRetrieval(views=VIEWS).text_encoder(context)
    texts = [f"text {n % 70}" for n in range(150)]
    found = unit(encoder(texts))
    np.testing.assert_allclose(found, texts_by_hand(context, texts), atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def questions_by_hand(context, data) -> tuple[np.ndarray, list[list[str]]]:
    dataset = open_dataset(str(data), "test")
    options = [json.loads(dataset.load(n).extra["options"]) for n in range(len(dataset))]
    videos = videos_by_hand(context, data)
    text = texts_by_hand(context, [text for row in options for text in row]).reshape(23, 4, -1)
    return np.einsum("ne,nke->nk", videos, text), options


def test_choices_from_columns_with_ties(context, data):
    """Options 0 and 3 are the same text after cleaning, so whichever wins, they tie."""
    scores, _ = questions_by_hand(context, data)
    base = MultipleChoice(views=VIEWS, first_answer=1)
    check_evaluators({"mc": base}, context)
    best = scores[:, :3].argmax(1)
    dataset = open_dataset(str(data), "test")
    answer = np.array([int(dataset.load(n).extra["answer"]) - 1 for n in range(23)])
    share = np.where(best == 0, (answer % 3 == 0) / 2, best == answer)
    result = base.run(context)
    assert result.metrics["accuracy"] == pytest.approx(share.mean())
    assert result.metrics["tied"] == pytest.approx((best == 0).mean())
    assert result.metrics["chance"] == 0.25 and 0 < result.metrics["tied"] < 1
    first = dataclasses.replace(base, ties="first").run(context)
    assert first.metrics["accuracy"] == pytest.approx((best == answer).mean())


def test_choices_from_a_file(context, data, tmp_path):
    scores, options = questions_by_hand(context, data)
    ids = [open_dataset(str(data), "test").load(n).media_id for n in range(23)]
    path = tmp_path / "mc.jsonl"

    def write(shift: int) -> MultipleChoice:
        rows = [
            {"id": ids[n], "options": options[n][:3], "answer": (int(s[:3].argmax()) + shift) % 3}
            for n, s in enumerate(scores)
            if n != 4
        ]
        rows += [{**rows[0], "options": [rows[0]["options"][rows[0]["answer"]], "x"], "answer": 1}]
        rows += [{"id": "elsewhere", "options": ["a", "b"], "answer": 0}]
        path.write_text("\n".join(map(json.dumps, rows)))
        return MultipleChoice(views=VIEWS, options=str(path))

    result = write(0).run(context)
    assert result.metrics["questions"] == 23  # 22 videos, one with two
    assert result.metrics["accuracy"] >= 22 / 23
    assert result.protocol["videos_without_question"] == 1
    assert result.protocol["questions_without_video"] == 1
    assert write(1).run(context).metrics["accuracy"] <= 1 / 23


def test_choices_among_all_classes_agree_with_recognition(context):
    choice = MultipleChoice(views=VIEWS, options="classes").run(context)
    names = ZeroShot(views=VIEWS, templates="plain").run(context)
    assert choice.metrics["accuracy"] == pytest.approx(names.metrics["top1"])
    assert choice.metrics["chance"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "mc.jsonl:1: is not JSON"),
        ('{"options": ["a", "b"], "answer": 0}', 'mc.jsonl:1: expected {"id"'),
        ('{"id": "x", "options": ["a"], "answer": 0}', "has 1 options, expected at least 2"),
        ('{"id": "x", "options": "ab", "answer": 0}', "expected a list of texts"),
        ('{"id": "x", "options": ["a", "b"], "answer": 2}', "answer 2 is outside 0 to 1"),
        ('{"id": "x", "options": ["a", "b"], "answer": true}', "expected the number of an option"),
        ("", "holds no questions"),
    ],
)
def test_bad_questions(tmp_path, row, message):
    path = tmp_path / "mc.jsonl"
    path.write_text(row)
    with pytest.raises(ValueError) as error:
        read_questions(str(path))
    assert message in str(error.value)


def test_broken_weights_name_the_first_record_or_text(context):
    params = context.params
    try:
        assert params is not None
        context.params = {**params, "video": params["video"] * np.nan}
        for task in (TextVideoRetrieval(views=VIEWS), MultipleChoice(views=VIEWS, first_answer=1)):
            with pytest.raises(ValueError, match=r"\(world-0-000000\): .* 23 of 23 videos"):
                task.run(context)
        context.params = {**params, "text": params["text"] * 0}
        with pytest.raises(ValueError, match=r"embedding of the text '.* number 0' is zero or not"):
            TextVideoRetrieval(views=VIEWS).run(context)
    finally:
        context.params = params


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ZeroShot(views=VIEWS, texts=("no slot",)), r"template 'no slot' has 0 slots"),
        (ZeroShot(views=VIEWS, templates="kinetics"), r"unknown templates 'kinetics'"),
        (ZeroShot(views=VIEWS, merge="sum"), r"unknown merge rule 'sum'"),
        (ZeroShot(views=VIEWS, preset="viclip/k40"), r"unknown preset .* mean 'viclip/k400'"),
        (TextVideoRetrieval(views=VIEWS, preset="msrvtt"), r"unknown preset 'msrvtt'"),
        (TextVideoRetrieval(views=VIEWS, captions="none"), r"unknown captions 'none'"),
        (TextVideoRetrieval(views=VIEWS, ties="x"), r"unknown ties 'x'; known: optimistic"),
        (TextVideoRetrieval(views=VIEWS, tokenizer="spm"), r"unknown tokenizer 'spm'"),
        (TextVideoRetrieval(views=VIEWS, seconds=-1.0), r"seconds = -1"),
        (MultipleChoice(views=VIEWS, options="/no/such.jsonl"), r"No such file"),
        (MultipleChoice(views=VIEWS, ties="x"), r"unknown ties 'x'; known: share, first"),
        (MultipleChoice(views=VIEWS, preset="x"), r"unknown preset 'x'"),
    ],
)
def test_bad_settings_come_before_the_first_step(context, task, message):
    with pytest.raises(ValueError, match=rf"config\.evals\.it: .*{message}"):
        check_evaluators({"it": task}, context)
    check_evaluators({"it": dataclasses.replace(task, every=-1)}, context)


def test_models_and_vocabularies_that_do_not_fit(context):
    other = PretrainConfig(
        encoder=tower(16, 1, 2), decoder=tower(16, 1, 2), frames=4, resolution=32
    )
    for model, message in (
        (other.model(), r"config.model is 'videomae_pretrain', which reads none"),
        (StandIn(Config(vocab=100)), r"has 49408 ids, the model's table 100"),
    ):
        fits = dataclasses.replace(context, model=model)
        with pytest.raises(ValueError, match=message):
            check_evaluators({"it": TextVideoRetrieval(views=VIEWS)}, fits)


def test_data_without_captions(context, tmp_path):
    from data_pipelines.ingest.__main__ import main as ingest
    from data_pipelines.synthetic import World, write_world

    write_world(World(size=32, frames=4), tmp_path / "videos", {"test": 2})
    csv = tmp_path / "videos/list.csv"
    csv.write_text("path,split\ntest/000000.mp4,test\ntest/000001.mp4,test\n")
    assert ingest([f"--source={csv}", f"--out={tmp_path}/s", "--name=w", "--workers=1"]) == 0
    task = TextVideoRetrieval(views=VIEWS, data=str(tmp_path / "s"))
    with pytest.raises(ValueError, match=r"evals.r: split 'test' of .* has no captions, which ret"):
        check_evaluators({"r": task}, context)
    with pytest.raises(ValueError, match=r"has no labels"):
        check_evaluators({"z": ZeroShot(views=VIEWS, data=task.data)}, context)
    with pytest.raises(ValueError, match=r"no record .* has a question with options='columns'"):
        MultipleChoice(views=VIEWS, data=task.data).run(context)


EVALUATORS = [
    *((TextVideoRetrieval, presets.RETRIEVAL, name) for name in presets.RETRIEVAL),
    *((ZeroShot, presets.ZERO_SHOT, name) for name in presets.ZERO_SHOT),
    *((MultipleChoice, presets.CHOICE, name) for name in presets.CHOICE),
]


@pytest.mark.parametrize(("cls", "table", "name"), EVALUATORS, ids=[each[2] for each in EVALUATORS])
def test_presets_are_kept_or_their_departures_named(cls, table, name):
    task, preset = cls.of_preset(name, resolution=224, batch=8), table[name]
    assert resolve("evaluator", task.name) is cls
    model = ViCLIPConfig.of_size("base", frames=preset.frames, context=preset.text_length or 32)
    assert presets.compared(name, preset, task, model)["modified"] == {}
    other = dataclasses.replace(
        task, seconds=3.0, views=dataclasses.replace(task.views, crops=3, crop_rule="slowfast")
    )
    found = presets.compared(name, preset, other, dataclasses.replace(model, frames=5))
    assert {*found["modified"]} == {"seconds", "crops", "crop_rule", "frames"}
    assert found["modified"]["crops"] == {"preset": 1, "used": 3}
    assert found["reported"] == dict(preset.reported)


def test_a_run_names_its_preset(context, data):
    task = TextVideoRetrieval.of_preset("viclip/didemo", resolution=32, batch=8, frames=4)
    assert task.captions == "paragraph" and task.seconds == 30.0
    protocol = task.run(context).protocol
    assert protocol["preset"] == "viclip/didemo"
    assert protocol["modified"] == {
        "frames": {"preset": 8, "used": 4},
        "text_length": {"preset": 32, "used": 16},
    }
