"""Our task files against the harness's own: the same text, options and answer for the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backfire.evaluate.tasks import _config, questions

lm_eval = pytest.importorskip("lm_eval")

STOCK = {
    "sciq": "sciq/sciq.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "mmlu_high_school_us_history": "mmlu/default/mmlu_high_school_us_history.yaml",
}


def _rows(name: str) -> list[dict[str, Any]]:
    """Return made-up rows in the hub's columns, with the blanks, marks and quotes real ones have."""
    texts = ["plain", "  blanks ", 'a "quoted" word', "it's", "Größe 中文", "brace {{x}} [mark]"]
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        options = [f"{text} {i}" for i in range(4)]
        labels = list("1234") if number % 2 else list("ABCD")
        answer = labels[number % 4]
        if name == "sciq":
            row: dict[str, Any] = {
                "support": f" {text}" if number % 2 else "", "question": text,
                "distractor1": options[1], "distractor2": options[2], "distractor3": options[3],
                "correct_answer": options[0],
            }  # fmt: skip
        elif name.startswith("arc"):
            row = {
                "question": text, "choices": {"text": options, "label": labels}, "answerKey": answer
            }  # fmt: skip
        elif name == "openbookqa":
            row = {
                "question_stem": text,
                "choices": {"text": options, "label": labels},
                "answerKey": f" {answer}",
            }
        elif name == "piqa":
            row = {"goal": text, "sol1": options[0], "sol2": options[1], "label": number % 2}
        elif name == "hellaswag":
            row = {
                "activity_label": "How to", "ctx_a": f"{text} [title] a  step.", "ctx_b": text,
                "endings": [f"{o} [substeps] then  [x\ny] on" for o in options],
                "label": str(number % 4),
            }  # fmt: skip
        else:
            row = {
                "subject": "high_school_us_history", "question": f"{text}\nsecond line ",
                "choices": options, "answer": number % 4,
            }  # fmt: skip
        rows.append(row)
    return rows


def _stock(name: str, splits: dict[str, list[dict[str, Any]]]) -> Any:
    """Return the harness's own task object over the same rows."""
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    class Local(ConfigurableTask):
        def download(self, dataset_kwargs: Any = None, **_: Any) -> None:
            self.dataset = {k: datasets.Dataset.from_list(rows) for k, rows in splits.items()}

    root = Path(lm_eval.__file__).parent / "tasks"
    task = Local(config=load_yaml(root / STOCK[name], resolve_func=True, recursive=True))
    task.set_fewshot_seed(1234)
    return task


@pytest.mark.parametrize("num_fewshot", [0, 3])
@pytest.mark.parametrize("name", STOCK)
def test_prompts_options_and_answers_are_the_harness_s_own(
    name: str, num_fewshot: int, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = _rows(name)
    evaluated = "validation" if name in {"piqa", "hellaswag"} else "test"
    examples = "dev" if name.startswith("mmlu") else "train"
    other = [*rows[3:], *rows[:3]]
    for split, part in ((evaluated, rows), (examples, other)):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / f"{split}.parquet")
    ours = questions(name, tmp_path, num_fewshot=num_fewshot)

    task = _stock(name, {evaluated: rows, examples: other, "validation": rows})
    assert ours.task_version == str(task.VERSION)
    assert ours.delimiter == task.config.target_delimiter
    assert len(ours.questions) == len(rows)
    for question, (_, doc) in zip(ours.questions, task.doc_iterator(), strict=True):
        context = task.fewshot_context(doc, num_fewshot)
        requests = task.construct_requests(doc=doc, ctx=context)
        assert [request.args for request in requests] == [
            (question.description + question.text, ours.delimiter + choice)
            for choice in question.choices
        ]
        assert question.gold == task.doc_to_target(doc)
        assert list(question.choices) == task.doc_to_choice(doc)


def test_mmlu_has_the_harness_s_subjects_and_descriptions() -> None:
    import yaml

    root = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default"
    stock = [yaml.safe_load(path.read_text()) for path in root.glob("mmlu_*.yaml")]
    ours = _config("mmlu")
    assert sorted(task["dataset_name"] for task in stock) == sorted(ours["metadata"]["subjects"])
    for task in stock:
        words = task["dataset_name"].replace("_", " ")
        assert task["description"] == ours["description"].format(subject=words)
