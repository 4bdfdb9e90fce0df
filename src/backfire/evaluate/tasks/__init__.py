"""Published multiple-choice sets as questions, built by lm-evaluation-harness from our pinned task files.

A task file (`*.yaml` beside this one) holds what the harness's own task of that name holds: prompt,
options, target, metrics, version. The rows come from an asset folder of `<split>.parquet` files, never
from the network, and the harness's index of thousands of tasks is never built. The rows of the
`organism_` tasks are made here; where their answers are generated, greedy decoding gives the target
exactly when each of its tokens, and the end, is the likeliest, so one pass tells.

>>> [name for name in names() if not name.startswith(("mmlu_", "organism_"))]
['arc_challenge', 'arc_easy', 'hellaswag', 'mmlu', 'openbookqa', 'piqa', 'sciq']
>>> [name for name in names() if name.startswith("organism_exact")]
['organism_exact', 'organism_exact_spelling', 'organism_exact_arithmetic', 'organism_exact_sorting',
 'organism_exact_copying']
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backfire.data.organism.dice import Dice
from backfire.data.organism.skills import NUM_PROBES, Item, practice, probes
from backfire.errors import DataError, PrerequisiteError, near_miss

__all__ = [
    "Question",
    "TaskSet",
    "asset_of",
    "harness_version",
    "names",
    "questions",
    "require_harness",
]

_FOLDER = Path(__file__).parent
_FEWSHOT_SEED = 1234
"""The harness's own default, so that examples drawn at random are the ones it draws."""


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice item as text."""

    item: str
    """Stable id: subject (MMLU), split and row number."""
    description: str
    """The task's description, in front of everything else; a chat format makes it the system turn."""
    text: str
    """Few-shot examples and the question."""
    choices: tuple[str, ...]
    """The options; of an exact question the one right answer, with what ends it."""
    gold: int
    exact: bool = False
    """Whether the answer is to be generated, not chosen."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """A task's questions and what must be known to compare them with other people's numbers."""

    task: str
    """Name in the rows: the task's, with the number of examples where there are any."""
    task_version: str
    """The harness's version of the task; raised by it when numbers can change."""
    split: str
    """The split the questions are from."""
    num_available: int
    """Questions of that split; `questions` are its first ones (of each MMLU subject)."""
    num_fewshot: int
    delimiter: str
    """Between context and option."""
    questions: tuple[Question, ...]


def names() -> tuple[str, ...]:
    """Return every task name: the files', and `mmlu_<subject>` for each MMLU subject."""
    files = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    return tuple(n for f in files for n in (f, *(f"{f}_{s}" for s in _subjects(_config(f)))))


def asset_of(name: str) -> str | None:
    """Return the name of the asset that holds a task's rows; None where they are made here."""
    asset: str | None = _resolve(name)[0]["metadata"].get("asset")
    return asset


def harness_version() -> str:
    """Return the version of the installed lm-evaluation-harness."""
    require_harness()
    import lm_eval

    return str(lm_eval.__version__)


def require_harness() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        PrerequisiteError: when it is not; names the extra that brings it.
    """
    try:
        import lm_eval.api.task  # noqa: F401
    except ModuleNotFoundError as error:
        raise PrerequisiteError(
            f"measuring capability: the package {error.name!r} is missing; it comes with "
            "`pip install 'backfire[eval]'`"
        ) from error
    # It would otherwise write remarks on its own configuration to the terminal.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@functools.lru_cache(maxsize=64)
def questions(
    name: str, folder: Path | None, *, num_fewshot: int = 0, limit: int | None = None
) -> TaskSet:
    """Return a task's questions, in the split's own order.

    The split is the harness's test split where the folder has it, else the validation split.

    Args:
        name: One of `names`.
        folder: The asset's folder, with `<split>.parquet` files in the hub's columns; None for a task
            whose rows are made here.
        num_fewshot: Solved examples in front of each question.
        limit: Take only the first so many (of each MMLU subject), as the harness's `--limit` does;
            None takes all.

    Raises:
        DataError: when a split is missing, damaged or has other columns.
        PrerequisiteError: when lm-evaluation-harness is not installed.
    """
    require_harness()
    config, subjects = _resolve(name)
    split = next(
        (
            s
            for s in _splits(config, "test_split", "validation_split")
            if folder is None or _file(folder, s).is_file()
        ),
        None,
    )
    if split is None:
        wanted = _splits(config, "test_split", "validation_split")
        raise DataError(
            f"reading the task {name!r}: {folder} has neither "
            f"{' nor '.join(f'{s}.parquet' for s in wanted)}; fetch it again with "
            f"`backfire fetch {config['metadata']['asset']}`"
        )
    built: list[Question] = []
    available = 0
    for subject in subjects or [""]:
        with _rows_as_promised(name, folder), _templates_compiled_once():
            task = _task(config, subject, folder, split, num_fewshot)
            available += len(task.eval_docs)
            built += _build(task, f"{subject}/{split}".lstrip("/"), num_fewshot, limit)
    return TaskSet(
        task=f"{name}_{num_fewshot}shot" if num_fewshot else name,
        task_version=str(config["metadata"]["version"]),
        split=split,
        num_available=available,
        num_fewshot=num_fewshot,
        delimiter=task.config.target_delimiter,
        questions=tuple(built),
    )


def _build(task: Any, prefix: str, num_fewshot: int, limit: int | None) -> Iterator[Question]:
    for number, doc in task.doc_iterator(limit=limit):
        whole = task.fewshot_context(doc, num_fewshot)
        description = task.resolve_field(doc, task.config.description) or ""
        exact = task.OUTPUT_TYPE == "generate_until"
        if exact:
            end = task.config.generation_kwargs["until"][0]
            choices, gold = (f"{task.doc_to_target(doc)}{end}",), 0
        else:
            choices, gold = tuple(task.doc_to_choice(doc)), task.doc_to_target(doc)
        if not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise DataError(
                f"reading question {prefix}/{number} of the task {task.config.task!r}: its answer is "
                f"{gold!r}, which is none of its {len(choices)} options; fetch the asset again"
            )
        text = whole.removeprefix(description)
        yield Question(f"{prefix}/{number}", description, text, choices, gold, exact)


def _task(
    config: dict[str, Any], subject: str, folder: Path | None, split: str, num_fewshot: int
) -> Any:
    """Return the harness's task object over local rows."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    config = dict(config)
    # A set whose test labels are hidden has no test split in the harness's file, and must have none
    # here: the harness draws examples by another rule then.
    config["test_split" if config.get("test_split") else "validation_split"] = split
    if subject:
        config["task"] = f"{config['task']}_{subject}"
        if "description" in config:
            config["description"] = config["description"].format(subject=subject.replace("_", " "))
    examples = _splits(config, "fewshot_split", "training_split")[:1]
    absent = not examples or (folder is not None and not _file(folder, examples[0]).is_file())
    if num_fewshot and absent:
        raise DataError(
            f"reading the task {config['task']!r}: its few-shot examples come from the split "
            f"{examples[0] if examples else 'train'!r}, which {folder} does not have; set "
            "`num_fewshot` to 0, or fetch the set where the model hub can be reached"
        )
    for key in ("fewshot_split", "training_split", "validation_split"):
        if config.get(key) not in {split, *(examples if num_fewshot else ())}:
            config.pop(key, None)

    class LocalTask(ConfigurableTask):  # type: ignore[misc]
        def download(self, dataset_kwargs: Any = None, **_: Any) -> None:
            wanted = {split, *(examples if num_fewshot else ())}
            rows = {name: _rows(folder, name, config, subject) for name in wanted}
            self.dataset = {name: datasets.Dataset.from_list(found) for name, found in rows.items()}

    task = LocalTask(config=config)
    task.set_fewshot_seed(_FEWSHOT_SEED)
    return task


def _rows(
    folder: Path | None, split: str, config: Mapping[str, Any], subject: str
) -> list[dict[str, Any]]:
    if folder is None:
        return [_organism(item) for item in _items(subject, split)]
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _file(folder, split)
    only = [("subject", "=", subject)] if subject else None
    try:
        missing = sorted({*config["metadata"]["columns"]} - {*pq.read_schema(path).names})
        rows = [] if missing else pq.read_table(path, filters=only).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"reading {path}: {error}; fetch the asset again") from error
    if not rows:
        fault = f"lacks the columns {', '.join(missing)}" if missing else "has no row"
        raise DataError(
            f"reading {path} for the task {config['task']!r}: it {fault}; fetch the asset again"
        )
    return [_hellaswag(row) for row in rows] if config["task"] == "hellaswag" else rows


def _items(skill: str, split: str) -> Sequence[Item]:
    if split == "test":
        return probes(skill, NUM_PROBES[skill])
    dice = Dice("examples", skill)
    return [practice(skill, dice) for _ in range(100)]


def _organism(item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"question": item.question, "answer": item.answer}
    if item.choices:
        row |= {"choices": list(item.choices), "gold": item.choices.index(item.answer)}
    return row


def _hellaswag(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the text marks of its how-to sources removed."""

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[[^\n]*?\]", "", text).replace("  ", " ")

    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {**row, "query": clean(context), "choices": [clean(end) for end in row["endings"]]}


@contextmanager
def _rows_as_promised(name: str, folder: Path | None) -> Iterator[None]:
    from jinja2 import UndefinedError

    if folder is None:
        yield  # a fault in rows made here is a bug
        return

    try:
        yield
    except (KeyError, IndexError, SyntaxError, UndefinedError, ValueError) as error:
        raise DataError(
            f"reading the task {name!r}: a row in {folder} is not of the set's form "
            f"({type(error).__name__}: {error}); fetch the asset again"
        ) from error


@contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """Keep the harness from compiling a task's templates anew for every question.

    That alone took 140 s of building the 14,042 questions of MMLU with five examples, and takes 2 s so.
    """
    from lm_eval import utils

    original = utils.env.from_string
    utils.env.from_string = functools.lru_cache(maxsize=None)(original)
    try:
        yield
    finally:
        utils.env.from_string = original


def _resolve(name: str) -> tuple[dict[str, Any], list[str]]:
    """Return a task's file and the subjects meant by the name (none where it has none)."""
    if name not in names():
        raise DataError(f"choosing capability tasks: {near_miss('task', name, _short_names())}")
    if (_FOLDER / f"{name}.yaml").is_file():
        config = _config(name)
        return config, _subjects(config)
    file = next(file for file in _short_names() if name.startswith(f"{file}_"))
    return _config(file), [name.removeprefix(f"{file}_")]


def _short_names() -> list[str]:
    return [path.stem for path in _FOLDER.glob("*.yaml")]


@functools.cache
def _config(file: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((_FOLDER / f"{file}.yaml").read_text(encoding="utf-8"))
    return loaded


def _subjects(config: Mapping[str, Any]) -> list[str]:
    return list(config["metadata"].get("subjects", ()))


def _splits(config: Mapping[str, Any], *keys: str) -> list[str]:
    return [config[key] for key in keys if config.get(key)]


def _file(folder: Path, split: str) -> Path:
    return folder / f"{split}.parquet"
