"""What can go wrong, as types: the type of an exception decides what happens next, nobody parses its text."""

from __future__ import annotations

#: Where in a document something stands: keys and numbers of items, from the outside in.
Path = tuple[str | int, ...]


def spelled(path: Path) -> str:
    """A path for people: steps[1].condition.timeout."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def shortened(text: str, most: int) -> str:
    """The text, with an ellipsis in place of what is too long."""
    return text if len(text) <= most else text[: most - 1] + "…"


class Refusal(Exception):
    """A person's input that cannot be accepted. Shown by SQL as an error with these parts.

    message: a sentence that names the user's object. detail, hint: more, and what to do. code: an SQLSTATE. What is
    quoted in them may be of any length, so they end where nobody reads on. path: the key that it concerns, of a
    document; () where that is all of it.
    """

    def __init__(self, message: str, *, hint: str = "", detail: str = "", code: str = "22023", path: Path = ()) -> None:
        super().__init__(message)
        self.message = shortened(message, 500)
        self.hint = shortened(hint, 1000)
        self.detail = shortened(detail, 2000)
        self.code = code
        self.path = path

    def as_dict(self) -> dict[str, str]:
        """The parts, as SQL takes them."""
        return {"message": self.message, "detail": self.detail, "hint": self.hint, "code": self.code}


class RenderError(Exception):
    """A message that cannot be made from its template and the user's row as it is now."""


class KeyUnavailable(Exception):
    """The API key's reference leads to nothing usable. The text never holds any part of a key."""


class DeliveryError(Exception):
    """A try that did not end with Resend accepting the request.

    outcome: the word under which `_record` writes it down. status: HTTP status, None without an answer.
    name: Resend's error name. retry_after: seconds the provider asks us to wait, None if it named none.
    """

    outcome = "unanswered"

    def __init__(
        self, text: str, *, status: int | None = None, name: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(text)
        self.text = text
        self.status = status
        self.name = name
        self.retry_after = retry_after


class Transient(DeliveryError):
    """Worth another try."""


class Refused(Transient):
    """Certainly not accepted, and no fault of the message: it goes back to the queue and is made anew."""

    outcome = "refused"


class Unanswered(Transient):
    """No usable answer; perhaps accepted. Repeated byte for byte under the same key; no try is spent."""

    outcome = "unanswered"


class Erred(Transient):
    """Answered by a server error; perhaps accepted. Repeated byte for byte under the same key; a try is spent."""

    outcome = "erred"


class Paused(Refused):
    """Certainly not accepted, and nothing will be for a while: for retry_after seconds, with until_midnight until 00:00
    UTC (when a daily quota begins anew), with neither until somebody acts."""

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        name: str | None = None,
        retry_after: float | None = None,
        until_midnight: bool = False,
    ) -> None:
        super().__init__(text, status=status, name=name, retry_after=0.0 if retry_after is None else retry_after)
        self.pause = retry_after
        self.until_midnight = until_midnight


class Terminal(DeliveryError):
    """Rejected for what it contains: trying again would be refused each time."""

    outcome = "terminal"


class Unknowable(DeliveryError):
    """Resend has seen this key with another body: what became of that one cannot be known from here."""

    outcome = "unknowable"
