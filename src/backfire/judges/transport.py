"""One chat completion over HTTP, and what can be done about it when it fails.

The OpenAI-compatible protocol is one POST; the standard library sends it. What comes back is either a
`Reply` or a `CallError` that says whether to try again, to leave this row out, or to stop.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from email.message import Message
    from urllib.request import OpenerDirector

__all__ = ["CallError", "Kind", "Reply", "Transport"]

MAX_BYTES = 4 * 2**20
"""Longest reply that is read; a judge's is a few kilobytes."""

Kind = Literal["again", "row", "unclear", "spent", "setup"]
"""`again`: may work in a moment. `row`: this row cannot be judged, the next can. `unclear`: the request
or the reply was not understood; this row's fault or everybody's. `spent`: no quota is left. `setup`:
nothing can work before somebody changes something."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the endpoint answered: the part that is paid for."""

    text: str
    stop: str = ""
    """Why the reply ended: `stop`, `length`, `content_filter`, ..."""
    refusal: str = ""
    """The endpoint's own field for a refusal, where it is used."""
    model: str = ""
    """The model that answered, by its own account; an alias has been resolved here."""
    tokens_in: int = 0
    tokens_out: int = 0
    """As billed; 0 where the endpoint does not say."""


class CallError(Exception):
    """Why there is no reply."""

    def __init__(self, kind: Kind, reason: str, wait: float | None = None, *, busy: bool = False):
        """Keep the reason, and how many seconds the endpoint asked to wait, if it did."""
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.wait = wait
        self.busy = busy
        """Whether the endpoint is short of room for everybody, not for this call alone."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


class _Failed(BaseModel):
    """The many ways in which servers put an error; some send it with status 200."""

    error: dict[str, Any] | str | None = None
    message: str | None = None
    detail: Any = None

    def words(self) -> tuple[str, str]:
        """Return the machine's word for the error, in lower case, and the human's."""
        if isinstance(self.error, dict):
            inner = self.error.get("innererror")
            codes = [self.error.get("code"), self.error.get("type")]
            codes += [inner.get("code")] if isinstance(inner, dict) else []
            code = " ".join(str(c) for c in codes if c)
            return code.lower(), str(self.error.get("message") or self.error)
        return "", str(self.error or self.message or self.detail or "")


class Transport:
    """Sends requests to one endpoint; safe to use from several threads."""

    def __init__(self, base_url: str, key: str, timeout: float, *, direct: bool) -> None:
        """Open nothing yet.

        Args:
            base_url: Up to and without `/chat/completions`.
            key: Sent as a bearer token; empty: none is sent.
            timeout: Seconds one call may take in all.
            direct: Leave the environment's proxies out, as for a server on this machine.
        """
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._key = key
        self._timeout = timeout
        self._opener = _opener(direct)

    def __call__(self, body: bytes) -> Reply:
        """Send one request body (JSON) and return the reply.

        Raises:
            CallError: when there is none.
        """
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import Request

        headers = {"Content-Type": "application/json", "Accept": "application/json",
                   "User-Agent": "backfire"}  # fmt: skip
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        # The scheme was checked by the settings.
        request = Request(self._url, body, headers, method="POST")  # noqa: S310
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return self._reply(_read(response, deadline))
        except HTTPError as error:
            with error:
                raise self._refused(error.code, error.headers, _excerpt(error)) from None
        except TimeoutError:
            raise CallError("again", f"no reply within {self._timeout:g} s") from None
        except (OSError, HTTPException) as error:
            raise self._broken(error) from None

    def _reply(self, text: bytes) -> Reply:
        try:
            found = _Completion.model_validate_json(text)
        except ValidationError as error:
            if any(mistake["type"] == "json_invalid" for mistake in error.errors()):
                raise CallError("again", "the reply is not JSON") from None
            code, words = _failure(text)
            if words:
                raise self._sorted(200, code, words, None) from None
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise CallError("unclear", f"the reply is no chat completion (`{where}`)") from None
        if not found.choices:
            raise CallError("unclear", "the reply holds no choice")
        choice = found.choices[0]
        usage = found.usage or _Usage()
        return Reply(
            choice.message.content or "", choice.finish_reason or "", choice.message.refusal or "",
            found.model or "", usage.prompt_tokens, usage.completion_tokens,
        )  # fmt: skip

    def _refused(self, status: int, headers: Message, text: bytes) -> CallError:
        code, words = _failure(text)
        return self._sorted(status, code, words, headers)

    def _sorted(self, status: int, code: str, words: str, headers: Message | None) -> CallError:
        """Return what an error means for the work."""
        said = self._clean(words)
        if status == 200 and re.fullmatch(r"[45]\d\d\b.*", code):
            status = int(code[:3])  # gateways pass another server's status on in the body
        reason = f"HTTP {status}" + (f": {said}" if said else "")
        wait = _retry_after(headers) if headers is not None else None
        told = f"{code} {words}".lower()
        if status == 402 or "insufficient_quota" in code or "billing" in code:
            return CallError("spent", f"the quota is used up ({reason})")
        if re.search(r"content_?filter|content_policy|responsibleai", code):
            return CallError(
                "row", f"the endpoint's content filter stopped the question ({reason})"
            )
        if status == 413 or "context_length" in code or "maximum context length" in told:
            return CallError("row", f"the question is too long for the judge ({reason})")
        if status in (401, 404) or "invalid_api_key" in code:
            return CallError("setup", reason)
        if 300 <= status < 400:
            return CallError(
                "setup", f"{reason}; redirects are not followed, they could take the key along"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return CallError("again", reason, wait, busy=status in (429, 503, 529))
        if status == 200:
            return CallError("again", f"an error in place of a reply: {said}")
        return CallError("unclear", reason)

    def _broken(self, error: Exception) -> CallError:
        import ssl

        cause = getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            return CallError("again", f"no reply within {self._timeout:g} s")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CallError("setup", f"its certificate is not trusted ({cause.verify_message})")
        words = self._clean(str(cause))
        return CallError("again", f"the connection failed ({words or type(cause).__name__})")

    def _clean(self, words: str) -> str:
        """Return the start of a server's words on one line, without the key if they hold it."""
        if self._key:
            words = words.replace(self._key, "[key]")
        line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
        return line if len(line) <= 300 else f"{line[:300]}…"


def _opener(direct: bool) -> OpenerDirector:
    from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener

    class Stay(HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    return build_opener(Stay, *([ProxyHandler({})] if direct else []))


def _read(response: Any, deadline: float) -> bytes:
    """Return the whole body; a timeout on each read alone would let a slow drip go on for ever."""
    parts = []
    size = 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > MAX_BYTES:
            raise CallError("unclear", f"the reply is longer than {MAX_BYTES:,} bytes")
    return b"".join(parts)


def _excerpt(response: Any) -> bytes:
    """Return the beginning of an error's body; nothing when it cannot be read."""
    from http.client import HTTPException

    try:
        return bytes(response.read(65536))
    except (OSError, HTTPException):
        return b""


def _failure(text: bytes) -> tuple[str, str]:
    try:
        return _Failed.model_validate_json(text).words()
    except ValidationError:
        return "", text.decode("utf-8", "replace")


def _retry_after(headers: Message) -> float | None:
    """Return the seconds a server asks to wait; it may give a number or a date."""
    from email.utils import parsedate_to_datetime

    told = headers.get("Retry-After", "").strip()
    if not told:
        return None
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
