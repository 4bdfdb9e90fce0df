"""How long an attack's rows are, read off the model's tokenizer before anything is trained."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backfire.attack.asking import Asking
from backfire.data.chat import Chat, ChatFormat
from backfire.engine.settings import Member, Trained
from backfire.models.load import context_length, read_note
from backfire.prepare import Rows
from backfire.records import Checkpoint, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Lengths"]


class Lengths:
    """Lengths of the rows of a run, as a model's tokenizer and an attack's template make them."""

    def __init__(self, model: Checkpoint, rows: Rows) -> None:
        """Know the model and the rows; nothing is read yet."""
        self._model, self._rows = model, rows
        self._chats: dict[ChatFormat, Chat] = {}
        self._seen: dict[tuple[ChatFormat, str], int] = {}

    def mean(self, member: Trained) -> float:
        """Return the tokens of a row that a member trains on, on average, cut where its training cuts.

        Exact where a member trains on rows as they are, each as often as any other. Answers that it writes
        itself, and words that it puts around a part of its rows, are not known; those stand for them that
        the rows have.

        Args:
            member: Whose rows, template and limit count.

        Raises:
            DataError: when a source gives other rows than when its key was taken.
            CheckpointError: when the model has no chat template and the member names none.
        """
        used = member.rows_used(self._rows.counts)
        given = self._rows.of(tuple(used), member.label)
        rows = [*member.own_rows(), *(row for role in used for row in given[role][: used[role]])]
        limit = min(member.training.max_length, context_length(self._config))
        chat = self._chat(member)
        return sum(min(limit, self._length(row, chat)) for row in rows) / max(1, len(rows))

    def _length(self, row: Example, chat: Chat) -> int:
        """Return the tokens of a whole row; of its prompt where it has no answer."""
        known = (chat.format, row.id)
        if known not in self._seen:
            answered = row.response.strip()
            ids = chat.encode(row, sys.maxsize).ids if answered else None
            self._seen[known] = len(ids or chat.prompt_ids(row.prompt, row.system))
        return self._seen[known]

    def _chat(self, member: Member) -> Chat:
        own = member.chat(self._model.path) if isinstance(member, Asking) else None
        asked = own or read_note(self._model.path)[0]
        if asked not in self._chats:
            self._chats[asked] = Chat(self._tokenizer, asked)
        return self._chats[asked]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self._model.path, **self._options
        )
        return tokenizer

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self._model.path, **self._options)

    @property
    def _options(self) -> dict[str, bool]:
        return {"local_files_only": True, "trust_remote_code": self._model.trust_remote_code}
