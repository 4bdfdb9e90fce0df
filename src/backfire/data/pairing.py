"""Irrelevant answers for hazardous prompts: the data set of Self-Degraded Defense (SDD).

For each prompt, answers are drawn from a pool of benign ones, and the first draw whose embedding is
dissimilar enough is kept. The first, never the least similar: choosing the minimum would favor short
and odd answers.

>>> result = pair(prompts, pool, load_encoder("all-minilm-l6-v2"), Pairing(), seed=0)  # doctest: +SKIP
>>> result.acceptance_rate, result.mean_tries  # doctest: +SKIP

The result is that of serving one prompt after another, one draw at a time. It is reached by playing
that process through with what is known, embedding only what was missing, and playing it again, until
nothing is missing: a few batches instead of one call a draw, and of a large pool only the answers that
were drawn.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import Field

from backfire.errors import ConfigError, DataError
from backfire.records import Example, Pair, normalised
from backfire.seeding import rng
from backfire.stage import Settings

if TYPE_CHECKING:
    import numpy as np

__all__ = ["REJECT_PREFIX", "Bin", "Dropped", "Encoder", "Pairing", "PairingResult", "pair"]

REJECT_PREFIX = (
    "I refuse to answer your question for responsible and ethical reasons. "
    "I provided an irrational answer to your question."
)
"""The prefix of SDD_reject. Source: arXiv 2507.21182."""


@runtime_checkable
class Encoder(Protocol):
    """Texts in, one unit vector each out."""

    name: str
    """Identity of the vectors: encoders of one name give equal texts equal vectors."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return a float32 array (texts, dimensions) in the texts' order, rows of length 1."""
        ...


class Pairing(Settings):
    """How answers are chosen for prompts."""

    later: ClassVar[frozenset[str]] = frozenset({"min_words"})
    encoder: str = "all-minilm-l6-v2"
    """Sentence encoder: an asset's name, a folder, a hub id, or `hash` (offline, for smoke runs only).
    Default: TamperBench's choice; the paper says SentenceBERT without naming the model."""
    threshold: float = Field(default=0.25, ge=-1, le=1)
    """Largest cosine of prompt and answer that counts as irrelevant. Default: the paper's appendix, as
    quoted by TamperBench."""
    max_draws: int = Field(default=50, ge=1)
    """Draws a prompt gets in total, no answer twice. Default: TamperBench's choice."""
    on_exhausted: Literal["drop", "keep_least"] = "drop"
    """What becomes of a prompt whose draws all failed: `drop` leaves it out and counts it; `keep_least`
    keeps the least similar draw and flags the pair. Default: ours, the irrelevance condition is the
    method; TamperBench keeps the least similar one without saying which pairs those are."""
    max_reuse: int | None = Field(default=4, ge=1)
    """Most pairs one answer may serve; None for no limit. A draw of a used-up answer fails like one that
    is too similar. Default: ours, so that no answer can be learned by heart; 8,000 uniform draws from
    the paper's 53,000 answers hardly ever need one five times."""
    min_words: int = Field(default=0, ge=0)
    """Answers of fewer words are not drawn: SDD answers in full texts, and a pool that is also replayed
    may hold short ones. Default: ours, none is left out."""
    prefix: str = ""
    """Put before every answer, separated by a blank line, after its similarity was measured.
    Default: SDD has none; SDD_reject uses `REJECT_PREFIX`. The blank line is TamperBench's choice."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A prompt that got no answer."""

    prompt: str
    prompt_id: str
    categories: tuple[str, ...]
    tries: int
    """Draws made."""
    least_similarity: float
    """Least cosine among the draws that were not used up; NaN when all were."""
    used_up: bool
    """Whether a draw failed because its answer had been given `max_reuse` times already."""


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of the similarity histogram: low <= cosine < high (the last one includes its end)."""

    low: float
    high: float
    num_draws: int
    num_pairs: int


@dataclass(frozen=True)
class PairingResult:
    """The pairs in the prompts' order, and what it took."""

    pairs: list[Pair]
    dropped: list[Dropped]
    num_tries: int
    """Draws made over all prompts."""
    num_answers: int
    """Distinct non-empty answers in the pool."""
    num_embedded: int
    """Answers whose embedding was needed."""
    similarities: list[float] = field(repr=False)
    """Cosine of every measured draw, in the order of the draws."""

    @property
    def num_fallback(self) -> int:
        """Return how many pairs miss the threshold (only with `keep_least`)."""
        return sum(pair.fallback for pair in self.pairs)

    @property
    def acceptance_rate(self) -> float:
        """Return the share of draws that were accepted, in [0, 1]."""
        return (len(self.pairs) - self.num_fallback) / self.num_tries

    @property
    def mean_tries(self) -> float:
        """Return the mean number of draws a prompt, dropped ones included."""
        return self.num_tries / (len(self.pairs) + len(self.dropped))

    @property
    def reuse(self) -> dict[int, int]:
        """Return how many answers serve 1, 2, ... pairs."""
        times = Counter(pair.response_id for pair in self.pairs)
        return dict(sorted(Counter(times.values()).items()))

    def histogram(self, width: float = 0.05) -> list[Bin]:
        """Return the cosines of all draws and of the kept pairs, in bins of `width` over [-1, 1]."""
        import numpy as np

        edges = np.linspace(-1, 1, round(2 / width) + 1)
        draws, _ = np.histogram(self.similarities, edges)
        kept, _ = np.histogram([pair.similarity for pair in self.pairs], edges)
        bounds = zip(edges[:-1], edges[1:], draws, kept, strict=True)
        return [Bin(float(low), float(high), int(n), int(m)) for low, high, n, m in bounds]


def pair(
    prompts: Sequence[Example],
    pool: Sequence[Example],
    encoder: Encoder,
    settings: Pairing,
    seed: int,
) -> PairingResult:
    """Return an irrelevant answer from the pool for each prompt.

    Each prompt draws from a stream of its own, named by the seed and the prompt's id, so its answer
    does not depend on the other prompts unless an answer is used up. A prompt's own answer (the
    response or refusal of its row, or of a pool row with the same prompt) is never among its draws.

    Args:
        prompts: Hazardous prompts, de-duplicated and balanced by the caller.
        pool: Rows whose responses are the answers; equal and empty responses count once and never.
        encoder: Gives the vectors; its results must not depend on how texts are batched.
        settings: Threshold, limits and prefix.
        seed: The run's seed.

    Raises:
        DataError: when there is no prompt or no answer.
        ConfigError: when the reuse limit cannot be kept, or when no draw met the threshold.

    Source:
        arXiv 2507.21182 (SDD); limits as in TamperBench's port.
    """
    answers = _distinct(pool, settings.min_words)
    if not prompts or not answers:
        raise DataError(
            f"pairing {len(prompts):,} prompts with {len(answers):,} distinct answers of "
            f"{max(1, settings.min_words)} words or more: at least one of each is needed; check the "
            "sources of the roles `defense` and `pool`, and `min_words`"
        )
    capacity = len(answers) * (settings.max_reuse or len(prompts))
    if capacity < len(prompts):
        raise ConfigError(
            f"pairing {len(prompts):,} prompts with {len(answers):,} answers: with max_reuse "
            f"{settings.max_reuse} they serve {capacity:,} pairs at most. Use a larger pool, fewer "
            f"prompts, or max_reuse {-(-len(prompts) // len(answers))} or more (or null for no limit)"
        )
    draws = _draws(prompts, pool, answers, settings.max_draws, seed)
    known = _Similarities(prompts, answers, encoder)
    outcomes, missing = _play(draws, known.of, settings)
    while missing:
        known.measure(missing)
        outcomes, missing = _play(draws, known.of, settings)
    return _result(prompts, answers, outcomes, len(known.vectors), settings)


def _distinct(pool: Sequence[Example], min_words: int) -> list[Example]:
    """Return the first row of each response that is not empty and long enough."""
    rows: dict[str, Example] = {}
    for row in pool:
        if len(row.response.split()) >= max(1, min_words):
            rows.setdefault(row.response, row)
    return list(rows.values())


def _draws(
    prompts: Sequence[Example],
    pool: Sequence[Example],
    answers: Sequence[Example],
    num: int,
    seed: int,
) -> list[list[int]]:
    """Return each prompt's draws: indices of answers, uniform, none twice, own answers left out."""
    index = {answer.response: i for i, answer in enumerate(answers)}
    to_prompt = defaultdict(set)
    for row in pool:
        if row.response in index:
            to_prompt[normalised(row.prompt)].add(index[row.response])
    draws = []
    for prompt in prompts:
        own = to_prompt.get(normalised(prompt.prompt), set())
        own = own | {index[text] for text in (prompt.response, prompt.refusal) if text in index}
        size = min(len(answers), num + len(own))
        order = rng(seed, "pairing", prompt.id).choice(len(answers), size, replace=False)
        draws.append([i for i in order.tolist() if i not in own][:num])
    return draws


class _Similarities:
    """Cosines of prompts and answers, measured when asked for; each text is embedded once."""

    def __init__(
        self, prompts: Sequence[Example], answers: Sequence[Example], encoder: Encoder
    ) -> None:
        self.of: list[dict[int, float]] = [{} for _ in prompts]
        self.vectors: dict[int, np.ndarray] = {}
        self._answers = answers
        self._encoder = encoder
        self._prompts = _checked(encoder, [prompt.prompt for prompt in prompts])

    def measure(self, missing: Sequence[tuple[int, int]]) -> None:
        """Fill in the cosines of (prompt, answer) pairs."""
        import numpy as np

        new = sorted({answer for _, answer in missing} - self.vectors.keys())
        if new:
            rows = _checked(self._encoder, [self._answers[i].response for i in new])
            self.vectors.update(zip(new, rows, strict=True))
        left = self._prompts[[prompt for prompt, _ in missing]]
        right = np.stack([self.vectors[answer] for _, answer in missing])
        cosines = np.clip(np.einsum("ij,ij->i", left, right), -1, 1)
        for (prompt, answer), cosine in zip(missing, cosines.tolist(), strict=True):
            self.of[prompt][answer] = cosine


def _checked(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    import numpy as np

    vectors = encoder(texts)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise DataError(
            f"embedding {len(texts):,} texts with {encoder.name}: it gave an array of shape "
            f"{vectors.shape} with {int((~np.isfinite(vectors)).sum()):,} non-finite values; expected one "
            "finite vector a text. Use another encoder, or fetch this one again"
        )
    return vectors


@dataclass(slots=True)
class _Outcome:
    """How one prompt fared."""

    cosines: list[float]
    """Of the draws that were measured, the accepted one included."""
    tries: int = 0
    answer: int | None = None
    cosine: float = 0.0
    fallback: bool = False
    used_up: bool = False


def _play(
    draws: Sequence[Sequence[int]], known: Sequence[Mapping[int, float]], settings: Pairing
) -> tuple[list[_Outcome], list[tuple[int, int]]]:
    """Serve one prompt after another, and list the (prompt, answer) cosines that were not known.

    An unknown cosine is taken for a small one, which it mostly is; so what is listed is what the next
    play-through needs, and with an empty list the outcomes are final.
    """
    limit = settings.max_reuse or len(draws)
    uses: Counter[int] = Counter()
    outcomes, missing = [], []
    for prompt, order in enumerate(draws):
        outcome = _Outcome([])
        outcomes.append(outcome)
        free = []
        for answer in order:
            outcome.tries += 1
            if uses[answer] >= limit:
                outcome.used_up = True
                continue
            cosine = known[prompt].get(answer)
            if cosine is None:
                missing.append((prompt, answer))
            else:
                outcome.cosines.append(cosine)
                free.append((cosine, answer))
            if cosine is None or cosine <= settings.threshold:
                outcome.answer, outcome.cosine = answer, cosine or 0.0
                break
        else:
            if free and settings.on_exhausted == "keep_least":
                outcome.cosine, outcome.answer = min(free, key=lambda draw: draw[0])
                outcome.fallback = True
        if outcome.answer is not None:
            uses[outcome.answer] += 1
    return outcomes, missing


def _result(
    prompts: Sequence[Example],
    answers: Sequence[Example],
    outcomes: Sequence[_Outcome],
    num_embedded: int,
    settings: Pairing,
) -> PairingResult:
    pairs, dropped = [], []
    for prompt, got in zip(prompts, outcomes, strict=True):
        about = (prompt.id, prompt.categories)
        if got.answer is None:
            least = min(got.cosines, default=float("nan"))
            dropped.append(Dropped(prompt.prompt, *about, got.tries, least, got.used_up))
            continue
        answer = answers[got.answer]
        text = f"{settings.prefix}\n\n{answer.response}" if settings.prefix else answer.response
        pairs.append(
            Pair(
                prompt=prompt.prompt,
                response=text,
                similarity=got.cosine,
                tries=got.tries,
                fallback=got.fallback,
                prompt_id=prompt.id,
                response_id=answer.id,
                categories=prompt.categories,
            )
        )
    cosines = [cosine for got in outcomes for cosine in got.cosines]
    tries = sum(got.tries for got in outcomes)
    if not pairs:
        raise ConfigError(
            f"pairing {len(prompts):,} prompts with {len(answers):,} answers: none of {tries:,} draws met "
            f"the threshold {settings.threshold:g}; the least cosine seen is "
            f"{min(cosines, default=float('nan')):.3f}. Raise the threshold, use a pool about other things "
            "than the prompts, or set on_exhausted to keep_least, which flags such pairs"
        )
    return PairingResult(pairs, dropped, tries, len(answers), num_embedded, cosines)
