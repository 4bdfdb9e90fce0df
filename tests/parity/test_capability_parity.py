"""Ours against lm-evaluation-harness's own model class and tasks, item by item."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backfire.assets import cache_dir
from backfire.data.chat import Chat, ChatFormat
from backfire.evaluate.capability import _ask
from backfire.evaluate.tasks import TaskSet, _task, questions
from backfire.models.tiny import ARCHITECTURES, byte_tokenizer, tiny_model
from backfire.progress import Silent

pytest.importorskip("lm_eval")

OPENBOOK = [
    (
        "Rain falls from",
        ["clouds", "cloud", "clouds in the sky", "the sea"],
    ),  # prefixes of each other
    ("Ice is", ["x", "y", "x", "z"]),  # ties: two options are the same
    ("", ["warm", "warmer", "w", "a much longer option with many words"]),  # an empty context
    ("Größe heißt auf 中文", ["大小", "naïve café", "☃", "größer"]),  # not ASCII
    ("A stem that ends in a space ", ["one", "two words", "three", "four"]),
    ("Snow is", ["1", "2", "3", "4"]),  # one token each
]
"""Made-up questions in the form of OpenBookQA."""

SUBJECTS = ("anatomy", "us_foreign_policy")

REAL_SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "college_biology", "econometrics",
    "global_facts", "high_school_physics", "philosophy", "world_religions",
)  # fmt: skip

CACHE = cache_dir()
"""The machine's own cache, named before the tests get one of their own."""


def _write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    openbook = [
        {
            "question_stem": stem,
            "choices": {"text": options, "label": list("ABCD")},
            "answerKey": "ABCD"[number % 4],
        }
        for number, (stem, options) in enumerate(OPENBOOK)
    ]
    _write(root / "openbookqa", "validation", openbook)
    mmlu = [
        {
            "subject": subject,
            "question": f" {word} question {number}, which is it? ",
            "choices": [f"{word} {i * number}" for i in range(4)],
            "answer": (number * 3 + len(subject)) % 4,
        }
        for subject in SUBJECTS
        for number, word in enumerate(["Long " * 9, "Short", "Ünïcode", "Plain", "Last", "Odd"])
    ]
    _write(root / "mmlu", "test", mmlu)
    _write(root / "mmlu", "dev", mmlu[:5] + mmlu[6:11])
    return root


def _theirs(model: Any, name: str, folder: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Return the harness's own samples by item id: its HFLM, its evaluator, our task files."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from backfire.evaluate.tasks import _resolve

    config, subjects = _resolve(name)
    split = "test" if (folder / "test.parquet").is_file() else "validation"
    shots = options.pop("num_fewshot", 0)
    limit = options.pop("limit", None)
    found = {}
    for subject in subjects or [""]:
        task = _task({**config, "num_fewshot": shots}, subject, folder, split, shots)
        lm = HFLM(pretrained=model[0], tokenizer=model[1], batch_size=8, device="cpu")
        results = lm_eval.evaluate(
            lm=lm,
            task_dict={"tasks": {task.config.task: task}, "groups": {}},
            bootstrap_iters=0,
            limit=limit,
            **options,
        )
        for sample in results["samples"][task.config.task]:
            found[f"{subject}/{split}/{sample['doc_id']}".lstrip("/")] = sample
    return found


def _same(tables: Any, theirs: dict[str, dict[str, Any]], tolerance: float = 1e-4) -> int:
    """Check every item: the choice, both scores and each option's log-likelihood."""
    for answer in tables["answers"]:
        sample = theirs[answer.item]
        expected = np.array([response[0] for response in sample["filtered_resps"]])
        assert np.abs(np.array(answer.logprobs) - expected).max() < tolerance, answer.item
        assert answer.choice == int(np.argmax(expected)), answer.item
        assert float(answer.choice == answer.gold) == sample["acc"], answer.item
        if "acc_norm" in sample:
            assert float(answer.choice_norm == answer.gold) == sample["acc_norm"], answer.item
    assert len(tables["answers"]) == len(theirs)
    return len(theirs)


def _ours(model: Any, one: TaskSet, chat: Chat | None = None, **options: Any) -> Any:
    from backfire.evaluate.harness import SharedPrefixLM

    lm = SharedPrefixLM(*model, progress=Silent(), **options)
    return _ask(lm, [one], chat), lm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_chooses_as_the_harness_does(architecture: str, folder: Path) -> None:
    model = (tiny_model(architecture), byte_tokenizer())
    one = questions("openbookqa", folder / "openbookqa")
    tables, lm = _ours(model, one)
    assert lm.scorer.shared
    assert _same(tables, _theirs(model, "openbookqa", folder / "openbookqa")) == len(OPENBOOK)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_mmlu_form_with_and_without_examples(
    architecture: str, num_fewshot: int, folder: Path
) -> None:
    model = (tiny_model(architecture), byte_tokenizer())
    for subject in SUBJECTS:
        name = f"mmlu_{subject}"
        one = questions(name, folder / "mmlu", num_fewshot=num_fewshot)
        # Few tokens a pass, so that the examples become a trunk with several rows on it.
        tables, lm = _ours(model, one, pass_tokens=64)
        assert lm.scorer.shared
        theirs = _theirs(model, name, folder / "mmlu", num_fewshot=num_fewshot)
        assert _same(tables, theirs) == 6


def test_contexts_longer_than_the_model_lose_their_beginning(folder: Path) -> None:
    model = tiny_model("llama")
    model.config.max_position_embeddings = 90
    one = questions("mmlu_anatomy", folder / "mmlu", num_fewshot=5)
    tables, _ = _ours((model, byte_tokenizer()), one)
    theirs = _theirs((model, byte_tokenizer()), "mmlu_anatomy", folder / "mmlu", num_fewshot=5)
    assert _same(tables, theirs) == 6


def test_chat_format_as_the_harness_applies_it(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    model = (tiny_model("llama"), tokenizer)
    one = questions("mmlu_anatomy", folder / "mmlu", num_fewshot=2)
    tables, _ = _ours(model, one, Chat(tokenizer, ChatFormat()))
    theirs = _theirs(
        model,
        "mmlu_anatomy",
        folder / "mmlu",
        num_fewshot=2,
        apply_chat_template=True,
        fewshot_as_multiturn=False,
    )
    assert _same(tables, theirs) == 6


class Notes(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def _line(self, text: str) -> None:
        self.lines.append(text)


def test_sequences_longer_than_a_sliding_window_are_scored_in_full_and_said(folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = tiny_model("mistral").config.to_dict() | {"sliding_window": 24}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **_plain(config)))
    model = (model.eval(), byte_tokenizer())
    from backfire.evaluate.harness import SharedPrefixLM

    notes = Notes()
    lm = SharedPrefixLM(*model, progress=notes, label="openbookqa")
    one = questions("openbookqa", folder / "openbookqa")
    tables = _ask(lm, [one], None)
    assert _same(tables, _theirs(model, "openbookqa", folder / "openbookqa")) == len(OPENBOOK)
    (line,) = notes.lines
    assert re.search(r"of 24 options are longer than this model's attention window of 24", line)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in {"model_type", "architectures"}}


def test_a_state_space_model_falls_back_and_says_so(folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from backfire.evaluate.harness import SharedPrefixLM

    config = AutoConfig.for_model(
        "mamba", vocab_size=261, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0
    )
    model = (AutoModelForCausalLM.from_config(config).eval(), byte_tokenizer())
    notes = Notes()
    lm = SharedPrefixLM(*model, progress=notes)
    one = questions("openbookqa", folder / "openbookqa")
    tables = _ask(lm, [one], None)
    assert lm.scorer.shared is False
    assert "cannot share" in notes.lines[0]
    assert tables["tasks"][0].shared is False
    assert _same(tables, _theirs(model, "openbookqa", folder / "openbookqa")) == len(OPENBOOK)


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    from backfire.models.load import load

    folder = CACHE / "assets" / "smollm2-135m-instruct"
    sets = [CACHE / "assets" / name for name in ("openbookqa", "mmlu")]
    if not all((path / "asset.json").is_file() for path in (folder, *sets)):
        pytest.skip("SmolLM2, OpenBookQA or MMLU is not in the cache: `backfire fetch` gets them")
    loaded = load(folder, device="cpu")
    return loaded.model, loaded.tokenizer


@pytest.mark.assets
@pytest.mark.timeout(900)
def test_a_real_model_and_tokenizer_on_openbookqa(smollm2: tuple[Any, Any]) -> None:
    folder = CACHE / "assets" / "openbookqa"
    tables, lm = _ours(smollm2, questions("openbookqa", folder, limit=40))
    assert lm.scorer.shared
    assert _same(tables, _theirs(smollm2, "openbookqa", folder, limit=40)) == 40


@pytest.mark.assets
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("num_fewshot", "subjects", "limit"), [(0, 10, 3), (5, 2, 2)])
def test_a_real_model_and_tokenizer_on_mmlu(
    smollm2: tuple[Any, Any], num_fewshot: int, subjects: int, limit: int
) -> None:
    folder = CACHE / "assets" / "mmlu"
    for subject in REAL_SUBJECTS[:subjects]:
        name, options = f"mmlu_{subject}", {"num_fewshot": num_fewshot, "limit": limit}
        tables, _ = _ours(smollm2, questions(name, folder, **options))
        assert _same(tables, _theirs(smollm2, name, folder, **options)) == limit
