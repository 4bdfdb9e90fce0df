"""Capability: what is asked, how a choice is read, and what goes wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from backfire.errors import ConfigError, DataError, DivergedError, PrerequisiteError
from backfire.evaluate.capability import Capability, _ask
from backfire.evaluate.tasks import Question, TaskSet, questions
from backfire.models.tiny import byte_tokenizer, save_tiny, tiny_model
from backfire.records import Checkpoint
from backfire.stage import Bench, Evaluation

pytest.importorskip("lm_eval")


def _write(folder: Path, split: str, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def _piqa(count: int) -> list[dict[str, Any]]:
    return [
        {"goal": f"goal {i}", "sol1": f"first {i}", "sol2": "second", "label": i % 2}
        for i in range(count)
    ]


def _set(*options: tuple[str, ...]) -> TaskSet:
    asked = tuple(Question(str(i), "", "Q:", choices, 0) for i, choices in enumerate(options))
    return TaskSet("made_up", "1", "test", len(asked), 0, " ", asked)


def _lm(model: Any) -> Any:
    from backfire.evaluate.harness import SharedPrefixLM

    return SharedPrefixLM(model, byte_tokenizer())


def test_a_uniform_model_picks_the_fewest_tokens_and_the_fewest_tokens_a_character() -> None:
    """With V equal probabilities an option of n tokens scores -n log V.

    The byte tokenizer gives a token a byte and one for the space in front: `abc` 4, `é` 3 (two bytes),
    `ab` 3, `☃☃☃` 10. acc: the first of the smallest, `é`. acc_norm divides by characters:
    4/3, 3/1, 3/2, 10/3: `abc`.
    """
    import torch

    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    (answer,) = _ask(_lm(model), [_set(("abc", "é", "ab", "☃☃☃"))], None)["answers"]
    assert answer.choice == 1
    assert answer.choice_norm == 0
    one = torch.tensor(261.0).log().item()
    assert answer.logprobs == pytest.approx([-4 * one, -3 * one, -3 * one, -10 * one])


def test_an_empty_option_is_never_chosen_per_character() -> None:
    (answer,) = _ask(_lm(tiny_model("llama")), [_set(("", "abc"))], None)["answers"]
    assert answer.choice_norm == 1


def test_nan_is_an_error_not_an_answer() -> None:
    import torch

    model = tiny_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = torch.nan
    with pytest.raises(DivergedError, match="gives NaN"):
        _ask(_lm(model), [_set(("a", "b"))], None)


def test_an_option_that_vanishes_in_tokenisation_is_an_error() -> None:
    one = dataclasses.replace(_set(("a", "")), delimiter="")
    with pytest.raises(DataError, match="has no token of its own"):
        _ask(_lm(tiny_model("llama")), [one], None)


def test_the_first_questions_are_asked_and_the_split_is_in_their_names(tmp_path: Path) -> None:
    folder = _write(tmp_path, "validation", _piqa(5))
    one = questions("piqa", folder, limit=3)
    assert [q.item for q in one.questions] == ["validation/0", "validation/1", "validation/2"]
    assert [q.gold for q in one.questions] == [0, 1, 0]
    assert (one.split, one.num_available) == ("validation", 5)


def test_the_test_split_is_used_where_it_is_there(tmp_path: Path) -> None:
    rows = [
        {
            "question_stem": "s",
            "choices": {"text": ["a", "b"], "label": ["A", "B"]},
            "answerKey": "B",
        }
    ]
    folder = _write(tmp_path, "validation", rows)
    _write(folder, "test", rows)
    assert questions("openbookqa", folder).questions[0].item == "test/0"


def test_mmlu_is_all_its_subjects_under_one_name(tmp_path: Path) -> None:
    from backfire.evaluate.tasks import _config

    subjects = _config("mmlu")["metadata"]["subjects"]
    rows = [
        {"subject": s, "question": f"q{i}", "choices": list("wxyz"), "answer": i}
        for s in subjects
        for i in range(2)
    ]
    one = questions("mmlu", _write(tmp_path, "test", rows), limit=1)
    assert len(subjects) == len(one.questions) == 57
    assert one.questions[0].item == "abstract_algebra/test/0"
    assert one.questions[0].description.endswith("about abstract algebra.\n\n")
    assert one.num_available == 114


def test_examples_from_a_split_that_is_not_there_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path, "validation", _piqa(5))
    with pytest.raises(DataError, match=r"few-shot examples come from the split 'train'"):
        questions("piqa", folder, num_fewshot=2)


def test_an_answer_outside_the_options_is_an_error(tmp_path: Path) -> None:
    folder = _write(tmp_path, "validation", [_piqa(1)[0], {**_piqa(1)[0], "label": 7}])
    with pytest.raises(DataError, match="its answer is 7"):
        questions("piqa", folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not parquet", "fetch the asset again"), (None, "has neither")],
)
def test_a_missing_or_damaged_file_names_the_remedy(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "validation.parquet").write_bytes(content)
    with pytest.raises(DataError, match=message):
        questions("piqa", tmp_path)


def test_rows_of_another_form_are_named(tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", "validation", [{"goal": "g", "sol1": "a", "label": 0}])
    with pytest.raises(DataError, match="lacks the columns sol2"):
        questions("piqa", folder)
    folder = _write(tmp_path / "b", "validation", [{**_piqa(1)[0], "label": 7}])
    with pytest.raises(DataError, match="not of the set's form"):
        questions("piqa", folder)


def test_without_the_harness_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    member = Capability(tasks=("piqa",))
    with pytest.raises(PrerequisiteError, match=r"pip install 'backfire\[eval\]'"):
        member(Checkpoint(tmp_path, "k"), Bench(tmp_path))


def test_unknown_tasks_get_the_near_miss() -> None:
    with pytest.raises(ValidationError, match="did you mean 'openbookqa'"):
        Capability(tasks=("openbokqa",))
    with pytest.raises(ValidationError, match="named twice"):
        Capability(tasks=("piqa", "piqa"))
    with pytest.raises(ValidationError, match="did you mean 'piqa'"):
        Capability(tasks=("piqa",), limit={"pika": 3})
    with pytest.raises(ValidationError, match="greater than 0"):
        Capability(limit=0)
    assert Capability(tasks=("mmlu_anatomy", "mmlu")).tasks == ("mmlu_anatomy", "mmlu")


def test_the_member_asks_a_checkpoint_and_says_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "piqa", "validation", _piqa(6))
    monkeypatch.setattr("backfire.assets.fetch", lambda name, progress: tmp_path / name)
    member = Capability(tasks=("piqa",), limit={"piqa": 4})
    assert isinstance(member, Evaluation)
    checkpoint = Checkpoint(save_tiny(tmp_path / "model"), "k")
    tables = member(checkpoint, Bench(tmp_path, device="cpu"))
    assert folder.is_dir()
    assert [a.item for a in tables["answers"]] == [f"validation/{i}" for i in range(4)]
    assert {a.num_options for a in tables["answers"]} == {2}
    (facts,) = tables["tasks"]
    assert (facts.task, facts.split, facts.num_questions, facts.num_available) == (
        "piqa", "validation", 4, 6,
    )  # fmt: skip
    assert facts.shared
    assert not facts.adds_bos
    assert tables["answers"] == member(checkpoint, Bench(tmp_path, device="cpu"))["answers"]


def test_generation_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="only multiple-choice"):
        _lm(tiny_model("llama")).generate_until([])


def test_checkpoints_of_one_tokenizer_share_the_tokenisation() -> None:
    from backfire.evaluate.harness import Tokenization, encode_pairs

    pairs = (("a question", " an answer"),)
    first = encode_pairs(Tokenization.of(byte_tokenizer()), pairs)
    assert encode_pairs(Tokenization.of(byte_tokenizer()), pairs) is first
    other = byte_tokenizer()
    other.bos_token = "<pad>"
    assert encode_pairs(Tokenization.of(other), pairs) is not first


def test_settings_import_without_torch_and_the_harness() -> None:
    code = (
        "import sys, backfire.evaluate.capability; "
        "print([m for m in ('torch', 'lm_eval', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
