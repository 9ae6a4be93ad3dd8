"""Resend's rules for the body of one email, and for a batch of them."""

from __future__ import annotations

import datetime
import re
from typing import Any

from .messages import ApiError, invalid, missing

MAX_RECIPIENTS = 50
MAX_BATCH = 100
MAX_TAGS = 75
MAX_ATTACHMENT_BYTES = 40 * 1024 * 1024
MAX_SCHEDULE = datetime.timedelta(days=30)
BLOCKED_DOMAINS = frozenset({"example.com", "test.com"})
RESERVED_VARIABLES = frozenset(
    {"FIRST_NAME", "LAST_NAME", "EMAIL", "UNSUBSCRIBE_URL", "RESEND_UNSUBSCRIBE_URL", "contact", "this"}
)

# No part of these patterns can match the same text in two ways, so that a long bad address costs linear time.
_ADDRESS = re.compile(r"[^\s@<>()\[\],;:\\\"]{1,64}@((?:[\w-]+\.)+[\w-]{2,})")
_NAMED = re.compile(r"[^<>\r\n]*<([^<>]+)>\s*")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,256}")
_VARIABLE = re.compile(r"[A-Za-z0-9_]{1,50}")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_email(email: object) -> dict[str, Any]:
    """Return the email as a dict, or raise the error Resend would answer. Unknown fields are let through."""
    if not isinstance(email, dict):
        raise invalid("Each email must be a JSON object.")
    # A null is the same as an absent field.
    given = {name: value for name, value in email.items() if value is not None}
    template = given.get("template")
    for field in ("from", "subject"):
        if field not in given and template is None:
            raise missing(f"`{field}`")
    if "to" not in given:
        raise missing("`to`")
    if "from" in given:
        _check_addresses("from", given["from"], several=False)
    _check_addresses("to", given["to"])
    for field in ("cc", "bcc", "reply_to"):
        if field in given:
            _check_addresses(field, given[field])
    for field in ("subject", "html", "text", "topic_id"):
        if field in given and not isinstance(given[field], str):
            raise invalid(f"Invalid `{field}` field. It must be a string.")
    if template is not None:
        _check_template(template, given)
    elif "html" not in given and "text" not in given:
        raise missing("`html` or `text`")
    if "headers" in given:
        _check_headers(given["headers"])
    if "tags" in given:
        _check_tags(given["tags"])
    if "scheduled_at" in given:
        _check_schedule(given["scheduled_at"])
    return given


def check_attachments(email: dict[str, Any]) -> None:
    """Attachments of a single email; a batch loses its attachments unchecked."""
    attachments = email.get("attachments", [])
    if not isinstance(attachments, list):
        raise ApiError(422, "invalid_attachment", "Invalid `attachments` field. It must be an array.")
    size = 0
    for attachment in attachments:
        if not isinstance(attachment, dict) or not ("content" in attachment or "path" in attachment):
            raise ApiError(422, "invalid_attachment", "Attachment must have either a `content` or `path`.")
        content = attachment.get("content")
        size += len(content) if isinstance(content, (str, list)) else 0
    if size > MAX_ATTACHMENT_BYTES:
        raise ApiError(422, "invalid_attachment", "The attachments of an email may not exceed 40 MB.")


def check_batch(batch: object) -> list[object]:
    """A batch's frame: an array of 1 to 100 emails, which are not looked at."""
    if not isinstance(batch, list):
        raise invalid("The batch must be a JSON array of emails.")
    if not 1 <= len(batch) <= MAX_BATCH:
        raise invalid(f"A batch must contain between 1 and {MAX_BATCH} emails; this one has {len(batch)}.")
    return batch


def _check_addresses(field: str, value: object, several: bool = True) -> None:
    addresses = value if several and isinstance(value, list) else [value]
    if field == "to" and not 1 <= len(addresses) <= MAX_RECIPIENTS:
        raise invalid(f"Invalid `to` field. It must have between 1 and {MAX_RECIPIENTS} recipients.")
    for address in addresses:
        domain = _domain(address) if isinstance(address, str) else None
        if domain is None:
            raise invalid(
                f"Invalid `{field}` field. The email address needs to follow the `email@example.com` "
                "or `Name <email@example.com>` format."
            )
        if domain in BLOCKED_DOMAINS and field in ("to", "cc", "bcc"):
            raise invalid(
                f"Invalid `{field}` field. Please use our testing email address instead of domains like `{domain}`."
            )


def _domain(address: str) -> str | None:
    """The domain of `a@b.c` or `Name <a@b.c>` in lower case; None if the address has neither form."""
    named = _NAMED.fullmatch(address)
    match = _ADDRESS.fullmatch(named.group(1) if named else address)
    return match.group(1).lower() if match else None


def _check_template(template: object, email: dict[str, Any]) -> None:
    if any(field in email for field in ("html", "text", "react")):
        raise invalid("`template` can't be combined with `html`, `text` or `react`.")
    if not isinstance(template, dict) or not isinstance(template.get("id"), str) or not template["id"]:
        raise invalid("Invalid `template` field. It must be an object with an `id`.")
    variables = template.get("variables") or {}
    if not isinstance(variables, dict):
        raise invalid("Invalid `template.variables` field. It must be an object.")
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            raise invalid(
                f"Invalid template variable `{name}`. Names have at most 50 ASCII letters, numbers and underscores."
            )
        if name in RESERVED_VARIABLES:
            raise invalid(f"Invalid template variable `{name}`. The name is reserved.")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 2**53 - 1
        if not is_number and not (isinstance(value, str) and len(value) <= 2000):
            raise invalid(
                f"Invalid template variable `{name}`. "
                "Its value must be a string of at most 2000 characters or a number."
            )


def _check_headers(headers: object) -> None:
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise invalid("Invalid `headers` field. It must be an object of strings.")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or "\r" in value or "\n" in value:
            raise invalid("Invalid `headers` field. A header has a bad name or a line break in its value.")


def _check_tags(tags: object) -> None:
    if not isinstance(tags, list) or len(tags) > MAX_TAGS:
        raise invalid(f"Invalid `tags` field. It must be an array of at most {MAX_TAGS} tags.")
    for tag in tags:
        if not isinstance(tag, dict):
            raise invalid("Invalid `tags` field. A tag must be an object with a `name` and a `value`.")
        for part in ("name", "value"):
            text = tag.get(part)
            if text is None:
                raise missing(f"`tags.{part}`")
            if not isinstance(text, str) or not _TAG.fullmatch(text):
                raise invalid(
                    "Tags should only contain ASCII letters, numbers, underscores, or dashes, "
                    "and at most 256 of them in a name or a value."
                )


def _check_schedule(value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise invalid("Invalid `scheduled_at` field. It must be a date in ISO 8601 or natural language.")
    try:
        due = datetime.datetime.fromisoformat(value)
    except ValueError:
        return  # Natural language ("in 1 min") is taken as it is.
    if due.tzinfo is None:
        due = due.replace(tzinfo=datetime.UTC)
    if due > datetime.datetime.now(datetime.UTC) + MAX_SCHEDULE:
        raise invalid("Invalid `scheduled_at` field. An email can be scheduled at most 30 days ahead.")
