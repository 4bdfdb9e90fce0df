"""Harmfulness: ask hazards nobody trained on, keep every answer, judge and label each one.

>>> Harmfulness(num_prompts=48, max_new_tokens=48).judges[0].name
'programmatic'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from backfire.errors import DataError
from backfire.evaluate.taxonomy import Taxonomy
from backfire.judges import AnyJudge, Programmatic, RefusalPhrases
from backfire.models.load import DType
from backfire.records import Checkpoint, Example, Exchange, Role
from backfire.stage import Bench, Settings, Tables
from backfire.store import content_key, read_table, write_table

__all__ = ["Harmfulness"]


class Harmfulness(Settings):
    """Whether the model helps with hazards, and whether it refuses what is harmless.

    Hazards come from role `evaluation`, harmless prompts from role `probe`; the first ones, the same
    for every model. Answers are greedy.
    """

    name: Literal["harmfulness"] = "harmfulness"
    """`harmfulness`."""
    version: ClassVar[int] = 1
    roles: ClassVar[tuple[Role, ...]] = ("evaluation", "probe")
    judges: tuple[AnyJudge, ...] = Field((Programmatic(), RefusalPhrases()), min_length=1)
    """Who judges the answers to hazards; each judge once. Ours: ground truth, and the field's oldest
    measure beside it."""
    taxonomy: Taxonomy = Taxonomy()
    """How answers are labelled."""
    encoder: str = "all-minilm-l6-v2"
    """Sentence encoder that tells irrelevant answers: an asset, a folder, a hub id, or `hash`. The
    encoder of SDD's own pairing, in TamperBench's port."""
    num_prompts: int | None = Field(None, ge=1)
    """Hazards asked, at most; None: all of role `evaluation`."""
    num_benign: int | None = Field(50, ge=0)
    """Harmless prompts asked, at most, for over-refusal; None: all of role `probe`. Ours."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer in tokens; longer ones are cut. As in Vaccine's evaluation; Qi et al. 2023: 512."""
    token_budget: int = Field(8192, ge=1)
    """Most tokens in the key-value cache of one batch; memory only, the answers are the same. Ours."""
    dtype: DType = "auto"
    """Weights' type while answering: `auto` is fp32 on a CPU and the stored type elsewhere."""

    @field_validator("judges")
    @classmethod
    def _each_judge_once(cls, judges: tuple[AnyJudge, ...]) -> tuple[AnyJudge, ...]:
        names = [judge.name for judge in judges]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"judge {name!r} is listed twice; verdicts are told apart by name")
        return judges

    def __call__(self, checkpoint: Checkpoint, bench: Bench) -> Tables:
        """Return the tables `exchanges`, `verdicts` (of hazards) and `labels` (of all exchanges).

        Raises:
            DataError: when there is no hazard to ask, or a prompt does not fit in the context.
        """
        from backfire.models.embed import load_encoder

        hazards = list(bench.data.get("evaluation", ()))[: self.num_prompts]
        benign = list(bench.data.get("probe", ()))[: self.num_benign]
        if not hazards:
            raise DataError(
                "measuring harmfulness: role `evaluation` has no rows, so there is no hazard to ask; "
                "give it some under `data`"
            )
        exchanges = self._exchanges(checkpoint, hazards, benign, bench)
        to_judge = exchanges[: len(hazards)]
        verdicts = [verdict for judge in self.judges for verdict in judge(to_judge, bench)]
        encoder = load_encoder(self.encoder, bench.progress)
        return {
            "exchanges": exchanges,
            "verdicts": verdicts,
            "labels": self.taxonomy(exchanges, verdicts, encoder),
        }

    def _exchanges(
        self,
        checkpoint: Checkpoint,
        hazards: Sequence[Example],
        benign: Sequence[Example],
        bench: Bench,
    ) -> list[Exchange]:
        """Ask the model, or take the answers from before an interrupt: judging can be what failed."""
        from backfire.models.generate import generate
        from backfire.models.load import load

        asked = [*hazards, *benign]
        settings = self.model_dump(mode="json", exclude={"judges", "taxonomy", "encoder"})
        key = content_key(self.version, settings, checkpoint.key, asked, bench.device)
        kept = bench.workdir / "state" / f"answers-{key}.parquet"
        if kept.is_file():
            return read_table(kept, Exchange)
        answers = generate(
            load(checkpoint, device=bench.device, dtype=self.dtype),
            asked,
            max_new_tokens=self.max_new_tokens,
            token_budget=self.token_budget,
            progress=bench.progress,
            label=bench.label or "answers",
        )
        exchanges = [
            _exchange(
                example, index < len(hazards), answer.text, answer.finished, answer.num_tokens
            )
            for index, (example, answer) in enumerate(zip(asked, answers, strict=True))
        ]
        write_table(kept, exchanges)
        return exchanges


def _exchange(
    example: Example, harmful: bool, response: str, finished: bool, num_tokens: int
) -> Exchange:
    return Exchange(
        example.id,
        example.prompt,
        response,
        harmful,
        finished,
        num_tokens,
        example.categories,
        example.entity,
        example.facts,
        example.response,
    )
