"""A deliverer on a database in memory, with the sandbox in Resend's place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from activation.engine.calls import DeliverCalls
from activation.engine.deliver import Deliverer
from activation.engine.protocol import Cancelled, Failed
from activation.sandbox import Sandbox
from engine_fakes import MemoryDelivery


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as server:
        yield server


def run(calls: MemoryDelivery, turns: int = 100) -> Deliverer:
    """Turns until nothing is left to do."""
    deliverer = Deliverer(calls, "here")
    try:
        for _ in range(turns):
            if not deliverer.turn() and not deliverer.busy:
                return deliverer
            deliverer.wait(0.05)
        raise AssertionError(f"it does not end: {calls.data}")
    finally:
        deliverer.close()


def received(sandbox: Sandbox) -> Counter[str]:
    return Counter(address for email in sandbox.emails for address in email.to)


def test_what_is_due_is_sent_once(sandbox: Sandbox) -> None:
    calls = MemoryDelivery(sandbox.url, "ada@acme.dev", "grace@acme.dev")
    run(calls)
    assert calls.states() == {"ada@acme.dev": "sent", "grace@acme.dev": "sent"}
    assert received(sandbox) == {"ada@acme.dev": 1, "grace@acme.dev": 1}
    (request,) = calls.data.requests.values()
    assert request.endpoint == "/emails/batch" and request.outcomes == ["sent"]


def test_a_request_is_committed_before_it_leaves(sandbox: Sandbox) -> None:
    """What cannot be committed is not sent, and stays in the queue."""
    calls = MemoryDelivery(sandbox.url, "ada@acme.dev")
    calls.raising["commit"] = [Failed("the disk is full", "53100")]
    deliverer = Deliverer(calls, "here")
    with pytest.raises(Failed):
        deliverer.turn()
    assert "store_request" in calls.calls and not deliverer.busy and sandbox.emails == []
    deliverer.close()
    # The worker does this.
    calls.rollback()
    run(calls)
    assert received(sandbox) == {"ada@acme.dev": 1}


def test_an_answer_waits_for_a_lock(sandbox: Sandbox) -> None:
    """What somebody else holds cannot be written down now. The next turn does it."""
    calls = MemoryDelivery(sandbox.url, "ada@acme.dev")
    deliverer = Deliverer(calls, "here")
    assert deliverer.turn() and deliverer.busy
    deliverer.wait(10)
    calls.raising["record_try"] = [Failed("locked", "55P03")]
    deliverer.turn()
    assert calls.states() == {"ada@acme.dev": "sending"}
    deliverer.turn()
    deliverer.close()
    assert calls.states() == {"ada@acme.dev": "sent"} and received(sandbox) == {"ada@acme.dev": 1}


@pytest.mark.parametrize("where", ["state", "record_try"])
def test_a_cancel_is_obeyed_once_the_answer_is_written_down(sandbox: Sandbox, where: str) -> None:
    calls = MemoryDelivery(sandbox.url, "ada@acme.dev")
    deliverer = Deliverer(calls, "here")
    assert deliverer.turn() and deliverer.busy
    deliverer.wait(10)
    calls.raising[where] = [Cancelled("cancelled")]
    with pytest.raises(Cancelled):
        deliverer.turn()
    deliverer.close()
    assert calls.states() == {"ada@acme.dev": "sent"} and received(sandbox) == {"ada@acme.dev": 1}


def test_one_bad_message_is_found_by_halves(sandbox: Sandbox) -> None:
    """The claim raises for as long as the third is in it: that one is set aside, all others are sent."""
    addresses = [f"u{n}@acme.dev" for n in range(1, 9)]

    class Picky(MemoryDelivery):
        def store_request(self, *given: object) -> None:  # type: ignore[override]
            if "u3@acme.dev" in given[4]:  # type: ignore[operator]
                raise Failed("not this one", "22021")
            super().store_request(*given)  # type: ignore[arg-type]

    calls = Picky(sandbox.url, *addresses)
    run(calls)
    assert calls.states() == {address: "failed" if address == "u3@acme.dev" else "sent" for address in addresses}
    assert [m.error for m in calls.data.messages.values() if m.error] == ["not this one"]


def test_what_cannot_be_rendered_ends(sandbox: Sandbox) -> None:
    calls = MemoryDelivery(sandbox.url, "ada@acme.dev", None, "no address")
    run(calls)
    assert calls.states() == {"ada@acme.dev": "sent", None: "failed", "no address": "failed"}
    assert received(sandbox) == {"ada@acme.dev": 1}


def test_a_daily_quota_pauses_until_midnight(sandbox: Sandbox) -> None:
    """It is the key's: with another key it goes on."""
    sandbox.fail("status", status=429, name="daily_quota_exceeded", message="too many today", times=1)
    calls = MemoryDelivery(sandbox.url, "ada@acme.dev")
    deliverer = run(calls)
    assert calls.data.paused_until == "midnight" and calls.states() == {"ada@acme.dev": "queued"}
    assert deliverer.note == "too many today" and sandbox.emails == []
    calls.data.paused_key = "another"
    calls.commit()
    run(calls)
    assert received(sandbox) == {"ada@acme.dev": 1}


def test_permits_are_given_back(sandbox: Sandbox) -> None:
    """One permit, and requests of one email each: one after the other, and none is lost."""
    calls = MemoryDelivery(sandbox.url, *(f"u{n}@acme.dev" for n in range(5)), permits=1)
    run(calls)
    assert set(calls.states().values()) == {"sent"} and calls.data.permits == 1
    assert calls.calls.count("take_permits") == calls.calls.count("free_permit") > 0


def test_nothing_is_sent_in_mode_capture(sandbox: Sandbox) -> None:
    calls = MemoryDelivery(sandbox.url, "ada@acme.dev", mode="capture")
    run(calls)
    assert calls.states() == {"ada@acme.dev": "captured"} and sandbox.log == []


def test_the_fake_answers_all_calls() -> None:
    """None of them would go to a database."""
    assert {name for name in vars(DeliverCalls) if name[0] != "_"} <= set(vars(MemoryDelivery))
