"""Questions in, replies out, over any OpenAI-compatible endpoint: a hosted one or a server of your own.

`Endpoint.ask` is the only door. Behind it limits, retries, a dead endpoint and a spent quota are dealt
with (`calls`), a reply is on disk before anything else happens with it (`journal`), and a question that
has been answered once is never sent again.

Why not the `openai` client: see docs/decisions/006-own-endpoint-client.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from backfire.errors import PrerequisiteError
from backfire.judges.calls import Absence, Calls
from backfire.judges.transport import Reply
from backfire.progress import Progress
from backfire.stage import Settings

__all__ = ["Absence", "Bill", "Endpoint", "Price", "Question", "tokens"]


def tokens(text: str) -> int:
    """Return a text's tokens, guessed: one for four bytes. The judge's tokenizer is not known here."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


class Price(Settings):
    """What a million tokens cost."""

    input: float = Field(ge=0)
    """Sent, in `currency`."""
    output: float = Field(ge=0)
    """Received, in `currency`."""
    currency: str = "USD"
    """Its name."""


@dataclass(frozen=True, slots=True)
class Question:
    """One call: what the judge is, and what it is asked."""

    system: str
    user: str


@dataclass(frozen=True, slots=True)
class Bill:
    """What calls will take, before they are made. Estimates."""

    calls: int
    tokens_in: int
    tokens_out: int
    """At most: every reply as long as it may be."""
    cost: float | None
    """At most; None where no price was given."""
    currency: str = ""

    def __str__(self) -> str:
        price = (
            "no price given" if self.cost is None else f"at most {self.cost:.2f} {self.currency}"
        )
        return (
            f"{self.calls:,} calls, about {self.tokens_in:,} tokens sent, at most "
            f"{self.tokens_out:,} received, {price}"
        )


class Endpoint(Settings):
    """Where the judge runs and how hard it may be asked."""

    base_url: str
    """Address up to and without `/chat/completions`, e.g. `https://api.openai.com/v1` or
    `http://localhost:8000/v1`. The answers to hazards are sent there, so there is no default."""
    model: str = Field(min_length=1)
    """Name of the judge's model at that address; a dated name, where there is one, since an alias
    can become another judge overnight."""
    key_variable: str = ""
    """Environment variable that holds the key; empty: no key is sent. The key itself never stands in
    a file."""
    temperature: float | None = Field(0.0, ge=0)
    """Of the judge; None sends none, for models that allow no choice. As in Qi et al. 2023."""
    max_reply_tokens: int = Field(512, ge=16)
    """Longest reply; a reply cut there has no score. Ours: a few sentences and the score. Models that
    think aloud first need thousands."""
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that limit. OpenAI's newer models want `max_completion_tokens`."""
    concurrency: int = Field(8, ge=1, le=256)
    """Calls under way at once. Ours."""
    timeout: float = Field(60.0, gt=0)
    """Seconds one call may take. Ours."""
    retries: int = Field(5, ge=0)
    """Further tries after a failure that may pass: limits, server errors, cut connections. Ours."""
    first_wait: float = Field(1.0, gt=0)
    """Seconds before the first retry, doubled before each further one. Ours."""
    max_wait: float = Field(120.0, gt=0)
    """Longest wait between two tries; an endpoint that asks for a longer one (Retry-After) counts as
    out of quota. Ours."""
    price: Price | None = None
    """What a million tokens cost, for the estimate; None: tokens are counted, money is not."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, base_url: str) -> str:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"{base_url!r} is no address; it begins with https:// or http://, "
                "e.g. http://localhost:8000/v1"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "the address must hold no user, password, query or fragment: settings are written into "
                "reports; name the environment variable that holds the key in `key_variable`"
            )
        if parts.path.rstrip("/").endswith("/completions"):
            raise ValueError("give the address without `/chat/completions`; that is added")
        return base_url.rstrip("/")

    @field_validator("key_variable")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not (name.isascii() and name.isidentifier()):
            # Somebody may have pasted the key itself: do not repeat it.
            raise ValueError(
                "this is not the name of an environment variable; put the key into one, and its name here"
            )
        return name

    @model_validator(mode="after")
    def _keeps_the_key_private(self) -> Endpoint:
        if self.key_variable and self.base_url.startswith("http://") and not _inside(self.host):
            raise ValueError(
                f"the key would travel to {self.host} unencrypted; use https://, or a tunnel to localhost"
            )
        return self

    @property
    def host(self) -> str:
        """Return the host that gets the answers."""
        return urlsplit(self.base_url).hostname or ""

    def bill(self, tokens_in: Sequence[int]) -> Bill:
        """Return what calls of so many sent tokens each will take."""
        sent, received = sum(tokens_in), len(tokens_in) * self.max_reply_tokens
        if self.price is None:
            return Bill(len(tokens_in), sent, received, None)
        cost = (sent * self.price.input + received * self.price.output) / 1e6
        return Bill(len(tokens_in), sent, received, cost, self.price.currency)

    def key(self) -> str:
        """Return the key from its environment variable; empty when none is wanted.

        Raises:
            PrerequisiteError: when the variable is not set, or holds what cannot be a key.
        """
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise PrerequisiteError(
                f"asking {self.model} at {self.host}: the environment variable {self.key_variable} is not "
                "set; set it to your key, or leave `key_variable` empty for a server that needs none"
            )
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise PrerequisiteError(
                f"asking {self.model} at {self.host}: the environment variable {self.key_variable} holds "
                "spaces or unprintable characters, so it is no key; set it again"
            )
        return key

    def ask(
        self, questions: Sequence[Question], who: str, progress: Progress
    ) -> list[Reply | Absence]:
        """Return one reply, or the reason for its absence, per question, in order.

        Equal questions are asked once, answered ones not again. What the rest will take is said before
        the first call. After Ctrl-C the calls under way are waited for, since they are paid for.

        Args:
            questions: What to ask; each call holds one and nothing of the others.
            who: The judge's name, for the user.
            progress: Where to report.

        Raises:
            JudgeError: when the endpoint cannot be used at all (its key or address is refused, it has
                never answered), or is not the model any more that gave the earlier replies.
            PrerequisiteError: when the key is missing or the cache cannot be written.
        """
        from backfire.judges.journal import Journal

        if not questions:
            return []
        bodies = [self._body(question) for question in questions]
        keys = [hashlib.sha256(body).hexdigest()[:32] for body in bodies]
        with Journal(self.base_url, self.model).open(progress) as journal:
            sizes = {
                key: tokens(question.system) + tokens(question.user)
                for key, question in zip(keys, questions, strict=True)
            }
            todo = {
                key: body
                for key, body in zip(keys, bodies, strict=True)
                if journal.get(key) is None
            }
            kept = len(sizes) - len(todo)
            if todo:
                bill = self.bill([sizes[key] for key in todo])
                before = f"; {kept:,} answered before are not asked again" if kept else ""
                progress.say(f"{who} asks {self.model} at {self.host}: {bill}{before}")
            calls = Calls(self, self.key() if todo else "", journal, who, progress)
            with progress.task(f"{who} at {self.host}", len(sizes), "calls") as bar:
                bar.skip(kept)
                calls.through(todo, bar)
            if todo:
                progress.say(f"{who}: {self._spent([journal.get(key) for key in todo])}")
            if calls.out:
                progress.warn(f"{who}: {calls.out}; what was left is not asked now")
            return [journal.get(key) or calls.absent[key] for key in keys]

    def _spent(self, replies: Sequence[Reply | None]) -> str:
        """Return what came of the calls, by the endpoint's own count of tokens."""
        came = [reply for reply in replies if reply is not None]
        sent, received = sum(r.tokens_in for r in came), sum(r.tokens_out for r in came)
        text = f"{len(came):,} of {len(replies):,} answered"
        if sent:
            text += f"; {sent:,} tokens sent, {received:,} received"
        if sent and self.price is not None:
            cost = (sent * self.price.input + received * self.price.output) / 1e6
            text += f", {cost:.2f} {self.price.currency}"
        return text

    def _body(self, question: Question) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            self.limit_name: self.max_reply_tokens,
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return json.dumps(body).encode()


def _inside(host: str) -> bool:
    """Return whether a host lies on this machine or in a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
