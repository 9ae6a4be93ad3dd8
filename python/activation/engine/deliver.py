"""Delivery: claim, commit, HTTP, record, commit.

While a request is in flight the worker holds no snapshot, no lock and no transaction id: requests run in threads that
know nothing of the database, and the main thread watches.
"""

from __future__ import annotations

import hashlib

from activation.engine.calls import DeliverCalls, DeliveryState
from activation.engine.composer import BATCH, Composer, Ended, Mail
from activation.engine.flights import THREADS, Answer, Flights, Request
from activation.engine.outbox import Outbox
from activation.engine.permits import Permits
from activation.engine.protocol import Cancelled, Failed, storable
from activation.engine.queues import Queues
from activation.engine.records import Records
from activation.errors import KeyUnavailable
from activation.mail.compose import reason
from activation.resend import credentials
from activation.resend.client import Resend

#: How many requests one claim makes at most.
CLAIM = 8

#: So many messages in a row on which a claim raises, and it is no fault of theirs.
MAX_ASIDE = 20


class Deliverer:
    """Runs turns. calls: what it asks of the database. host: this machine's name, part of who the server is."""

    def __init__(self, calls: DeliverCalls, host: str) -> None:
        self._calls = calls
        self._host = host
        self._flights = Flights()
        self._queues = Queues(calls)
        self._composer = Composer(calls)
        self._permits = Permits(calls)
        self._records = Records(calls)
        self._client: tuple[tuple[str, str], Resend] | None = None
        #: How many messages a claim takes at most, which of them it has in hand, and how many in a row were set aside.
        self._most = BATCH * CLAIM
        self._in_hand: list[str] = []
        self._aside = 0
        #: Why nothing is sent at present, for status; None when all is well.
        self.note: str | None = None
        #: Whether the provider always takes its time to answer.
        self.slow = False

    @property
    def busy(self) -> bool:
        """Whether requests are on their way."""
        return bool(self._flights)

    @property
    def out_of_permits(self) -> bool:
        """Whether what is due only waits for the rate."""
        return self._permits.none_left

    def close(self) -> None:
        """End without waiting for answers."""
        self._flights.close()

    def wait(self, seconds: float) -> None:
        """Wait until a request is answered, at most so long, with no transaction open."""
        self._flights.wait(seconds)

    def rewind(self) -> bool:
        """Begin at the start of every queue again; False if it was there."""
        return self._queues.rewind()

    def turn(self, claim: bool = True) -> bool:
        """Record what was answered and, if asked, claim and send more. Returns whether anything was done.

        What answers give back to the rate is used before they are written down: that can wait, a second of the
        provider's cannot.
        """
        self._flights.give_up_stuck()
        answered = self._flights.answered()
        try:
            did = self._claim(answered) if claim and len(self._flights) - len(answered) < THREADS else False
        except Cancelled:
            # Accepted mail must be written down: obey the cancel afterwards.
            self._record(answered)
            raise
        did = self._record(answered) or did
        if self._permits.behind:
            self.note = "the provider allows more than one deliverer can do: SELECT activation.start(deliverers => …)"
        return did

    def _record(self, answered: list[Answer]) -> bool:
        if not answered:
            return False
        try:
            self._records.record(answered)
        except Cancelled:
            self._calls.rollback()
            self._records.record(answered)
            raise
        except Failed as error:
            self._calls.rollback()
            if error.passing:
                return False
            raise
        self._flights.land(answered)
        return True

    def _claim(self, answered: list[Answer]) -> bool:
        self._permits.begin()
        self._in_hand = []
        try:
            self._records.learn(answered)
            requests, did = self._claim_in_transaction()
        except BaseException as error:
            self._calls.rollback()
            self.rewind()
            if isinstance(error, Cancelled) or not isinstance(error, Exception) or not self._in_hand:
                raise
            if self._aside >= MAX_ASIDE or (isinstance(error, Failed) and not error.of_a_person):
                raise
            self._claim_less(error)
            return True
        self._calls.commit()
        if self._in_hand:
            self._most, self._aside = min(self._most * 2, BATCH * CLAIM), 0
        self._records.learnt(answered)
        self._permits.committed()
        if self._client is not None:
            for request in requests:
                self._flights.launch(self._client[1], request)
        return did

    def _claim_less(self, error: Exception) -> None:
        """A claim raised with these messages in hand: the next one takes half as many, and the one that is left in the
        end is set aside."""
        if len(self._in_hand) > 1:
            self._most = len(self._in_hand) // 2
            return
        self._aside += 1
        why = error.text if isinstance(error, Failed) else reason(error)
        self._calls.set_message_aside(self._in_hand[0], storable(why))
        self._calls.commit()

    def _claim_in_transaction(self) -> tuple[list[Request], bool]:
        """The requests that are to leave after the commit, and whether anything was done."""
        if self._queues.is_stale:
            # Once a second, which also looks at what the mode and the settings say.
            self.rewind()
        elif not self._queues.cursors and not self._calls.due():
            self._permits.none_left = False
            self._permits.nothing_to_send()
            return [], False
        state = self._calls.state(self._host, self._queues.cursors)
        self.note, self.slow = state.disarmed, state.slow
        self._permits.none_left = False
        if self.note:
            return [], False
        self.note = self._records.trouble
        if state.expired:
            self._calls.expire_requests()
        if not state.due:
            self._permits.nothing_to_send()
            return [], False
        if state.mode == "capture":
            return [], self._capture(state)
        try:
            api_key = credentials.resolve(state.api_key, self._calls.stored_secret)
        except KeyUnavailable as error:
            self.note = str(error)
            return [], False
        fingerprint = self._records.key_fingerprint = hashlib.sha256(api_key.encode()).hexdigest()[:16]
        if state.paused and state.paused_key == fingerprint:
            self.note = state.paused
            return [], False
        if state.paused:
            self._calls.end_pause()
        if not state.sender:
            self.note = "no sender is configured"
            return [], False
        if self._client is None or self._client[0] != (state.resend_url, api_key):
            self._client = ((state.resend_url, api_key), Resend(state.resend_url, api_key))
        return self._claim_to_send(state)

    def _capture(self, state: DeliveryState) -> bool:
        """Mails are made, and end here."""
        mails, ended, did = self._claim_messages(state, min(BATCH * 5, self._most))
        for mail in mails:
            ended.add(mail.message_id, "captured", mail.email["to"][0], mail.email["subject"])
        self._finish(ended)
        return did

    def _claim_to_send(self, state: DeliveryState) -> tuple[list[Request], bool]:
        if self.slow:
            self._permits.free_departed(self._flights)
        permits = self._permits.lock(max(1, min(CLAIM, THREADS - len(self._flights))))
        if not permits:
            return [], False
        outbox = Outbox(self._calls, permits)
        did = outbox.repeat()
        if outbox.room:
            mails, ended, claimed = self._claim_messages(state, min(BATCH * outbox.room, self._most))
            did = did or claimed
            self._finish(ended)
            if not outbox.fill(mails, state.mode):
                # The rest stays in the queue, before the cursors.
                self.rewind()
        self._permits.take(permits, outbox.used)
        return outbox.requests, did

    def _claim_messages(self, state: DeliveryState, wanted: int) -> tuple[list[Mail], Ended, bool]:
        """Claims messages and renders them: those to be sent, those that end here, and whether there were any."""
        found, some = self._queues.claim(wanted)
        self._in_hand = [row.message_id for row in found]
        mails, ended, in_time = self._composer.compose(found, state)
        if not in_time:
            # The rest stays in the queue, before the cursors.
            self.rewind()
        return mails, ended, some

    def _finish(self, ended: Ended) -> None:
        if ended.ids:
            self._calls.finish_messages(ended.ids, ended.states, ended.recipients, ended.subjects, ended.errors)
