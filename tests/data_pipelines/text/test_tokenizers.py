"""Tokenizers beyond the golden cases: small vocabularies, any Unicode, damaged files, pickling."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.util
import json
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.synthetic import ACTIONS, COLOURS, COUNTS, SHAPES
from data_pipelines.text import make_tokenizer
from data_pipelines.text.caption import clean_caption, replace_surrogates
from data_pipelines.text.vocabulary import LARGEST
from tests.conftest import ROOT, environment

MERGES = ["d o", "do g</w>", "c a", "ca t</w>", "t h", "th e</w>", "' s</w>", "o g", "1 2</w>"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "##s", "cafe", "un", "##aff"]
WORDS += ["##able", "!", ",", "走", "猫", "12", "##3", "resume"]


@pytest.fixture(scope="session")
def merges(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clip") / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#version", *MERGES, ""]).encode()))
    return f"clip:{path}"


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join([*WORDS, ""]), encoding="utf-8")
    return f"bert:{path}"


@pytest.fixture(scope="session", params=["clip", "merges", "words"])
def name(request, merges, words) -> str:
    if request.param == "clip":
        make_tokenizer("clip", 2)  # skips where there is no vocabulary
    return {"clip": "clip", "merges": merges, "words": words}[request.param]


def merge_slowly(word: str) -> list[str]:
    """Byte-pair encoding as it is written down: the earliest rule first, everywhere."""
    symbols = [*word[:-1], word[-1] + "</w>"]
    for rule in MERGES:
        first, second = rule.split(" ")
        at = 0
        while at < len(symbols) - 1:
            if symbols[at] == first and symbols[at + 1] == second:
                symbols[at : at + 2] = [first + second]
            at += 1
    return symbols


@settings(deadline=None)  # the first example makes the tokenizer
@given(text=st.text("dogcathe's12 !", max_size=30))
def test_byte_pairs_of_a_small_vocabulary(merges, text):
    tokenizer = make_tokenizer(merges, 8)
    printable = [chr(byte) for byte in range(0x21, 0x7F)]
    ids = {c: i for i, c in enumerate(printable)}
    ids |= {c + "</w>": 256 + i for i, c in enumerate(printable)}
    ids |= {rule.replace(" ", ""): 512 + i for i, rule in enumerate(MERGES)}
    pieces = re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+", text)
    assert tokenizer.encode(text) == [ids[s] for piece in pieces for s in merge_slowly(piece)]


def test_rows_of_the_clip_tokenizer(merges):
    tokenizer = make_tokenizer(merges, 4)
    start, end, dog, cat = 521, 522, 513, 515
    assert tokenizer.vocab_size == 523
    ids = tokenizer(["", "Dog", "dog cat dog", "dog <|endoftext|>", "!!<|endoftext|>"])
    assert ids.dtype == np.int32
    assert ids[:4].tolist() == [
        [start, end, 0, 0],
        [start, dog, end, 0],
        [start, dog, cat, end],
        [start, dog, end, end],
    ]
    # After other punctuation the literal token is punctuation too: the pattern takes runs whole.
    assert end not in ids[4, 1:3]
    assert tokenizer.mask(ids).sum(axis=1).tolist() == [2, 3, 4, 4, 4]
    assert tokenizer.decode(ids[2]) == "<|startoftext|>dog cat <|endoftext|>"


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.text(max_size=40), max_size=3), clean=st.booleans())
def test_any_text_is_tokenised(name, texts, clean):
    tokenizer = make_tokenizer(name, 9, clean=clean)
    texts = [*texts, "", "\ud800 dog \ud83d\ude00", "\x00\u200d\ufeff", "[SEP] <|endoftext|> [PAD]"]
    ids = tokenizer(texts)
    assert ids.shape == (len(texts), 9) and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    mask = tokenizer.mask(ids)
    assert mask[:, 0].all() and (ids[~mask] == tokenizer.pad_id).all()
    for row, text in zip(ids, texts, strict=True):
        np.testing.assert_array_equal(tokenizer([text])[0], row)
        assert isinstance(tokenizer.decode(row), str)


def test_no_captions(name):
    assert make_tokenizer(name, 9)([]).shape == (0, 9)


def test_pickled_tokenizers_are_the_same(name):
    tokenizer = make_tokenizer(name, 9)
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other.identity == tokenizer.identity
    np.testing.assert_array_equal(other(["a dog's café"]), tokenizer(["a dog's café"]))


def test_a_vocabulary_from_an_address_is_read_once(words):
    content = Path(words.removeprefix("bert:")).read_bytes()
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if self.path == "/vocab.txt" else 404)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"bert:http://127.0.0.1:{server.server_port}"
        tokenizer = make_tokenizer(f"{address}/vocab.txt", 8)
        with pytest.raises(FileNotFoundError, match="404"):
            make_tokenizer(f"{address}/other.txt", 8)
        server.shutdown()
    assert asked == ["/vocab.txt", "/other.txt"]
    # A worker process gets the content and does not ask again: the server is gone.
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other.identity == make_tokenizer(words, 8).identity
    np.testing.assert_array_equal(other(["a dog"]), make_tokenizer(words, 8)(["a dog"]))


def test_identity_tells_what_changes_the_ids(name):
    names = {make_tokenizer(name, n, clean=clean).identity for n in (8, 9) for clean in (0, 1)}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a DOGS!", ["a", "dog", "##s", "!"]),
        ("Café, unaffable", ["cafe", ",", "un", "##aff", "##able"]),
        ("cafe\u0301 résumé", ["cafe", "resume"]),
        ("猫が走る", ["猫", "[UNK]", "走", "[UNK]"]),
        ("dog\u200ds\x00 zebra", ["dog", "##s", "[UNK]"]),
        ("123 1 \t\n 12", ["12", "##3", "[UNK]", "12"]),
        ("x" * 101, ["[UNK]"]),
        ("a [MASK] dog", ["a", "[MASK]", "dog"]),
        ("", []),
    ],
)
def test_word_pieces(words, text, tokens):
    tokenizer = make_tokenizer(words, 16)
    expected = ["[CLS]", *tokens, "[SEP]", *["[PAD]"] * (14 - len(tokens))]
    ids = tokenizer([text])[0]
    assert [WORDS[i] for i in ids] == expected
    assert tokenizer.mask(ids).sum() == len(tokens) + 2


def test_long_captions_keep_their_end(words):
    tokenizer = make_tokenizer(words, 5)
    assert [WORDS[i] for i in tokenizer(["a dog a dog a dog"])[0]] == [
        "[CLS]",
        "a",
        "dog",
        "a",
        "[SEP]",
    ]
    assert tokenizer.decode(tokenizer(["dogs"])[0]) == "[CLS] dogs [SEP] [PAD]"


def test_a_tokenizer_json_is_read(words, tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.enable_truncation(3)
    made.enable_padding(length=3)
    made.save(str(tmp_path / "tokenizer.json"))
    texts = ["a dog's café", "猫が走る unaffable unaffable"]
    ours = make_tokenizer(f"bert:{tmp_path}/tokenizer.json", 12)(texts)
    np.testing.assert_array_equal(ours, make_tokenizer(words, 12)(texts))


def test_clean_caption():
    assert clean_caption("A man's <person>-dog/cat,  runs!\n") == "a mans person dog cat runs"
    assert clean_caption(" ..\t ") == ""
    assert replace_surrogates("a\ud83d\ude00\ud800b") == "a😀�b"


def damaged(data: bytes) -> bytes:
    """A gzip file whose code tables are wrong."""
    packed = bytearray(gzip.compress(data, mtime=0))
    packed[15] ^= 0xFF
    return bytes(packed)


def tokenizer_json(unk_token: str = "[UNK]", vocab: dict[str, int] | None = None) -> bytes:
    ids = {token: i for i, token in enumerate(WORDS)} | (vocab or {})
    model = {"type": "WordPiece", "unk_token": unk_token, "continuing_subword_prefix": "##"}
    return json.dumps({"model": {**model, "max_input_chars_per_word": 9, "vocab": ids}}).encode()


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("word2vec", None, ValueError, "'clip', 'clip:PATH', 'bert:PATH' and 'world'"),
        ("bert:", None, ValueError, "a path to the vocabulary is needed; .*bert-large-uncased"),
        ("bert:{}", None, FileNotFoundError, "cannot read the vocabulary .*vocab.txt"),
        ("clip:{}", None, FileNotFoundError, "bpe_simple_vocab_16e6.txt.gz"),
        ("clip:{}", b"#version\na b\nabc\n", ValueError, "line 3: 'abc' is not a pair"),
        ("clip:{}", b"#version\n", ValueError, "no merges in it"),
        ("clip:{}", b"\x1f\x8bnothing", ValueError, "damaged gzip file"),
        ("clip:{}", damaged(b"#version\n" + b"r i\n" * 1000), ValueError, "damaged gzip file"),
        ("bert:{}", damaged("\n".join(WORDS).encode() * 50), ValueError, "damaged gzip file"),
        ("bert:{}", gzip.compress(b"a\n" * 99, mtime=0)[:-9], ValueError, "damaged gzip file"),
        (
            "clip:{}",
            gzip.compress(bytes(LARGEST + 1), mtime=0),
            ValueError,
            "vocab: more than 64 MiB",
        ),
        (
            "bert:{}",
            gzip.compress(bytes(2**25), mtime=0) * 3,
            ValueError,
            "more than 64 MiB of text",
        ),
        ("clip:{}", b"#version\nr i\nzz qq\n", ValueError, "line 3: 'zz qq' joins 'zz', which is"),
        ("clip:{}", "#v\nr i\nr 走\n".encode(), ValueError, "joins '走', which is neither"),
        ("bert:{}", "\n".join([*WORDS, "a"]).encode(), ValueError, "19 tokens and the id 19"),
        ("bert:{}", tokenizer_json(unk_token="[NO]"), ValueError, "cannot be used"),
        (
            "bert:{}",
            tokenizer_json(vocab={"[UNK]": 10**6}),
            ValueError,
            "and the id 1000000",
        ),
        ("bert:{}", b"[" * 10**5, ValueError, "lacks"),
        ("bert:{}", b'{"a":' * 10**5, ValueError, "not a tokenizer.json"),
        ("bert:{}", b"\xff\xfe\x00", ValueError, "not a text file"),
        ("bert:{}", b"[PAD]\n[UNK]\n", ValueError, r"lacks \[CLS\], \[SEP\], \[MASK\]"),
        ("bert:{}", b'{"a": 1}', ValueError, "not a tokenizer.json"),
        ("bert:{}", json.dumps({"model": 3}).encode(), ValueError, "not a tokenizer.json"),
    ],
)
def test_bad_vocabularies(name, content, error, message, tmp_path):
    path = tmp_path / "vocab"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=message):
        make_tokenizer(name.format(path), 8)


def test_any_damage_of_a_vocabulary_is_our_error_or_none(merges, words, tmp_path):
    """Bytes changed, cut, moved and doubled; the same in a tokenizer.json and in gzip files."""
    plain = [Path(name.partition(":")[2]).read_bytes() for name in (merges, words)]
    seeds = [("clip", plain[0]), ("clip", gzip.decompress(plain[0])), ("bert", plain[1])]
    seeds += [("bert", gzip.compress(plain[1])), ("bert", tokenizer_json())]
    rng, refused = np.random.default_rng(0), 0
    for number in range(600):
        kind, data = seeds[number % len(seeds)]
        for _ in range(rng.integers(1, 4)):
            at, to = sorted(rng.integers(len(data) + 1, size=2))
            change = rng.integers(4)
            middle = data[at:to] * 2 if change == 0 else rng.bytes(2) if change == 1 else b""
            data = data[:at] + middle + data[at + change if change else to :]
        path = tmp_path / "vocab"
        path.write_bytes(data)
        try:
            tokenizer = make_tokenizer(f"{kind}:{path}", 8)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error), error
        else:
            ids = tokenizer(["a dog's café", "", "猫 \ud800"])
            assert ids.shape == (3, 8) and ids.min() >= 0 and ids.max() < tokenizer.vocab_size
    assert 100 < refused < 600


def test_a_file_without_an_end_is_no_vocabulary():
    with pytest.raises(ValueError, match="/dev/zero: more than 64 MiB"):
        make_tokenizer("clip:/dev/zero", 8)


def test_a_context_needs_room(merges, words):
    for name in (merges, words):
        with pytest.raises(ValueError, match="a context of 1 has no room"):
            make_tokenizer(name, 1)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ("ftfy", "needs ftfy: pip install 'internvideo-jax"),
        ("instant_clip_tokenizer", "elsewhere give 'clip:PATH'"),
        ("tokenizers", "needs the library tokenizers: pip install"),
    ],
)
def test_a_missing_library_is_named(hidden, message, merges, monkeypatch):
    from data_pipelines.text import clip

    clip._packaged.cache_clear()
    clip._from_merges.cache_clear()
    monkeypatch.setattr(clip, "_HOLDERS", ())
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(ImportError, match=message):
        make_tokenizer(merges if hidden == "tokenizers" else "clip", 8)


def test_merges_of_another_package_are_found_without_importing_it(tmp_path, monkeypatch):
    """Only those of CLIP: a file that was changed is no vocabulary."""
    from data_pipelines.text import clip

    package = tmp_path / "clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    file = "\n".join(["#version", *MERGES, ""]).encode()
    (package / clip.MERGES_FILE).write_bytes(gzip.compress(file))
    monkeypatch.setattr(clip, "_HOLDERS", ("clip",))
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    monkeypatch.delitem(sys.modules, "clip", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match="pip install --no-deps clip-anytorch"):
        make_tokenizer("clip", 8)
    digest = hashlib.sha256("\n".join(MERGES).encode()).hexdigest()
    monkeypatch.setattr(clip, "VOCABULARY_SHA256", digest)
    tokenizer = make_tokenizer("clip", 4)
    assert tokenizer([" Dog"]).tolist() == [[521, 513, 522, 0]]
    assert tokenizer.identity == f"clip/{digest[:12]}/4/plain" and "clip" not in sys.modules


def test_both_libraries_give_the_same_ids():
    from data_pipelines.text import clip

    pytest.importorskip("instant_clip_tokenizer", reason="no wheel for this platform")
    package = importlib.util.find_spec("clip")
    if package is None or not package.origin:
        pytest.skip("needs the merges file of clip-anytorch")
    path = Path(package.origin).with_name(clip.MERGES_FILE)
    rows = json.loads((ROOT / "tests/golden/video_language/clip_tokenizer/tokens.json").read_text())
    captions = [row["text"] for row in rows] + [f"a {c} {s}" for c in COLOURS for s in SHAPES]
    for clean in (False, True):
        packaged, merged = (make_tokenizer(n, 77, clean=clean) for n in ("clip", f"clip:{path}"))
        assert packaged.identity == merged.identity
        np.testing.assert_array_equal(packaged(captions), merged(captions))
        for caption in captions:
            ids = merged.encode(caption)  # type: ignore
            assert packaged.decode(ids) == merged.decode(ids)


def test_importing_the_package_loads_no_library():
    code = (
        "import sys, data_pipelines.text;"
        "print([m for m in ('ftfy', 'tokenizers', 'instant_clip_tokenizer') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_every_word_of_the_built_in_world_is_one_token():
    world = make_tokenizer("world", 16, clean=True)
    words = {word for action in ACTIONS for word in action.split()}
    words |= {word.removesuffix("s") for word in words} | {*COLOURS, *SHAPES, *COUNTS.values()}
    words |= {f"{shape}s" for shape in SHAPES if shape != "cross"} | {"crosses"}
    rows = world(sorted(words))
    assert (rows[:, 2] == world.vocab_size - 1).all() and (rows[:, 3:] == 0).all()
    assert len(set(rows[:, 1])) == len(words)
    other = world(["a zebra, unseen"])[0]  # in letters
    assert other.max() == world.vocab_size - 1 and (other > 0).sum() > 9
