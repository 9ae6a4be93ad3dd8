"""What became of requests: written down, and what it says about the provider learnt."""

from __future__ import annotations

from activation.engine.calls import DeliverCalls
from activation.engine.flights import Answer
from activation.engine.protocol import Failed, storable
from activation.errors import DeliveryError, Paused
from activation.resend.outcome import Accepted, is_content


class Records:
    """Writes down answers. trouble: what went wrong with those that came last, for status. key_fingerprint: of the key
    that is in use, so that a pause of another key does not hold."""

    def __init__(self, calls: DeliverCalls) -> None:
        self._calls = calls
        self.trouble: str | None = None
        self.key_fingerprint = ""

    def learn(self, answered: list[Answer]) -> None:
        """What the answers say about the provider, and their permits; once for each, see learnt()."""
        for answer in answered:
            if answer.flight.learnt:
                continue
            try:
                with self._calls.subtransaction():
                    self._learn_from_answer(answer)
            except Failed as error:
                if error.passing:
                    raise
                self.trouble = storable(f"nothing can be learnt from an answer: {error.text}")

    def learnt(self, answered: list[Answer]) -> None:
        """That has been committed."""
        for answer in answered:
            answer.flight.learnt = True

    def record(self, answered: list[Answer]) -> None:
        """Writes them down, and commits."""
        if answered:
            self.trouble = None
        self.learn(answered)
        for answer in answered:
            # What cannot be written down in full is written down in short. Where not even that can be, the request
            # stays open, and is repeated when its lease has run out.
            for plainly in (False, True):
                try:
                    with self._calls.subtransaction():
                        self._record_try(answer, plainly)
                    break
                except Failed as error:
                    if error.passing:
                        raise
                    self.trouble = storable(f"an answer cannot be written down: {error.text}")
        self._calls.commit()
        self.learnt(answered)

    def _record_try(self, answer: Answer, plainly: bool) -> None:
        flight, tried, error = answer.flight, answer.tried, answer.error
        word = "sent" if error is None else error.outcome
        if error is not None and flight.batch and is_content(error):
            word = "split"
        ids = tried.outcome.ids if isinstance(tried.outcome, Accepted) and not plainly else []
        self._calls.record_try(
            flight.request_id,
            flight.lease_id,
            word,
            [storable(str(id_)) for id_ in ids],
            error.status if error else 200,
            storable(error.name, 100) if error and not plainly else None,
            None if error is None else "its answer cannot be written down" if plainly else storable(error.text),
            error.retry_after if error else None,
            tried.started_at,
            tried.finished_at,
        )

    def _learn_from_answer(self, answer: Answer) -> None:
        tried, error = answer.tried, answer.error
        # An error that names no rate comes from somewhere before the API, and says nothing about it.
        heard = error is None or tried.rate is not None
        if heard or isinstance(error, Paused):
            self._calls.learn(
                tried.rate,
                tried.rtt if heard else None,
                storable(error.text) if isinstance(error, Paused) else None,
                self._pause_end(error),
                self.key_fingerprint,
                isinstance(error, Paused) and error.status == 429 and error.pause is not None,
            )
        if answer.flight.permit:
            self._calls.free_permit(answer.flight.permit, tried.left_at, tried.finished_at)

    def _pause_end(self, error: DeliveryError | None) -> str | None:
        """Until when the provider is to be left alone after this."""
        if not isinstance(error, Paused):
            return None
        if error.until_midnight:
            return self._calls.next_midnight()
        return "infinity" if error.pause is None else self._calls.after(error.pause)
