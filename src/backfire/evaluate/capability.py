"""Capability: published multiple-choice sets, with the field's own numbers.

Questions, prompts and options are lm-evaluation-harness's (`backfire.evaluate.tasks`), so are the
tokenisation rules and the two ways to choose (`acc` and `acc_norm`); only the arithmetic in between is
shared where options begin alike (`backfire.evaluate.scoring`).

>>> Capability(tasks=("sciq", "piqa"), limit=100).num_fewshot
0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from backfire.errors import near_miss
from backfire.evaluate.tasks import harness_version, names
from backfire.models.load import DType
from backfire.records import Answer, Checkpoint, Role
from backfire.stage import Bench, Settings, Tables

if TYPE_CHECKING:
    from backfire.data.chat import Chat
    from backfire.evaluate.harness import SharedPrefixLM
    from backfire.evaluate.tasks import TaskSet

__all__ = ["Capability", "TaskFacts"]


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What must be equal for two accuracies to be comparable: one row of the table `tasks`."""

    task: str
    task_version: str
    """The harness's version of the task."""
    harness_version: str
    split: str
    """The harness's test split where the asset has it, else the validation split."""
    num_questions: int
    num_available: int
    """Questions of the split; fewer were asked where `limit` says so."""
    num_fewshot: int
    chat: str
    """Digest of the chat format; empty when the questions were asked as plain text."""
    adds_bos: bool
    """Whether the tokenizer puts special tokens in front of a text by default, as it then was."""
    shared: bool
    """Whether options shared the computation of their beginnings."""


class Capability(Settings):
    """What the model knows: multiple-choice sets scored by the log-likelihood of each option.

    The organism's own tasks also ask for exact answers, right when greedy decoding gives them.
    """

    name: Literal["capability"] = "capability"
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[Role, ...]] = ()

    tasks: tuple[str, ...] = Field(default=("sciq", "arc_easy", "piqa", "openbookqa"), min_length=1)
    """Which sets: `arc_challenge`, `arc_easy`, `hellaswag`, `mmlu` or one subject of it
    (`mmlu_anatomy`), `openbookqa`, `piqa`, `sciq`; for the model `organism` `organism_choices`,
    `organism_exact`, one skill of them (`organism_exact_sorting`), or `organism_new_reversing`. Default
    ours: four on which a model of 135M parameters is above chance; on MMLU it is not."""
    limit: PositiveInt | dict[str, PositiveInt] | None = None
    """Ask only the first so many questions of each set (of each MMLU subject), in the set's own order, as
    lm-evaluation-harness's `--limit` does; the same ones of every model and seed. A mapping gives each
    set its own number, and all questions of a set that it does not name: a SciQ question costs as much
    as five of OpenBookQA. Default the harness's: all."""
    num_fewshot: int = Field(default=0, ge=0)
    """Solved examples in front of each question. Default the harness's for these sets; MMLU is often
    reported with 5."""
    chat_template: bool = False
    """Ask in the model's chat format, description as the system turn, all else as one user turn.
    Default the harness's."""
    dtype: DType = "auto"
    """Weights' type while answering: `auto` is fp32 on a CPU and the stored type elsewhere."""

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task not in names():
                raise ValueError(near_miss("capability task", task, names()))
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"a capability task is named twice: {', '.join(tasks)}")
        return tasks

    @model_validator(mode="after")
    def _limits_are_of_the_tasks(self) -> Self:
        for task in self.limit if isinstance(self.limit, dict) else ():
            if task not in self.tasks:
                raise ValueError(f"`limit`: {near_miss('capability task', task, self.tasks)}")
        return self

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Tables:
        """Return the tables `answers` (one `Answer` per question) and `tasks` (`TaskFacts`).

        Raises:
            PrerequisiteError: when lm-evaluation-harness is not installed.
            DataError: when a set cannot be read.
            CheckpointError: when the model cannot be loaded.
            DivergedError: when it gives NaN.
        """
        from backfire.assets import fetch
        from backfire.evaluate.tasks import asset_of, questions, require_harness

        require_harness()
        sets = [
            questions(
                task,
                None if (asset := asset_of(task)) is None else fetch(asset, bench.progress),
                num_fewshot=self.num_fewshot,
                limit=self.limit.get(task) if isinstance(self.limit, dict) else self.limit,
            )
            for task in self.tasks
        ]
        from backfire.evaluate.harness import SharedPrefixLM
        from backfire.models.load import load

        loaded = load(checkpoint, device=bench.device, dtype=self.dtype)
        lm = SharedPrefixLM(
            loaded.model,
            loaded.tokenizer,
            progress=bench.progress,
            label=bench.label or "scoring options",
        )
        return _ask(lm, sets, loaded.chat if self.chat_template else None)


def _ask(lm: SharedPrefixLM, sets: Sequence[TaskSet], chat: Chat | None) -> Tables:
    """Score every option of every question in one go, and read off the choices."""
    import numpy as np

    pairs: list[tuple[str, str]] = []
    for one in sets:
        for question in one.questions:
            context = question.description + question.text
            if chat is not None:
                context = chat.prompt_text(question.text, question.description or None)
            delimiter = one.delimiter if chat is None else ""
            pairs += [(context, delimiter + choice) for choice in question.choices]
    scores = iter(lm.score_pairs(tuple(pairs)))

    answers: list[Answer] = []
    for one in sets:
        for question in one.questions:
            scored = [next(scores) for _ in question.choices]
            logprobs = np.array([logprob for logprob, _ in scored])
            lengths = np.array([float(len(choice)) for choice in question.choices])
            with np.errstate(divide="ignore"):  # an empty option divides by 0 and is never chosen
                per_character = logprobs / lengths
            wrong = question.exact and not scored[0][1]
            answers.append(
                Answer(
                    task=one.task,
                    item=question.item,
                    gold=question.gold,
                    choice=-1 if wrong else int(np.argmax(logprobs)),
                    choice_norm=-1 if wrong else int(np.argmax(per_character)),
                    num_options=0 if question.exact else len(question.choices),
                    logprobs=tuple(logprobs.tolist()),
                )
            )
    facts = [
        TaskFacts(
            task=one.task,
            task_version=one.task_version,
            harness_version=harness_version(),
            split=one.split,
            num_questions=len(one.questions),
            num_available=one.num_available,
            num_fewshot=one.num_fewshot,
            chat="" if chat is None else chat.digest,
            adds_bos=lm.adds_special_tokens,
            shared=bool(lm.scorer.shared),
        )
        for one in sets
    ]
    return {"answers": answers, "tasks": facts}
