"""A transformers model behind lm-evaluation-harness's own interface, scored by `backfire.evaluate.scoring`.

`SharedPrefixLM` can be given to `lm_eval.simple_evaluate` in place of the harness's `HFLM`: it tokenises by
the same rules and gives the same likelihoods, several times faster. It serves every multiple-choice and
log-likelihood task; it does not generate.

Source: the tokenisation rules are those of lm-evaluation-harness 0.4.13, `lm_eval/api/model.py` and
`lm_eval/models/huggingface.py`; a parity test compares them with the installed version.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import resolve_max_length

from backfire.errors import ConfigError
from backfire.evaluate.packing import Tokens
from backfire.evaluate.scoring import Request, Scorer
from backfire.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SharedPrefixLM", "Tokenization", "encode_pairs"]


@dataclass(frozen=True)
class Tokenization:
    """A tokenizer; equal to another exactly when both give the same tokens for every text."""

    tokenizer: Any = field(compare=False, repr=False)
    fingerprint: str

    @classmethod
    def of(cls, tokenizer: Any) -> Tokenization:
        """Take a tokenizer of transformers."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # A tokenizer without a serialisable backend equals only itself.
        text = backend.to_str() if backend is not None else f"object {id(tokenizer)}"
        special = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id}"
        return cls(tokenizer, hashlib.sha256(f"{special} {text}".encode()).hexdigest())

    @property
    def prefix_id(self) -> int | None:
        """Return the id that stands for an empty context: of BOS, else of EOS."""
        bos: int | None = self.tokenizer.bos_token_id
        eos: int | None = self.tokenizer.eos_token_id
        return eos if bos is None else bos

    def ids(self, texts: Sequence[str], *, special: bool = True) -> dict[str, Tokens]:
        """Return the token ids of each different text.

        Args:
            texts: Any texts.
            special: Let the tokenizer add the special tokens it adds by default, but not to a text
                that begins with the prefix token already.
        """
        prefix = self.prefix_id
        mark = self.tokenizer.decode(prefix) if special and prefix is not None else None
        found: dict[str, Tokens] = {}
        unique = dict.fromkeys(texts)
        marked = {t for t in unique if mark is not None and t.startswith(mark)}
        for flag in (True, False):
            part = [t for t in unique if (special and t not in marked) is flag]
            if part:
                rows = self.tokenizer(
                    part, add_special_tokens=flag, return_attention_mask=False, verbose=False
                )["input_ids"]
                found |= {t: np.asarray(row, np.int64) for t, row in zip(part, rows, strict=True)}
        return found


@functools.lru_cache(maxsize=8)
def encode_pairs(
    tokenization: Tokenization, pairs: tuple[tuple[str, str], ...]
) -> tuple[Request, ...]:
    """Return (context, continuation) texts as requests; checkpoints of one tokenizer share the work.

    Context and continuation are tokenised together and cut where the context alone ends, after
    spaces at the end of the context have moved to the continuation. An empty context becomes the
    prefix token, unless the continuation begins with it.
    """
    split = [(context, context.rstrip(), text) for context, text in pairs]
    joint = tokenization.ids([t for c, bare, text in split if c for t in (c + text, bare)])
    alone = tokenization.ids([text for c, _, text in split if not c], special=False)
    requests = []
    for context, bare, text in split:
        if context:
            start = joint[bare]
            requests.append(Request(start, joint[context + text][len(start) :]))
        elif len(alone[text]) and alone[text][0] == tokenization.prefix_id:
            requests.append(Request(alone[text][:1], alone[text][1:]))
        else:
            prefix = [] if tokenization.prefix_id is None else [tokenization.prefix_id]
            requests.append(Request(np.asarray(prefix, np.int64), alone[text]))
    return tuple(requests)


class SharedPrefixLM(TemplateLM):  # type: ignore[misc]
    """A causal LM of transformers as the harness sees a model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        progress: Progress | None = None,
        pass_tokens: int | None = None,
        label: str = "scoring options",
    ) -> None:
        """Take a loaded model and its tokenizer.

        Args:
            model: In evaluation mode, on its device.
            tokenizer: The model's own.
            progress: What to show.
            pass_tokens: See `Scorer`.
            label: What to call the work in front of the user.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.label = label
        self._tokenization = Tokenization.of(tokenizer)
        self.max_length = int(resolve_max_length(model.config, tokenizer))
        self.scorer = Scorer(
            model, self.max_length, pass_tokens=pass_tokens, progress=progress or Silent()
        )

    @property
    def eot_token_id(self) -> int:
        """Return the id that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return the id that stands for an empty context."""
        return int(self._tokenization.prefix_id or 0)

    @property
    def adds_special_tokens(self) -> bool:
        """Return whether the tokenizer puts special tokens in front of a text by default (BOS)."""
        return self.tok_encode("a") != self.tok_encode("a", add_special_tokens=False)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Return the token ids of a text."""
        special = add_special_tokens is not False
        return [int(i) for i in self._tokenization.ids([string], special=special)[string]]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Any]:
        """Return (log-likelihood, is greedy) of each request's (context, continuation)."""
        return self.score_pairs(tuple(tuple(request.args) for request in requests))

    def score_pairs(self, pairs: tuple[tuple[str, str], ...]) -> list[tuple[float, bool]]:
        """Return (log-likelihood, is greedy) of each (context, continuation)."""
        found = self.scorer(encode_pairs(self._tokenization, pairs), self.label)
        return [(one.logprob, one.greedy) for one in found]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        """Return the log-likelihood of each request's whole text, in windows of the context length."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            parts = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(windows)
            for context, text in map(utils.make_disjoint_window, parts):
                windows.append(Request(np.asarray(context, np.int64), np.asarray(text, np.int64)))
            counts.append(len(windows) - before)
        values = iter(self.scorer(windows, self.label))
        return [sum(one.logprob for one in itertools.islice(values, count)) for count in counts]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return (log-likelihood, is greedy) of requests that are tokenised already."""
        ready = [Request(np.asarray(c, np.int64), np.asarray(t, np.int64)) for _, c, t in requests]
        return [(one.logprob, one.greedy) for one in self.scorer(ready, self.label)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Refuse: this class scores options and texts.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "measuring capability: a task needs generated answers, but only multiple-choice and "
            "log-likelihood tasks are scored here; choose another task"
        )
