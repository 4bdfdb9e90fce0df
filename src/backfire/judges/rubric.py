"""What the judges that read a rubric share: one request a row, and a score that only the judge can write.

The prompts are files of this package (`prompts/`), in our own words; their hash is part of every verdict's
version. The material is fenced (`backfire.judges.fence`), and the judge has to close with a
line that carries the same code, so a score that an answer contains, or that the judge quotes, is none.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from string import Template
from typing import Any, ClassVar

from pydantic import Field

from backfire.judges.calls import Absence
from backfire.judges.endpoint import Bill, Endpoint, Question, tokens
from backfire.judges.fence import code_for, excerpt, visible
from backfire.judges.transport import Reply
from backfire.progress import Silent
from backfire.records import Exchange, Verdict
from backfire.stage import Bench, Settings
from backfire.store import content_key

__all__ = ["RubricJudge", "rubric_judges"]


@dataclass(frozen=True, slots=True)
class _Case:
    """One row as it is put to the judge."""

    code: str
    question: Question
    cut: bool
    """Whether request or answer was too long to be shown whole."""


class RubricJudge(Settings, ABC):
    """A language model that grades each answer by a rubric."""

    prompt: ClassVar[str]
    """Name of the rubric in `prompts/`."""
    form: ClassVar[str]
    """What stands after `SCORE <code>: ` in the judge's last line, letters for digits."""
    where: ClassVar[str]
    """What the letters are."""
    pattern: ClassVar[re.Pattern[str]]
    """The form as it is read; its groups are the digits."""

    name: str
    """The judge's name in settings and tables."""
    endpoint: Endpoint
    """Where the judge runs."""
    max_chars: int = Field(8000, ge=100)
    """Longest request and longest answer that is shown to the judge, in characters; of longer ones
    the first and the last half of it, with a note. Ours: no answer of 1,024 tokens is cut."""
    seed: int = Field(0, ge=0)
    """Of the code that fences the material. Another seed asks everything again under other codes,
    which shows how much the judge's verdicts depend on nothing at all."""

    def __call__(self, exchanges: Sequence[Exchange], bench: Bench | None = None) -> list[Verdict]:
        """Return one verdict per exchange; absent, with the reason, wherever there is no proper score.

        Raises:
            JudgeError: when the endpoint cannot be used at all.
            PrerequisiteError: when the key is missing.
        """
        progress = Silent() if bench is None else bench.progress
        asked = [exchange for exchange in exchanges if exchange.harmful]
        cases = [self._case(exchange) for exchange in asked]
        replies = self.endpoint.ask([case.question for case in cases], self.name, progress)
        served = next((r.model for r in replies if isinstance(r, Reply) and r.model), "")
        version = (
            f"{self.version} {served or self.endpoint.model} prompt {self.prompt_hash} "
            f"settings {self._settings_hash}"
        )
        judged = iter(zip(cases, replies, strict=True))
        return [
            self._verdict(exchange, version, *next(judged))
            if exchange.harmful
            else self._absent(exchange, version, "the prompt is benign")
            for exchange in exchanges
        ]

    @property
    def prompt_hash(self) -> str:
        """Return 12 hex digits of the prompt's whole text: the rubric, and how the material is shown."""
        text = "\0".join([*_prompt(self.prompt), self.form, self.where])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def _settings_hash(self) -> str:
        """Return 8 hex digits of the settings that can change a verdict."""
        asked = self.endpoint.model_dump(
            include={"base_url", "model", "temperature", "max_reply_tokens"}
        )
        rest = self.model_dump(exclude={"endpoint"})
        return content_key(asked, rest)[:8]

    def bill(self, calls: int, tokens_each: float) -> Bill:
        """Return what so many calls will take.

        Args:
            calls: How many.
            tokens_each: Tokens of a request with its answer.
        """
        overhead = sum(tokens(text) for text in _prompt(self.prompt))
        return self.endpoint.bill([overhead + round(tokens_each)] * calls)

    # ------------------------------------------------------------------------------------------ asking

    def _case(self, exchange: Exchange) -> _Case:
        system, material = _prompt(self.prompt)
        request, answer = visible(exchange.prompt), visible(exchange.response)
        code = code_for(self.seed, request, answer)
        user = Template(material).substitute(
            code=code,
            request=excerpt(request, self.max_chars, code),
            answer=excerpt(answer, self.max_chars, code),
            form=f"SCORE {code}: {self.form}",
            where=self.where,
        )
        return _Case(code, Question(system, user), max(len(request), len(answer)) > self.max_chars)

    # ----------------------------------------------------------------------------------------- reading

    def _verdict(
        self, exchange: Exchange, version: str, case: _Case, reply: Reply | Absence
    ) -> Verdict:
        if isinstance(reply, Absence):
            return self._absent(exchange, version, reply.reason, transient=reply.transient)
        said = reply.text or reply.refusal
        if reply.refusal or reply.stop == "content_filter":
            return self._absent(exchange, version, "the judge refused to judge", said)
        if not reply.text.strip():
            return self._absent(exchange, version, "the judge's reply is empty", said)
        found = self._score_line(reply.text, case.code)
        if isinstance(found, str):
            if reply.stop == "length":
                found = "the judge's reply was cut before its score (see `max_reply_tokens`)"
            return self._absent(exchange, version, found, said)
        harmful, score, label = self._grade(*map(int, found.groups()))
        label += ", not all of it shown" if case.cut else ""
        return Verdict(
            exchange.prompt_id, self.name, version, harmful, score, label, raw=reply.text
        )

    def _score_line(self, text: str, code: str) -> re.Match[str] | str:
        """Return the score where the reply ends with one and holds no other, else what is wrong."""
        mark = f"SCORE {code}"
        if text.count(mark) > 1:
            return "malformed score: more than one line with a score"
        last = text.rstrip().rsplit("\n", 1)[-1].strip()
        if not last.startswith(f"{mark}: "):
            return "malformed score: the reply does not end with its score"
        found = self.pattern.fullmatch(last.removeprefix(f"{mark}: "))
        return found or "malformed score: not of the form that was asked for"

    def _absent(
        self,
        exchange: Exchange,
        version: str,
        reason: str,
        raw: str = "",
        *,
        transient: bool = False,
    ) -> Verdict:
        return Verdict(
            exchange.prompt_id, self.name, version, None, absent=reason, raw=raw,
            transient=transient,
        )  # fmt: skip

    @abstractmethod
    def _grade(self, *digits: int) -> tuple[bool, float, str]:
        """Return whether that is harmful, the score in [0, 1], and a word for it."""


def rubric_judges(evaluations: Iterable[Any]) -> list[RubricJudge]:
    """Return the judges among these evaluations' that ask an endpoint."""
    judges = [judge for evaluation in evaluations for judge in getattr(evaluation, "judges", ())]
    return [judge for judge in judges if isinstance(judge, RubricJudge)]


@cache
def _prompt(name: str) -> tuple[str, str]:
    """Return a rubric and the template of the material."""
    folder = resources.files("backfire.judges").joinpath("prompts")
    rubric, material = (
        folder.joinpath(f"{file}.md").read_text(encoding="utf-8") for file in (name, "material")
    )
    return rubric, material
