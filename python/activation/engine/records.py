"""What became of requests: written down, and what it says about the provider learnt."""

from __future__ import annotations

from activation.engine.flights import Answer
from activation.engine.protocol import Database, Failed, storable
from activation.errors import DeliveryError, Paused
from activation.resend.outcome import Accepted, is_content


class Records:
    """Writes down answers. trouble: what went wrong with those that came last, for status. key_fingerprint: of the key
    that is in use, so that a pause of another key does not hold."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.trouble: str | None = None
        self.key_fingerprint = ""

    def learn(self, answered: list[Answer]) -> None:
        """What the answers say about the provider, and their permits; once for each, see learnt()."""
        for answer in answered:
            if answer.flight.learnt:
                continue
            try:
                with self._db.subtransaction():
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
                    with self._db.subtransaction():
                        self._record_try(answer, plainly)
                    break
                except Failed as error:
                    if error.passing:
                        raise
                    self.trouble = storable(f"an answer cannot be written down: {error.text}")
        self._db.commit()
        self.learnt(answered)

    def _record_try(self, answer: Answer, plainly: bool) -> None:
        flight, attempt, error = answer.flight, answer.attempt, answer.error
        word = "sent" if error is None else error.outcome
        if error is not None and flight.batch and is_content(error):
            word = "split"
        ids = attempt.outcome.ids if isinstance(attempt.outcome, Accepted) and not plainly else []
        self._db.execute(
            "SELECT activation._record($1::uuid, $2::uuid, $3, $4::text[], $5::integer, $6, $7,"
            " $8::double precision,"
            " to_timestamp($9::double precision), to_timestamp($10::double precision))",
            flight.request_id,
            flight.lease_id,
            word,
            [storable(str(id_)) for id_ in ids],
            error.status if error else 200,
            storable(error.name, 100) if error and not plainly else None,
            None if error is None else "its answer cannot be written down" if plainly else storable(error.text),
            error.retry_after if error else None,
            attempt.started_at,
            attempt.finished_at,
        )

    def _learn_from_answer(self, answer: Answer) -> None:
        attempt, error = answer.attempt, answer.error
        # An error that names no rate comes from somewhere before the API, and says nothing about it.
        heard = error is None or attempt.rate is not None
        if heard or isinstance(error, Paused):
            self._db.execute(
                f"SELECT activation._learn($1::numeric, $2::double precision, $3, {_pause_sql(error)}, $4, $5)",
                attempt.rate,
                attempt.rtt if heard else None,
                storable(error.text) if isinstance(error, Paused) else None,
                self.key_fingerprint,
                isinstance(error, Paused) and error.status == 429 and error.pause is not None,
            )
        if answer.flight.permit:
            self._db.execute(
                "SELECT activation._free_token($1::integer, to_timestamp($2::double precision),"
                " to_timestamp($3::double precision))",
                answer.flight.permit,
                attempt.left_at,
                attempt.finished_at,
            )


def _pause_sql(error: DeliveryError | None) -> str:
    """Until when the provider is to be left alone after this, as an SQL expression."""
    if not isinstance(error, Paused):
        return "NULL"
    if error.until_midnight:
        return "(date_trunc('day', activation._now() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC'"
    if error.pause is not None:
        return f"activation._now() + interval '{error.pause:.3f} seconds'"
    return "'infinity'"
