"""Encoders and their store: parity with sentence-transformers, caching, damage, two processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backfire.errors import CheckpointError
from backfire.models.embed import Encoder, HashEncoder, SentenceEncoder, load_encoder
from backfire.models.vectors import VectorStore

WORDS = [
    "the", "a", "river", "stone", "bread", "music", "light", "garden", "winter", "paper", "letter",
    "clock", "small", "old", "quiet", "bright", "in", "and",
]  # fmt: skip
TEXTS = [
    "the river",
    "a small garden in winter, quiet and bright",
    "bread",
    "",
    "old paper letter clock " * 9,
    "music light music light music",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with a word-level vocabulary, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast
    from transformers import set_seed as seed_everything

    folder = tmp_path_factory.mktemp("bert")
    plain = folder / "plain"
    plain.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "##s", *WORDS]
    (plain / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(plain / "vocab.txt"), model_max_length=24).save_pretrained(plain)
    seed_everything(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(plain)
    model = SentenceTransformer(str(plain), device="cpu")
    model.max_seq_length = 24
    model.save(str(folder / "tiny-bert"), create_model_card=False)
    return folder / "tiny-bert"


class Counting:
    """Counts the texts that reach the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sentence_transformers import SentenceTransformer

        self.texts: list[str] = []
        encode = SentenceTransformer.encode

        def counted(model: Any, texts: list[str], **options: Any) -> Any:
            self.texts += texts
            return encode(model, texts, **options)

        monkeypatch.setattr(SentenceTransformer, "encode", counted)


def test_vectors_are_those_of_sentence_transformers_and_of_mean_pooling(
    bert: Path, tmp_path: Path
) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    ours = SentenceEncoder(bert, tmp_path, device="cpu", token_budget=40)(TEXTS)
    stock = SentenceTransformer(str(bert), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert ours.dtype == np.float32
    assert ours.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(ours, stock, atol=1e-5)
    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    for text, vector in zip(TEXTS, ours, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**inputs).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_order_and_repeats_are_kept_for_every_batch_size(bert: Path, tmp_path: Path) -> None:
    texts = [TEXTS[i] for i in (4, 0, 4, 2, 5, 1, 0)]
    one = SentenceEncoder(bert, tmp_path / "one", token_budget=1)(texts)
    all_at_once = SentenceEncoder(bert, tmp_path / "all", token_budget=10_000)(texts)
    np.testing.assert_allclose(one, all_at_once, atol=1e-6)
    np.testing.assert_array_equal(one[0], one[2])
    assert not np.allclose(one[0], one[1], atol=1e-3)


def test_a_known_text_is_never_embedded_again(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Counting(monkeypatch)
    encoder = SentenceEncoder(bert, tmp_path)
    first = encoder(TEXTS[:3])
    assert sorted(count.texts) == sorted(TEXTS[:3])
    encoder([*TEXTS[:3], "a stone", "a stone"])
    assert count.texts[3:] == ["a stone"]
    again = SentenceEncoder(bert, tmp_path)
    np.testing.assert_array_equal(again(TEXTS[:3]), first)
    assert len(count.texts) == 4
    assert again._model is None, "a run that knows every vector must not load the model"


def test_another_model_has_another_name_and_its_own_vectors(bert: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / bert.name
    shutil.copytree(bert, other)
    config = (other / "config.json").read_text(encoding="utf-8")
    (other / "config.json").write_text(config.replace("gelu", "relu"), encoding="utf-8")
    a, b = SentenceEncoder(bert, tmp_path / "c"), SentenceEncoder(other, tmp_path / "c")
    assert a.name != b.name
    assert not np.allclose(a(TEXTS[:1]), b(TEXTS[:1]), atol=1e-4)


def test_an_interruption_keeps_what_was_computed(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    encode, calls = SentenceTransformer.encode, []

    def interrupted(model: Any, texts: list[str], **options: Any) -> Any:
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(model, texts, **options)

    monkeypatch.setattr(SentenceTransformer, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SentenceEncoder(bert, tmp_path, token_budget=1)(TEXTS)
    SentenceEncoder(bert, tmp_path, token_budget=1)(TEXTS)
    done = [text for call in calls[:2] for text in call]
    assert not set(done) & {text for call in calls[3:] for text in call}


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        SentenceEncoder(tmp_path, tmp_path / "cache")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="loading the sentence encoder"):
        SentenceEncoder(tmp_path, tmp_path / "cache")(["text"])


def test_no_texts_give_no_rows(bert: Path, tmp_path: Path) -> None:
    assert SentenceEncoder(bert, tmp_path)([]).shape == (0, 16)
    assert HashEncoder()([]).shape == (0, 384)


# ------------------------------------------------------------------------------------------ hash encoder


def test_hash_vectors_count_long_words() -> None:
    encoder = load_encoder("hash")
    assert isinstance(encoder, Encoder)
    a, b, c, d = encoder(["bread butter", "Butter, the BREAD!", "bread stone", "a an of"])
    assert encoder.name == "hash"
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert a @ c == pytest.approx(0.5, abs=1e-6)  # one word of two shared: (1*1 + 0 + 0) / (√2 √2)
    assert np.linalg.norm(d) == pytest.approx(1)


def test_hash_vectors_import_no_torch() -> None:
    code = (
        "import sys; from backfire.models.embed import load_encoder; load_encoder('hash')(['bread']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------------------------------------- store


def vectors_of(texts: list[str], dim: int = 5) -> np.ndarray:
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
    return np.stack([np.random.default_rng(seed).normal(size=dim) for seed in seeds]).astype(
        np.float32
    )


def put(path: Path, texts: list[str], dim: int = 5) -> None:
    VectorStore(path).put(VectorStore.digests(texts), vectors_of(texts, dim))


def found(path: Path, texts: list[str], dim: int = 5) -> list[bool]:
    """Which texts are there; what is there must be right."""
    digests = VectorStore.digests(texts)
    got = VectorStore(path).get(digests)
    for digest, vector in zip(digests, vectors_of(texts, dim), strict=True):
        if digest in got:
            np.testing.assert_array_equal(got[digest], vector)
    return [digest in got for digest in digests]


def test_store_returns_what_was_put(tmp_path: Path) -> None:
    path = tmp_path / "v.vectors"
    assert found(path, ["a"]) == [False]
    put(path, ["a", "b"])
    put(path, ["c"])
    assert found(path, ["a", "b", "c", "d"]) == [True, True, True, False]


def test_an_open_store_sees_what_others_append(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "v.vectors")
    (a, b) = store.digests(["a", "b"])
    put(store.path, ["a"])
    assert set(store.get([a, b])) == {a}
    put(store.path, ["b"])
    assert set(store.get([a, b])) == {a, b}


@pytest.mark.parametrize("cut", [1, 4, 30, 55])
def test_a_crash_in_the_middle_of_a_write_costs_one_record(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "v.vectors"  # a record has 32 + 5 * 4 + 4 = 56 bytes
    put(path, ["a", "b"])
    path.write_bytes(path.read_bytes()[:-cut])
    assert found(path, ["a", "b"]) == [True, False]
    put(path, ["c"])
    assert found(path, ["a", "b", "c"]) == [True, False, True]
    assert (path.stat().st_size - 20) % 56 == 0


def test_a_flipped_bit_costs_one_record_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "v.vectors"
    put(path, ["a", "b", "c"])
    data = bytearray(path.read_bytes())
    data[20 + 56 + 40] ^= 1  # inside b's vector
    path.write_bytes(data)
    assert found(path, ["a", "b", "c"]) == [True, False, True]
    put(path, ["b"])
    assert found(path, ["a", "b", "c"]) == [True, True, True]


@pytest.mark.parametrize(
    "rubbish", [b"", b"x", b"not a store at all, but long enough to hold a header"]
)
def test_a_file_of_another_form_is_replaced(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "v.vectors"
    path.write_bytes(rubbish)
    assert found(path, ["a"]) == [False]
    put(path, ["a"])
    assert found(path, ["a"]) == [True]


def test_another_dimension_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "v.vectors"
    put(path, ["a"], dim=3)
    put(path, ["b"], dim=5)
    assert found(path, ["a", "b"]) == [False, True]


def write_many(path: Path, name: str) -> None:
    for i in range(40):
        put(path, [f"{name} {i}", f"both {i}"])


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "v.vectors"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(path, name)) for name in ("left", "right")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    texts = [f"{name} {i}" for name in ("left", "right", "both") for i in range(40)]
    assert all(found(path, texts))
    assert path.stat().st_size == 20 + 56 * 160
