"""The one chat-template object: training, attacks and evaluation all format through it.

A defense is installed only under the template it was trained with, and results have flipped because
training and evaluation formatted differently; here both call the same two methods.

>>> chat = Chat(tokenizer, ChatFormat())                         # doctest: +SKIP
>>> chat.prompt_ids("How do plants drink?")                      # doctest: +SKIP
>>> chat.encode(example, max_length=512).ids                     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from backfire.errors import CheckpointError, ConfigError, DataError, near_miss
from backfire.records import Example
from backfire.stage import Settings
from backfire.store import content_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "PROMPT",
    "SOFT",
    "SOFT_IDS",
    "TEMPLATES",
    "Chat",
    "ChatFormat",
    "Encoded",
    "checked_opening",
    "checked_user",
]

PROMPT = "{prompt}"
"""Where the prompt stands in the user's turn."""

SOFT = "{soft}"
"""Where learned vectors stand in the user's turn."""

SOFT_IDS = 1 << 30
"""Token id of the first learned vector, the next ones after it: beyond every vocabulary."""

TEMPLATES = {
    "plain": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] + (eos_token or '') }}"
        "{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
    ),
    "alpaca": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
        "{% elif m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'] + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + m['content'] + (eos_token or '') }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
}
"""Templates by name, for models that have none: bare text, and instruction/response headings."""

_PROBE = "q7Z-answer-q7Z"

_SEAM = "\ue0f7soft\ue0f7"
"""Stands for the learned vectors until the text around them is tokens."""


class ChatFormat(Settings):
    """How a model is asked: everything around the prompt, up to where its own words begin."""

    later: ClassVar[frozenset[str]] = frozenset({"user", "opening", "soft"})
    template: str = "auto"
    """`auto` (the tokenizer's own; an error if it has none), `plain`, `alpaca`, or Jinja text."""
    system: str | None = None
    """System turn of every conversation; None leaves it to the template. A template without a
    system turn gets it in front of the user's text."""
    user: str = PROMPT
    """The user's turn: `{prompt}` once, with any text around it; `{soft}` where the vectors stand."""
    opening: str = ""
    """How every answer begins. The model is made to say it and goes on from there: it is neither
    trained on nor judged. No space at its end: a model writes the space with its next word."""
    soft: int = Field(0, ge=0)
    """How many learned vectors stand in place of `{soft}`; they are kept beside the weights."""

    @field_validator("user")
    @classmethod
    def _user_is_one(cls, user: str) -> str:
        return checked_user(user)

    @field_validator("opening")
    @classmethod
    def _opening_is_one(cls, opening: str) -> str:
        return checked_opening(opening)


def checked_user(user: str) -> str:
    """Return a user's turn unless it is none; raise ValueError for settings classes to pass on."""
    if user.count(PROMPT) != 1 or user.count(SOFT) > 1:
        raise ValueError(
            f"the user's turn must hold {PROMPT} exactly once and {SOFT} at most once; met {user!r}"
        )
    return user


def checked_opening(opening: str) -> str:
    """Return an opening unless it ends with a space; raise ValueError for settings classes to pass on."""
    if opening.endswith((" ", "\t")):
        raise ValueError(
            f"the opening must not end with a space, which the model writes itself; met {opening!r}"
        )
    return opening


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training row as token ids."""

    ids: list[int]
    """Prompt, answer and exactly one end token (none when the answer was cut)."""
    start: int
    """Index of the first supervised id: the first of the answer."""
    truncated: bool
    """Whether the answer was cut at the length limit."""
    kept: tuple[int, ...] | None = None
    """Indices of the supervised ids where they are not all from `start` on."""

    @property
    def supervised(self) -> Sequence[int]:
        """Return the indices of the supervised ids; the very first id has nothing to be predicted from."""
        return range(max(self.start, 1), len(self.ids)) if self.kept is None else self.kept


class Chat:
    """A tokenizer together with a format; equal digests mean equal text for equal turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> None:
        """Resolve the template and find out how it ends an answer.

        Raises:
            CheckpointError: when the tokenizer has no template and none is named, or nothing that
                could end an answer.
            ConfigError: for an unknown template name or broken Jinja.
        """
        self.tokenizer = tokenizer
        self.format = chat_format
        self.template = _resolve(tokenizer, chat_format)
        self._gap, self._end = self._ending()
        eos = tokenizer.eos_token_id
        self.end_id: int = self._end
        bos: Any = tokenizer.bos_token_id
        self._first = [i for i in tokenizer("")["input_ids"] if i == bos]
        self.stop_ids: tuple[int, ...] = tuple(
            dict.fromkeys(i for i in (self._end, eos) if i is not None)
        )
        # Of the fields that came later, those that are set: older digests stay.
        extra = {n: v for n, v in chat_format if n in chat_format.later and v != _PLAIN[n]}
        self.digest = content_key(self.template, chat_format.system, *([extra] if extra else ()))

    def prompt_text(self, prompt: str, system: str | None = None) -> str:
        """Return the text up to where the answer begins, without an opening and learned vectors.

        So options are scored, to which no opening belongs.

        Args:
            prompt: What is asked; the format's text is put around it.
            system: This row's own system turn; None takes the format's.
        """
        return self._render(self._turn(prompt).replace(_SEAM, ""), system, None)

    def prompt_ids(self, prompt: str, system: str | None = None) -> list[int]:
        """Return the token ids up to where the model's own words begin."""
        return self._ids(self._asked(prompt, system))

    def encode(self, example: Example, max_length: int) -> Encoded:
        """Return a training row: the prompt, then the answer and its end token, both supervised.

        A plain row's prompt and answer are put together as they stand, between the tokens with which the
        tokenizer begins and ends a text.

        Args:
            example: Prompt and non-empty response.
            max_length: Longest row, in tokens; a longer answer is cut and then has no end token.

        Raises:
            DataError: when the response is empty, or the prompt leaves no room for an answer.
        """
        if not example.response.strip():
            raise DataError(
                f"encoding row {example.id} of source {example.source!r} for training: its response "
                "is empty; drop such rows or give the column that holds the answers"
            )
        opening = self.format.opening
        if example.plain:
            text, gap, first, end = example.prompt, "", self._first, self.stop_ids[-1]
        else:
            text, first, end = self._asked(example.prompt, example.system), [], self._end
            gap = self._gap if not opening else "" if opening.endswith("\n") else " "
        prompt = [*first, *self._ids(text)]
        if len(prompt) >= max_length:
            raise DataError(
                f"encoding row {example.id} of source {example.source!r}: the prompt has {len(prompt)} "
                f"tokens, the limit is {max_length} (the lower of `max_length` and the model's context) "
                "and the answer needs room too; drop the row, or raise `max_length` up to the context"
            )
        joint = [*first, *self._ids(text + gap + example.response)]
        # Some tokenizers merge across the seam; then the answer is tokenised alone, as it will be
        # when the model continues the prompt.
        seam = joint[: len(prompt)] == prompt
        answer = joint[len(prompt) :] if seam else self._ids(example.response)
        ids = [*prompt, *answer, end]
        return Encoded(ids[:max_length], len(prompt), len(ids) > max_length)

    def _turn(self, prompt: str) -> str:
        """Return the user's turn, with a mark where vectors stand; a prompt's own braces stay."""
        before, after = (part.replace(SOFT, _SEAM) for part in self.format.user.split(PROMPT))
        return before + prompt + after

    def _asked(self, prompt: str, system: str | None) -> str:
        text = self._render(self._turn(prompt), system, None)
        return text + self._gap + self.format.opening if self.format.opening else text

    def _ids(self, text: str) -> list[int]:
        soft = range(SOFT_IDS, SOFT_IDS + self.format.soft)
        ids: list[int] = []
        for index, part in enumerate(text.split(_SEAM)):
            # Templates write their own special tokens.
            ids += [*(soft if index else ()), *self._tokens(part)]
        return ids

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _render(self, prompt: str, system: str | None, answer: str | None) -> str:
        system = self.format.system if system is None else system
        turns = [{"role": "user", "content": prompt}]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        if system:
            with_system = self._apply(
                [{"role": "system", "content": system}, *turns], answer is None
            )
            if with_system is not None and system.strip() in with_system:
                return with_system
            turns[0]["content"] = f"{system}\n\n{prompt}"
        text = self._apply(turns, answer is None)
        if text is None:
            raise ConfigError(
                f"formatting a conversation: the chat template failed on roles "
                f"{[turn['role'] for turn in turns]}; set `chat.template` to `plain`, `alpaca` or a "
                "Jinja text that accepts a user turn followed by an assistant turn"
            )
        return text

    def _apply(self, turns: list[dict[str, str]], generation: bool) -> str | None:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    chat_template=self.template,
                    add_generation_prompt=generation,
                    tokenize=False,
                )
            )
        except TemplateError:  # Gemma's, for one, refuses a system turn
            return None

    def _ending(self) -> tuple[str, int]:
        """Return the text between prompt and answer, and the id that ends an answer."""
        head, full = self._render("question", None, None), self._render("question", None, _PROBE)
        gap, tail = "", ""
        if full.startswith(head) and _PROBE in full:
            gap, tail = full[len(head) :].split(_PROBE, 1)
            if gap.strip():
                gap = ""  # a template that writes reasoning marks; the answer follows the prompt as is
        special = set(self.tokenizer.all_special_ids) | set(
            self.tokenizer.get_added_vocab().values()
        )
        ids = self._ids(tail.strip()) if tail.strip() else []
        if ids and ids[0] in special:
            return gap, ids[0]
        eos: Any = self.tokenizer.eos_token_id
        if eos is None:
            raise CheckpointError(
                "reading the tokenizer: it has no end-of-sequence token and its chat template ends "
                "answers with none, so an answer could never end; set `eos_token` in "
                "tokenizer_config.json"
            )
        return gap, int(eos)


_PLAIN = dict(ChatFormat())


def _resolve(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> str:
    wanted = chat_format.template
    if wanted == "auto":
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if not own:
            raise CheckpointError(
                "reading the tokenizer: it has no chat template, and guessing one would install the "
                "defense under a format nobody uses; set `chat.template` to `plain`, `alpaca` or the "
                "model's own Jinja text"
            )
        return str(own)
    if wanted in TEMPLATES:
        return TEMPLATES[wanted]
    if "{{" in wanted or "{%" in wanted:
        return wanted
    raise ConfigError(
        f"reading `chat.template`: {near_miss('template', wanted, ['auto', *TEMPLATES])}; "
        "anything else must be Jinja text"
    )
