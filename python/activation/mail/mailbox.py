"""A mailbox, as in From and Reply-To: a name and an address, read and quoted by the standard library. Pure."""

from __future__ import annotations

from email import policy
from email.headerregistry import Address, AddressHeader
from email.utils import quote
from typing import cast

from activation.errors import Refusal
from activation.mail.lines import LINE_BREAK, UNSEEN

_HINT = "Write 'Acme <hello@acme.dev>' or 'hello@acme.dev'."


def mailbox(what: str, text: str) -> str:
    """The mailbox as it goes to the provider, with quotes where its name needs them. what: whose it is, for messages.

    Raises Refusal unless it is exactly one.
    """
    if LINE_BREAK.search(text) or UNSEEN.search(text):
        raise Refusal(f"{what} holds a line break or a control character", hint="A mailbox is one line of plain text.")
    shown = f'{what} "{text[:100]}"'
    if "{{" in text or "{%" in text:
        raise Refusal(
            f"{shown} holds Liquid, which is not rendered here",
            hint="It is the same for everybody who gets this mail: name one mailbox.",
        )
    if len(text) > 320:
        raise Refusal(f"{shown} is longer than 320 characters", hint=_HINT)
    addresses, groups = _parsed(_with_quotes(text.strip()))
    if groups or len(addresses) > 1:
        raise Refusal(
            f"{shown} is more than one mailbox",
            hint='Name one. A name that holds < > @ or " goes in quotes: \'"Ada @ Acme" <hello@acme.dev>\'.',
        )
    if not addresses:
        raise Refusal(f"{shown} is not an address", hint=_HINT)
    if LINE_BREAK.search(addresses[0].display_name) or UNSEEN.search(addresses[0].display_name):
        # An encoded word (RFC 2047) can hold anything.
        raise Refusal(f"{what} holds a line break or a control character", hint="A mailbox is one line of plain text.")
    return str(addresses[0])


def _with_quotes(text: str) -> str:
    """The text with its name quoted: as it is, `Acme, Inc.` is read as two mailboxes, and `(EU)` as a remark."""
    name, bracket, address = text.rpartition("<")
    name = name.strip()
    if bracket and not set(name) & set('<>@"') and set(name) & set("()[],:;.\\"):
        return f'"{quote(name)}" <{address}'
    return text


def _parsed(text: str) -> tuple[list[Address], bool]:
    """The addresses if all is well with them, more than one if there are more, and whether they are a group."""
    try:
        header = cast(AddressHeader, policy.default.header_factory("To", text))
        addresses = list(header.addresses)
    except Exception:
        # At `a@` for instance it raises what it happens to run into.
        return [], False
    if any(group.display_name is not None for group in header.groups):
        return addresses, True
    if len(addresses) == 1 and (
        header.defects  # type: ignore[attr-defined]
        or not addresses[0].username
        or not addresses[0].domain
    ):
        return [], False
    return addresses, False
