"""The engine's database in memory: what a deliverer and a detector ask is answered by Python, without a server.

A transaction is kept to: what was not committed is gone after rollback(). A test that wants a call to raise says so in
`raising`, by the name of a method that calls _note(): each call takes the next error of its list.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from activation.engine.calls import (
    Calls,
    Claimed,
    Cursors,
    DeliverCalls,
    DeliveryState,
    DetectCalls,
    Due,
    Permit,
    Question,
    Repeat,
    StepEmail,
    Sweep,
    Template,
)


class _Memory(Calls):
    """What is committed, what the open transaction has made of it, and the calls in their order."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self._committed = copy.deepcopy(data)
        self.calls: list[str] = []
        self.raising: dict[str, list[BaseException]] = {}

    def commit(self) -> None:
        self._note("commit")
        self._committed = copy.deepcopy(self.data)

    def rollback(self) -> None:
        self.calls.append("rollback")
        self.data = copy.deepcopy(self._committed)

    @contextlib.contextmanager
    def subtransaction(self) -> Iterator[None]:
        before = copy.deepcopy(self.data)
        try:
            yield
        except BaseException:
            self.data = before
            raise

    def look(self) -> None:
        self._note("look")

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if self.raising.get(name):
            raise self.raising[name].pop(0)


@dataclass
class Message:
    """A message as the database has it."""

    email: str | None
    row: str = '{"id": "1"}'
    loop_id: int = 1
    state: str = "queued"
    error: str | None = None
    resend_id: str | None = None
    request_id: str | None = None


@dataclass
class Request:
    """A stored request. open: its outcome is not known yet."""

    endpoint: str
    body: str
    message_ids: list[str]
    lease_id: str | None
    open: bool = True
    outcomes: list[str] = field(default_factory=list)


@dataclass
class Mailing:
    """The state of delivery. permits: how many are left; None without a limit."""

    messages: dict[str, Message] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    permits: int | None = None
    paused: str | None = None
    paused_until: str | None = None
    paused_key: str | None = None


class MemoryDelivery(DeliverCalls, _Memory):
    """A deliverer's database. One loop with one step, whose mail greets nobody."""

    data: Mailing

    def __init__(self, url: str, *addresses: str | None, mode: str = "live", permits: int | None = None) -> None:
        messages = {f"00000000-0000-0000-0000-{n:012}": Message(email) for n, email in enumerate(addresses, 1)}
        super().__init__(Mailing(messages, permits=permits))
        self._settings = {"resend_url": url, "mode": mode}
        self.action = '{"template": "note", "subject": "", "personalization": {}, "sender": null, "reply_to": null}'

    def states(self) -> dict[str | None, str]:
        """Where each address's message is."""
        return {message.email: message.state for message in self._committed.messages.values()}

    def lock_permits(self, wanted: int, ahead: float) -> list[Permit]:
        self._note("lock_permits")
        if self.data.permits is None:
            return [Permit(0, 0.0)] * wanted
        return [Permit(n, 0.0) for n in range(1, min(wanted, self.data.permits) + 1)]

    def take_permits(self, numbers: list[int], lease: float) -> None:
        self._note("take_permits")
        assert self.data.permits is not None
        self.data.permits -= len(numbers)

    def free_permit(self, number: int, left_at: float, finished_at: float | None) -> None:
        self._note("free_permit")
        assert self.data.permits is not None
        self.data.permits += 1

    def stored_secret(self, name: str) -> str | None:
        return "re_test"

    def disarmed(self, host: str) -> str | None:
        return None

    def due(self) -> bool:
        return bool(self._queue()) or any(request.open and not request.lease_id for request in self._requests())

    def state(self, host: str, cursors: Cursors) -> DeliveryState:
        self._note("state")
        return DeliveryState(
            mode=self._settings["mode"],
            redirect_to=None,
            disarmed=None,
            paused=self.data.paused,
            paused_key=self.data.paused_key,
            sender="Acme <hello@acme.dev>",
            reply_to=None,
            resend_url=self._settings["resend_url"],
            api_key="secret:resend",
            public_url=None,
            signing_key=None,
            slow=False,
            due=self.due(),
            expired=False,
        )

    def expire_requests(self) -> None:
        raise NotImplementedError

    def end_pause(self) -> None:
        self.data.paused = None

    def claim_requests(self, lease_id: str, lease: float, wanted: int) -> list[Repeat]:
        self._note("claim_requests")
        found = [(id_, r) for id_, r in self.data.requests.items() if r.open and not r.lease_id][:wanted]
        for _, request in found:
            request.lease_id = lease_id
        return [Repeat(id_, request.endpoint, request.body) for id_, request in found]

    def claim_messages(self, wanted: int, cursors: Cursors) -> list[Claimed]:
        self._note("claim_messages")
        return [
            Claimed(id_, message.loop_id, 1, 1, "action", "2030-01-07", None, message.email, message.row, 1, None, n)
            for n, (id_, message) in enumerate(self._queue())
            if message.loop_id not in cursors or ("2030-01-07", id_) > cursors[message.loop_id]
        ][:wanted]

    def step_email(self, loop_id: int, version: int, step: int, branch: str) -> StepEmail:
        return StepEmail("welcome", self.action, "{}", True)

    def template(self, name: str, newest_id: int) -> Template | None:
        return Template("Hello", None, "Hello.")

    def store_request(
        self,
        request_id: str,
        endpoint: str,
        body: str,
        members: list[str],
        recipients: list[str | None],
        subjects: list[str | None],
        mode: str,
        recovery: str,
        lease_id: str,
        lease: float,
    ) -> None:
        self._note("store_request")
        self.data.requests[request_id] = Request(endpoint, body, members, lease_id)
        for id_ in members:
            self.data.messages[id_].state = "sending"
            self.data.messages[id_].request_id = request_id

    def finish_messages(
        self,
        message_ids: list[str],
        states: list[str],
        recipients: list[str | None],
        subjects: list[str | None],
        errors: list[str | None],
    ) -> None:
        self._note("finish_messages")
        for id_, state, error in zip(message_ids, states, errors, strict=True):
            self.data.messages[id_].state = state
            self.data.messages[id_].error = error

    def set_message_aside(self, message_id: str, error: str | None) -> None:
        self._note("set_message_aside")
        self.data.messages[message_id].state = "failed"
        self.data.messages[message_id].error = error

    def count_hourly_sends(self, emails: Any) -> None:
        self._note("count_hourly_sends")

    def record_try(
        self,
        request_id: str,
        lease_id: str,
        outcome: str,
        resend_ids: list[str | None],
        http_status: int | None,
        error_name: str | None,
        error: str | None,
        retry_after: float | None,
        started_at: float,
        finished_at: float,
    ) -> None:
        self._note("record_try")
        request = self.data.requests[request_id]
        request.outcomes.append(outcome)
        request.lease_id = None
        request.open = outcome in ("unanswered", "erred")
        for place, id_ in enumerate(request.message_ids):
            message = self.data.messages[id_]
            message.error = error
            if outcome == "sent":
                message.state, message.resend_id = "sent", resend_ids[place] if resend_ids else None
            elif outcome == "refused":
                message.state, message.request_id = "queued", None
            elif not request.open:
                message.state = "failed"

    def learn(
        self,
        rate: float | None,
        rtt: float | None,
        pause_reason: str | None,
        pause_until: str | None,
        key_fingerprint: str,
        too_many: bool,
    ) -> None:
        self._note("learn")
        if pause_reason is not None:
            self.data.paused, self.data.paused_until = pause_reason, pause_until
            self.data.paused_key = key_fingerprint

    def after(self, seconds: float) -> str:
        return f"in {seconds:g} s"

    def next_midnight(self) -> str:
        return "midnight"

    def _queue(self) -> list[tuple[str, Message]]:
        return [(id_, message) for id_, message in self.data.messages.items() if message.state == "queued"]

    def _requests(self) -> list[Request]:
        return list(self.data.requests.values())


@dataclass
class Detection:
    """The state of detection: who waits, who has acted, who is set aside with which error, and what befell loops."""

    waiting: dict[int, str] = field(default_factory=dict)
    acted: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    aside: dict[str, str | None] = field(default_factory=dict)
    deferred: list[int] = field(default_factory=list)
    loops: list[tuple[str, int, object]] = field(default_factory=list)


class MemoryDetection(DetectCalls, _Memory):
    """A detector's database: users of loop 1 with one step. Override `condition`: the keys for whom it holds, or it
    raises."""

    data: Detection

    def __init__(self, *users: str) -> None:
        super().__init__(Detection({n: user for n, user in enumerate(users, 1)}))
        #: The keys of each question, in order.
        self.questions: list[tuple[str, ...]] = []
        #: Whether somebody holds what says that a loop is left alone.
        self.held = False

    def condition(self, keys: list[str]) -> list[str]:
        return keys

    def due(self) -> Due:
        self._note("due")
        return Due(False, False, bool(self._open()), False, False)

    def lock_buckets(self, slot: int | None) -> list[int]:
        return list(range(8))

    def take(self, buckets: list[int], batch: int, due: Due) -> tuple[Question, list[Question]]:
        self._note("take")
        ids = self._open()[:batch]
        count = Question(0, 0, 0, [], [], [], len(ids), None)
        return count, [Question(1, 1, 1, ids, [None] * len(ids), [True] * len(ids))] if ids else []

    def ask(self, loop_id: int, version: int, step: int, ids: list[int], one_by_one: bool) -> list[str] | None:
        self._note("ask")
        keys = [self.data.waiting[id_] for id_ in ids]
        self.questions.append(tuple(keys))
        return self.condition(keys)

    def decide(
        self, step: int, ids: list[int], woken_at: list[str | None], is_new: list[bool], true_keys: list[str] | None
    ) -> None:
        self._note("decide")
        keys = [self.data.waiting[id_] for id_ in ids]
        self.data.asked += keys
        self.data.acted += [key for key in keys if key in (true_keys or [])]

    def defer(self, ids: list[int], woken_at: list[str | None], is_new: list[bool]) -> None:
        self.data.deferred += ids

    def set_user_aside(self, enrollment_id: int, error: str | None) -> None:
        self.data.aside[self.data.waiting[enrollment_id]] = error

    def sweeps(self, buckets: list[int]) -> list[Sweep]:
        return []

    def sweep(self, sweep: Sweep, batch: int) -> int:
        raise NotImplementedError

    def stretch(self, sweep: Sweep, batch: int) -> list[int]:
        raise NotImplementedError

    def advance_sweep(self, sweep: Sweep, ids: list[int], batch: int) -> None:
        raise NotImplementedError

    def strike(self, loop_id: int, error: str) -> bool:
        self.data.loops.append(("strike", loop_id, error))
        return not self.held

    def cancelled(self, loop_id: int, seconds: float) -> bool:
        self.data.loops.append(("cancelled", loop_id, seconds))
        return not self.held

    def postpone(self, loop_id: int, error: str) -> bool:
        self.data.loops.append(("postpone", loop_id, error))
        return not self.held

    def order_sweep(self, loop_id: int) -> bool:
        self.data.loops.append(("sweep", loop_id, None))
        return not self.held

    def clear_strikes(self, loop_id: int) -> None:
        self.data.loops.append(("clear_strikes", loop_id, None))

    def fail_at_once(self, loop_id: int, error: str | None, lost: bool) -> bool:
        self.data.loops.append(("fail", loop_id, lost))
        return not self.held

    def evaluation_ended(self) -> None:
        self._note("evaluation_ended")

    def backfill_due(self) -> int | None:
        return None

    def backfill(self, loop_id: int, batch: int) -> int:
        raise NotImplementedError

    def renew_wake(self) -> bool | None:
        return None

    def _open(self) -> list[int]:
        done = {*self.data.asked, *self.data.aside}
        return [id_ for id_, key in self.data.waiting.items() if key not in done]
