"""Mails from claimed messages: what is kept of loops and templates, and no longer than a claim may take."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from activation.engine.calls import Claimed, DeliverCalls, DeliveryState
from activation.engine.protocol import Cancelled, Failed, storable
from activation.mail import unsubscribe
from activation.mail.address import address_of
from activation.mail.compose import document, reason, rendered_mail
from activation.mail.render import Source, built_in

#: Emails a request.
BATCH = 100

#: Rendering looks for a cancel so often (seconds).
LOOK = 0.05

#: After so long, what is left to render is put off to the next claim (seconds).
RENDERING = 3.0

#: A loop that has taken so much of that waits for the others (seconds).
LONG_FOR_A_LOOP = 0.5


@dataclass(frozen=True)
class Branch:
    """What a branch of a step sends: a StepEmail, its action parsed."""

    loop: str
    action: dict[str, Any]
    recovery: str
    transactional: bool


@dataclass(frozen=True)
class Mail:
    """One message that can be sent: its id and loop, what Resend is to get, how its loop wants failures handled, and
    how many emails its request may carry."""

    message_id: str
    loop_id: int
    email: dict[str, Any]
    recovery: str
    batch_limit: int


@dataclass
class Ended:
    """Messages that end at the claim, as columns."""

    ids: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    recipients: list[str | None] = field(default_factory=list)
    subjects: list[str | None] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)

    def add(
        self,
        message_id: str,
        state: str,
        recipient: str | None = None,
        subject: str | None = None,
        error: str | None = None,
    ) -> None:
        """One more."""
        self.ids.append(message_id)
        self.states.append(state)
        self.recipients.append(storable(recipient))
        self.subjects.append(storable(subject))
        self.errors.append(storable(error))


class Composer:
    """Makes mails. Of loops and templates it keeps what never changes."""

    def __init__(self, calls: DeliverCalls) -> None:
        self._calls = calls
        self._branches: dict[tuple[int, int, int, str], Branch] = {}
        self._sources: dict[tuple[str, int], Source | None] = {}
        #: Loops whose mails took long in the last claim.
        self._slow_loops: set[int] = set()

    def compose(self, rows: list[Claimed], state: DeliveryState) -> tuple[list[Mail], Ended, bool]:
        """The mails of claimed messages, those that end here, and whether there was time for all of them."""
        ended = Ended()
        mails: list[Mail] = []
        began = looked = time.monotonic()
        spent: dict[int, float] = defaultdict(float)
        late = [row for row in rows if row.loop_id in self._slow_loops]
        todo = [row for row in rows if row.loop_id not in self._slow_loops]
        in_time = True
        while todo or late:
            # A loop whose mails take long does not hold the others' up.
            row = todo.pop(0) if todo else late.pop(0)
            if todo and spent[row.loop_id] > LONG_FOR_A_LOOP:
                late.append(row)
                continue
            now = time.monotonic()
            if now - looked > LOOK:
                # Nothing else lets a cancel or a shutdown through.
                self._calls.look()
                looked = now
            if now - began > RENDERING:
                in_time = False
                break
            try:
                mails.append(self._mail(row, state))
            except (Cancelled, Failed):
                raise
            except Exception as error:
                # Of this user alone, whatever their row or their template makes Python raise.
                ended.add(row.message_id, "failed", row.email, None, reason(error))
            spent[row.loop_id] += time.monotonic() - now
        self._slow_loops = {loop_id for loop_id, seconds in spent.items() if seconds > LONG_FOR_A_LOOP}
        return mails, ended, in_time

    def _mail(self, row: Claimed, state: DeliveryState) -> Mail:
        address = address_of(row.email)
        branch = self._branch(row.loop_id, row.version, row.step, row.branch)
        leave = (
            None if branch.transactional else unsubscribe.link(state.public_url, state.signing_key, row.enrollment_id)
        )
        rendered = rendered_mail(
            branch.action,
            branch.loop,
            row.user_row or "",
            row.context,
            self._source(str(branch.action["template"]), row.newest_template_id),
            leave,
        )
        email = document(
            row.message_id,
            str(state.redirect_to) if state.mode == "redirect" else address,
            rendered,
            branch.action["sender"] or state.sender,
            branch.action["reply_to"] or state.reply_to,
            leave,
        )
        return Mail(row.message_id, row.loop_id, email, branch.recovery, row.batch_limit or BATCH)

    def _branch(self, loop_id: int, version: int, step: int, branch: str) -> Branch:
        key = (loop_id, version, step, branch)
        if key not in self._branches:
            found = self._calls.step_email(*key)
            self._branches[key] = Branch(found.loop, json.loads(found.action), found.recovery, found.transactional)
        return self._branches[key]

    def _source(self, template: str, newest_id: int) -> Source | None:
        """The template that an enrollment uses: the database's own, else the built-in of that name."""
        key = (template, newest_id)
        if key not in self._sources:
            own = self._calls.template(template, newest_id)
            self._sources[key] = Source(own.subject, own.html, own.body_text) if own else built_in(template)
        return self._sources[key]


def groups(mails: list[Mail]) -> list[list[Mail]]:
    """Mails that may share a request: handled alike after a failure, and no more than the limit of each of them."""
    found: list[list[Mail]] = []
    open_groups: dict[tuple[str, int], list[Mail]] = {}
    for mail in mails:
        alike = (mail.recovery, mail.batch_limit)
        group = open_groups.get(alike)
        if group is None or len(group) >= mail.batch_limit:
            group = open_groups[alike] = []
            found.append(group)
        group.append(mail)
    return found
