"""What classifier judges share: a trained network reads each prompt with its answer, alone.

Each member says how its authors write the two texts into one sequence, where they cut it, and how they
read the network's last numbers. Here the network is fetched at its pinned revision, loaded from
safetensors without running any code that comes with it, and fed in batches of like length, so that no
row influences another's verdict; verdicts come back in the order asked.

Sequences are padded on the right and read at their own last token, whatever the authors do: padding
that comes later cannot change what a causal network computed before it, so neither the side nor the id
of the padding matters.
"""

from __future__ import annotations

import functools
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from backfire.errors import CheckpointError, JudgeError
from backfire.judges.fence import visible
from backfire.models.load import DType, Head
from backfire.records import Checkpoint, Exchange, Verdict
from backfire.stage import Bench, Settings
from backfire.store import content_key, folder_key

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from backfire.progress import Progress

__all__ = ["Classifier", "Network", "labels_of", "located", "probabilities"]


@dataclass(frozen=True)
class Network:
    """A loaded classifier."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    token_budget: int
    progress: Progress
    label: str

    def safe(self, text: str) -> str:
        """Return a text that holds none of the tokenizer's special tokens and nothing unseen."""
        text = visible(text)
        for token in self._special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @functools.cached_property
    def _special(self) -> list[str]:
        found = {str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        return sorted(found | set(self.tokenizer.all_special_tokens), key=lambda t: (-len(t), t))

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """Return a text's tokens, with those the tokenizer puts around every text (`special`)."""
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def cut(self, text: str, tokens: int, keep: Literal["start", "end"]) -> str:
        """Return at most so many tokens' worth of a text, from its start or its end."""
        ids = self.ids(text, special=False)
        if len(ids) <= tokens:
            return text
        kept = ids[:tokens] if keep == "start" else ids[-tokens:]
        return str(self.tokenizer.decode(kept))

    def one_token(self, word: str) -> int:
        """Return the id of a word that the network answers with.

        Raises:
            JudgeError: when it is not one token, so that this cannot be the network's tokenizer.
        """
        ids = self.ids(word, special=False)
        if len(ids) != 1 or str(self.tokenizer.decode(ids)).strip() != word:
            raise JudgeError(
                f"{self.label}: its tokenizer writes the answer {word!r} as {len(ids)} tokens, where the "
                "classifier answers with one; give the classifier's own folder or id as `model`"
            )
        return int(ids[0])

    def read(
        self,
        sequences: Sequence[Sequence[int]],
        reduce: Callable[[torch.Tensor], torch.Tensor],
    ) -> list[list[float]]:
        """Return what is read of each sequence, in order.

        Args:
            sequences: Token ids, none empty.
            reduce: From fp32 logits (rows, classes or vocabulary) to the numbers kept of each row.

        Raises:
            JudgeError: when the logits are not numbers.
        """
        import torch

        found: list[list[float]] = [[] for _ in sequences]
        with (
            self.progress.task(self.label, total=len(sequences), unit="answers") as task,
            torch.inference_mode(),
        ):
            for places in _batches(sequences, self.token_budget):
                logits = self._logits([sequences[place] for place in places]).float()
                if not logits.isfinite().all():
                    raise JudgeError(
                        f"{self.label}: its logits are not numbers; compute in another precision "
                        "(`dtype: fp32`), or fetch the model again"
                    )
                for place, numbers in zip(places, reduce(logits).tolist(), strict=True):
                    found[place] = numbers
                task.advance(len(places))
        return found

    def _logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the logits (rows, ...) at each row's own last token, or of its classes."""
        import torch

        device = self.model.device
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
        last = torch.tensor([len(row) - 1 for row in rows], device=device)
        mask = (torch.arange(width, device=device) <= last[:, None]).long()
        lines = torch.arange(len(rows), device=device)
        if hasattr(self.model, "score"):  # a decoder with a head on its last token
            hidden = self.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            return self.model.score(hidden[lines, last])  # type: ignore[no-any-return]
        if self.model.get_output_embeddings() is None:  # an encoder, which pools by itself
            return self.model(input_ids=ids, attention_mask=mask).logits  # type: ignore[no-any-return]
        ends, line = torch.unique(last, return_inverse=True)
        output = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=ends)
        return output.logits[lines, line]  # type: ignore[no-any-return]


class Classifier(Settings):
    """What the classifiers' settings share."""

    version: ClassVar[int] = 1
    name: str
    head: ClassVar[Head] = "next token"
    template: ClassVar[str] = ""
    """What is written around the two texts; its digest is part of every verdict's version."""

    model: str
    """Where the weights are: a folder, or a hub id `org/name@revision`."""
    dtype: DType = "auto"
    """Weights' type: `auto` is fp32 on a CPU and the stored type elsewhere."""
    token_budget: int = Field(8192, ge=1)
    """Most tokens in one batch, padding included; memory only, verdicts do not depend on it. Ours."""

    def __call__(self, exchanges: Sequence[Exchange], bench: Bench | None = None) -> list[Verdict]:
        """Return one verdict per exchange, in order; absent for benign prompts.

        The network is loaded for the call and given up after it: between two calls the device belongs
        to the model under test.

        Raises:
            PrerequisiteError, ConfigError: when the network cannot be fetched.
            CheckpointError: when it cannot be loaded, or lacks weights.
            JudgeError: when its labels or tokens are not those of this judge, or it gives NaN.
        """
        if not exchanges:
            return []
        bench = bench or Bench(Path())
        checkpoint, identity = self._checkpoint(bench.progress)
        template = f" template {content_key(self.template)}" if self.template else ""
        told = f"{self.version} {identity}{self._options()}{template}"
        asked = [e for e in exchanges if not self._reason(e)]
        verdicts: Iterator[Verdict] = iter(())
        if asked:
            verdicts = iter(self._judge(self._network(checkpoint, bench), asked, told))
        return [
            Verdict(e.prompt_id, self.name, told, None, absent=reason)
            if (reason := self._reason(e))
            else next(verdicts)
            for e in exchanges
        ]

    @abstractmethod
    def _judge(
        self, network: Network, exchanges: Sequence[Exchange], version: str
    ) -> list[Verdict]:
        """Return the verdicts on exchanges that can be judged, in order."""

    def _check(self, network: Network) -> None:
        """Raise a JudgeError unless the network's labels are those the judge reads."""

    def _options(self) -> str:
        """Return what of the settings changes verdicts, for their version."""
        return ""

    def _reason(self, exchange: Exchange) -> str:
        """Return why an exchange cannot be judged; empty when it can."""
        if not exchange.harmful:
            return "the prompt is benign"
        return "" if exchange.response.strip() else "the answer is empty"

    def _checkpoint(self, progress: Progress) -> tuple[Checkpoint, str]:
        folder, identity = located(self.model, progress)
        return Checkpoint(folder, key=identity), identity

    def _network(self, checkpoint: Checkpoint, bench: Bench) -> Network:
        from backfire.models.load import open_network

        model, tokenizer = open_network(
            checkpoint, device=bench.device, dtype=self.dtype, head=self.head
        )
        label = f"judge with {self.name}"
        network = Network(model, tokenizer, self.token_budget, bench.progress, label)
        self._check(network)
        return network


def probabilities(columns: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a reader of a next token: probabilities, argmax, mass.

    Of logits (rows, vocabulary) it keeps the softmax over these tokens alone, then the token with the
    largest logit of all, then the share of the whole probability that these tokens hold.
    """

    def reduce(logits: torch.Tensor) -> torch.Tensor:
        import torch

        chosen = logits[:, list(columns)]
        mass = (chosen.logsumexp(1) - logits.logsumexp(1)).exp()
        best = logits.argmax(1).to(logits.dtype)
        return torch.cat([chosen.softmax(1), best[:, None], mass[:, None]], 1)

    return reduce


def _batches(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Yield places of sequences of like length, longest first: memory runs out at once or never."""
    waiting = sorted(range(len(sequences)), key=lambda place: -len(sequences[place]))
    while waiting:
        size = max(1, budget // len(sequences[waiting[0]]))
        yield waiting[:size]
        waiting = waiting[size:]


_COMMIT = re.compile(r"[0-9a-f]{40}")


def located(spec: str, progress: Progress) -> tuple[Path, str]:
    """Return a model's folder and what names exactly these weights, without a path in it."""
    from backfire.assets import resolve_model

    folder = resolve_model(spec, progress)
    if not Path(spec).expanduser().is_dir() and _COMMIT.fullmatch(folder.name):
        return folder, f"{spec.partition('@')[0]}@{folder.name}"
    files = tuple(
        (f.name, (s := f.stat()).st_size, s.st_mtime_ns) for f in sorted(folder.iterdir())
    )
    return folder, f"{folder.name}-{_hashed(folder, files)}"


@functools.lru_cache(maxsize=8)
def _hashed(folder: Path, files: Any) -> str:
    """Return the content key of a folder, read once while its files stay as they are."""
    return folder_key(folder)


def labels_of(network: Network) -> dict[int, str]:
    """Return a classification network's labels by index.

    Raises:
        CheckpointError: when its configuration names none.
    """
    labels = getattr(network.model.config, "id2label", None)
    if not labels:
        raise CheckpointError(
            f"{network.label}: the model's config.json has no `id2label`, so nobody can say what its "
            "outputs mean; give the classifier's own folder or id as `model`"
        )
    return {int(index): str(label) for index, label in labels.items()}
