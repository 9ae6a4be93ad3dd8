"""Delivery: claim, commit, HTTP, record, commit.

While a request is in flight the worker holds no snapshot, no lock and no transaction id: requests run in threads that
know nothing of the database, and the main thread watches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import signal
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from activation.engine.protocol import Cancelled, Database, Failed, storable
from activation.errors import DeliveryError, KeyUnavailable, Paused, RenderError, Unanswered
from activation.mail import unsubscribe
from activation.mail.render import Rendered, Source, built_in, deadline, read, render, variables_of
from activation.resend import credentials
from activation.resend.client import TOTAL_TIMEOUT, Departure, Resend, Try
from activation.resend.outcome import Accepted, is_content

#: Requests in flight at once, how many of them one claim makes, emails a request, and how long a request belongs to its
#: worker (seconds).
THREADS = 32
CLAIM = 8
BATCH = 100
LEASE = 60

#: Rendering looks for a cancel so often, and is put off to the next claim after so long; a loop that has taken so much
#: of it waits for the others (seconds).
LOOK = 0.05
RENDERING = 3.0
SHARE = 0.5

#: So many messages in a row on which a claim raises, and it is no fault of theirs.
MAX_ASIDE = 20

#: So long without a moment in which all that the provider allows was used, and status says so (seconds).
BEHIND = 5.0

#: A request is made this long before its token is free (seconds): longer than a poll and a claim take.
AHEAD = 0.2

_ADDRESS = re.compile(r"[^@\s<>,;:\"()\[\]\\]+@[^@\s<>,;:\"()\[\]\\]+")
_LEASE_SQL = f"interval '{LEASE} seconds'"


@dataclass(frozen=True)
class _Branch:
    """A branch of a step as its version defines it; it never changes."""

    loop: str
    action: dict[str, Any]
    recovery: str
    transactional: bool


@dataclass
class _Mail:
    """One message that can be sent: its id and loop, what Resend is to get, how its loop wants failures handled, and
    how many emails its request may carry."""

    message_id: str
    loop_id: int
    email: dict[str, Any]
    recovery: str
    batch_limit: int


@dataclass
class _Ended:
    """Messages that end at the claim, as columns of _finish()."""

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
        self.ids.append(message_id)
        self.states.append(state)
        self.recipients.append(storable(recipient))
        self.subjects.append(storable(subject))
        self.errors.append(storable(error))


@dataclass
class _Flight:
    """A request on its way. rate_token: the number of the token that it holds, 0 for none."""

    request_id: str
    token: str
    rate_token: int
    batch: bool
    since: float
    departure: Departure
    learnt: bool = False


@dataclass(frozen=True)
class _Answer:
    """What came of a request."""

    future: Future[Try]
    flight: _Flight
    attempt: Try

    @property
    def error(self) -> DeliveryError | None:
        return self.attempt.outcome if isinstance(self.attempt.outcome, DeliveryError) else None


def _quiet_thread() -> None:
    """Signals are the server's; none may be handled in a thread that knows nothing of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


class Deliverer:
    """Runs turns. host: this machine's name, part of who the server is."""

    def __init__(self, db: Database, host: str) -> None:
        self._db = db
        self._host = host
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="activation", initializer=_quiet_thread)
        self._flights: dict[Future[Try], _Flight] = {}
        self._stuck: dict[Future[Try], _Flight] = {}
        self._branches: dict[tuple[int, int, int, str], _Branch] = {}
        self._sources: dict[tuple[str, int], Source | None] = {}
        self._client: tuple[tuple[str, str], Resend] | None = None
        #: How far the queue of each loop was walked, by loop: due time and id of the last message claimed.
        self._marks: dict[int, tuple[str, str]] = {}
        #: Loops whose mails took long in the last claim.
        self._slow_loops: set[int] = set()
        self._marked_at = 0.0
        self._key_mark = ""
        #: Whose tokens are given back by the transaction that is open.
        self._departed: list[_Flight] = []
        #: How many messages a claim takes at most, which of them it has in hand, and how many in a row were set aside.
        self._most = BATCH * CLAIM
        self._in_hand: list[str] = []
        self._aside = 0
        #: Why nothing is sent at present, for status; None when all is well.
        self.note: str | None = None
        #: What went wrong with the answers that came last. A note of it would be gone with the next look at the mode.
        self._trouble: str | None = None
        #: Whether the provider always takes its time to answer.
        self.slow = False
        #: Whether what is due only waits for the rate.
        self.out_of_tokens = False
        #: Since when this deliverer, and not the rate, has been what limits it.
        self._behind_since: float | None = None

    @property
    def busy(self) -> bool:
        return bool(self._flights)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wait(self, seconds: float) -> None:
        """Waits until a request is answered, at most so long, with no transaction open."""
        if self._flights:
            wait(self._flights, timeout=seconds, return_when=FIRST_COMPLETED)
        else:
            time.sleep(seconds)

    def rewind(self) -> bool:
        """Begins at the start of every queue again; False if it was there. It also happens once a second: a message may
        become due before one that was already claimed."""
        moved = bool(self._marks)
        self._marks, self._marked_at = {}, time.monotonic()
        return moved

    def turn(self, claim: bool = True) -> bool:
        """Records what was answered and, if asked, claims and sends more. Returns whether anything was done.

        What answers give back to the rate is used before they are written down: that can wait, a second of the
        provider's cannot.
        """
        self._give_up_stuck()
        answered = self._answered()
        try:
            did = self._claim(answered) if claim and len(self._flights) - len(answered) < THREADS else False
        except Cancelled:
            # Accepted mail must be written down: obey the cancel afterwards.
            self._record_answers(answered)
            raise
        did = self._record_answers(answered) or did
        if self._behind_since is not None and time.monotonic() - self._behind_since > BEHIND:
            self.note = "the provider allows more than one deliverer can do: SELECT activation.start(deliverers => …)"
        return did

    # -- record ----------------------------------------

    def _answered(self) -> list[_Answer]:
        flights = [*self._flights.items(), *self._stuck.items()]
        return [_Answer(future, flight, future.result()) for future, flight in flights if future.done()]

    def _record_answers(self, answered: list[_Answer]) -> bool:
        if not answered:
            return False
        try:
            self._record(answered)
        except Cancelled:
            self._db.rollback()
            self._record(answered)
            raise
        except Failed as error:
            self._db.rollback()
            if error.passing:
                return False
            raise
        for answer in answered:
            self._flights.pop(answer.future, None)
            self._stuck.pop(answer.future, None)
        return True

    def _give_up_stuck(self) -> None:
        """A thread may be stuck where no timeout reaches. Its request has no answer in time; should one come after all,
        it is written down as that of somebody who has lost the lease."""
        now = time.monotonic()
        for future, flight in list(self._flights.items()):
            if now - flight.since > TOTAL_TIMEOUT + 5 and not future.done():
                self._replace_pool()
                del self._flights[future]
                self._stuck[future] = dataclasses.replace(flight, rate_token=0)
                ended = time.time()
                none: Future[Try] = Future()
                error = Unanswered("no answer in time", name="total_timeout")
                none.set_result(Try(error, None, ended - (now - flight.since), ended, ended))
                self._flights[none] = flight

    def _record(self, answered: list[_Answer]) -> None:
        if answered:
            self._trouble = None
        self._learn(answered)
        for answer in answered:
            # What cannot be written down in full is written down in short. Where not even that can be, the request
            # stays open, and is repeated when its lease has run out.
            for plainly in (False, True):
                try:
                    with self._db.subtransaction():
                        self._record_one(answer, plainly)
                    break
                except Failed as error:
                    if error.passing:
                        raise
                    self._trouble = storable(f"an answer cannot be written down: {error.text}")
        self._db.commit()
        self._learnt(answered)

    def _record_one(self, answer: _Answer, plainly: bool) -> None:
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
            flight.token,
            word,
            [storable(str(id_)) for id_ in ids],
            error.status if error else 200,
            storable(error.name, 100) if error and not plainly else None,
            None if error is None else "its answer cannot be written down" if plainly else storable(error.text),
            error.retry_after if error else None,
            attempt.started_at,
            attempt.finished_at,
        )

    def _learn(self, answered: list[_Answer]) -> None:
        """What the answers say about the provider, and their tokens; once for each, see _learnt()."""
        for answer in answered:
            if answer.flight.learnt:
                continue
            try:
                with self._db.subtransaction():
                    self._learn_one(answer)
            except Failed as error:
                if error.passing:
                    raise
                self._trouble = storable(f"nothing can be learnt from an answer: {error.text}")

    def _learn_one(self, answer: _Answer) -> None:
        attempt, error = answer.attempt, answer.error
        # An error that names no rate comes from somewhere before the API, and says nothing about it.
        heard = error is None or attempt.rate is not None
        if heard or isinstance(error, Paused):
            self._db.execute(
                f"SELECT activation._learn($1::numeric, $2::double precision, $3, {_pause_sql(error)}, $4, $5)",
                attempt.rate,
                attempt.rtt if heard else None,
                storable(error.text) if isinstance(error, Paused) else None,
                self._key_mark,
                isinstance(error, Paused) and error.status == 429 and error.pause is not None,
            )
        if answer.flight.rate_token:
            self._db.execute(
                "SELECT activation._free_token($1::integer, to_timestamp($2::double precision),"
                " to_timestamp($3::double precision))",
                answer.flight.rate_token,
                attempt.left_at,
                attempt.finished_at,
            )

    def _learnt(self, answered: list[_Answer]) -> None:
        """That has been committed."""
        for answer in answered:
            answer.flight.learnt = True

    def _replace_pool(self) -> None:
        self._pool.shutdown(wait=False)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="activation", initializer=_quiet_thread)

    # -- claim ----------------------------------------

    def _claim(self, answered: list[_Answer]) -> bool:
        self._departed.clear()
        self._in_hand = []
        try:
            self._learn(answered)
            launches, did = self._claim_in_transaction()
        except BaseException as error:
            self._db.rollback()
            self.rewind()
            if isinstance(error, Cancelled) or not isinstance(error, Exception) or not self._in_hand:
                raise
            if self._aside >= MAX_ASIDE or (isinstance(error, Failed) and not error.of_a_person):
                raise
            self._claim_less(error)
            return True
        self._db.commit()
        if self._in_hand:
            self._most, self._aside = min(self._most * 2, BATCH * CLAIM), 0
        self._learnt(answered)
        for flight in self._departed:
            flight.rate_token = 0
        for launch in launches:
            launch()
        return did

    def _claim_less(self, error: Exception) -> None:
        """A claim raised with these messages in hand: the next one takes half as many, and the one that is left in the
        end is set aside."""
        if len(self._in_hand) > 1:
            self._most = len(self._in_hand) // 2
            return
        self._aside += 1
        ended = _Ended()
        ended.add(self._in_hand[0], "failed", error=reason(error))
        self._finish(ended)
        self._db.commit()

    def _claim_in_transaction(self) -> tuple[list[Callable[[], None]], bool]:
        if time.monotonic() - self._marked_at > 1:
            self.rewind()
        elif not self._marks and not self._db.execute("SELECT activation._deliver_due() AS due")[0]["due"]:
            # What the mode and the settings say is looked at once a second.
            self.out_of_tokens, self._behind_since = False, None
            return [], False
        state = self._db.execute(
            f"SELECT * FROM activation._deliver_state($1, {_marks_sql(2)})", self._host, *self._mark_columns()
        )[0]
        self.note, self.slow = state["disarmed"], state["slow"]
        self.out_of_tokens = False
        if self.note:
            return [], False
        self.note = self._trouble
        if state["expired"]:
            self._db.execute("SELECT activation._expire_requests()")
        if not state["due"]:
            self._behind_since = None
            return [], False
        if state["mode"] == "capture":
            mails, ended, did = self._prepare(state, min(BATCH * 5, self._most))
            for mail in mails:
                ended.add(mail.message_id, "captured", mail.email["to"][0], mail.email["subject"])
            self._finish(ended)
            return [], did
        try:
            api_key = credentials.resolve(state["api_key"], self._stored_secret)
        except KeyUnavailable as error:
            self.note = str(error)
            return [], False
        self._key_mark = hashlib.sha256(api_key.encode()).hexdigest()[:16]
        if state["paused"] and state["paused_key"] == self._key_mark:
            self.note = state["paused"]
            return [], False
        if state["paused"]:
            self._db.execute("SELECT activation._end_pause()")
        if not state["sender"]:
            self.note = "no sender is configured"
            return [], False
        return self._claim_to_send(state, api_key)

    def _claim_to_send(self, state: dict[str, Any], api_key: str) -> tuple[list[Callable[[], None]], bool]:
        db = self._db
        if self.slow:
            self._free_departed()
        tokens = db.execute(
            "SELECT n, extract(epoch FROM free_at)::double precision AS free_at"
            f" FROM activation._lock_tokens($1::integer, interval '{AHEAD} seconds')",
            max(1, min(CLAIM, THREADS - len(self._flights))),
        )
        self.out_of_tokens = not tokens
        offered, limited = len(tokens), any(token["n"] for token in tokens)
        if not tokens:
            self._behind_since = None
            return [], False
        taken: list[int] = []
        client = self._client_for(state["resend_url"], api_key)
        lease = str(uuid.uuid4())
        launches: list[Callable[[], None]] = []

        def launch(request_id: str, endpoint: str, body: str, emails: int) -> None:
            token = tokens.pop(0)
            taken.append(token["n"])
            departure = Departure()
            flight = _Flight(request_id, lease, token["n"], endpoint == "/emails/batch", 0.0, departure)

            def go() -> None:
                flight.since = time.monotonic()
                sent = self._pool.submit(client.send, endpoint, body, request_id, emails, token["free_at"], departure)
                self._flights[sent] = flight

            launches.append(go)

        repeats = db.execute(
            f"SELECT * FROM activation._claim_requests($1::uuid, {_LEASE_SQL}, $2::integer)", lease, len(tokens)
        )
        for repeat in repeats:
            body = str(repeat["body"])
            emails = len(json.loads(body)) if repeat["endpoint"] == "/emails/batch" else 1
            launch(str(repeat["request_id"]), str(repeat["endpoint"]), body, emails)
        did = bool(repeats)
        if tokens:
            mails, ended, claimed = self._prepare(state, min(BATCH * len(tokens), self._most))
            did = did or claimed
            self._finish(ended)
            leaving: Counter[int] = Counter()
            groups = _groups(mails)
            if len(groups) > len(tokens):
                # The rest stays in the queue, before the marks.
                self.rewind()
            for group in groups[: len(tokens)]:
                request_id = str(uuid.uuid4())
                endpoint = "/emails" if len(group) == 1 else "/emails/batch"
                emails_of = [mail.email for mail in group]
                body = json.dumps(emails_of[0] if len(group) == 1 else emails_of, separators=(",", ":"))
                db.execute(
                    "SELECT activation._store($1::uuid, $2, $3, $4::text[]::uuid[], $5::text[], $6::text[], $7,"
                    f" $8::jsonb, $9::uuid, {_LEASE_SQL})",
                    request_id,
                    endpoint,
                    body,
                    [mail.message_id for mail in group],
                    [storable(mail.email["to"][0]) for mail in group],
                    [storable(mail.email["subject"]) for mail in group],
                    state["mode"],
                    group[0].recovery,
                    lease,
                )
                launch(request_id, endpoint, body, len(group))
                leaving.update(mail.loop_id for mail in group)
            if leaving:
                # Last before the commit: deliverers wait for each other here.
                db.execute(
                    "SELECT activation._count_pace($1::text[]::integer[], $2::text[]::integer[])",
                    [str(loop_id) for loop_id in leaving],
                    [str(emails) for emails in leaving.values()],
                )
        if not limited or len(taken) < offered:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = time.monotonic()
        if any(taken):
            db.execute(
                f"SELECT activation._take_tokens($1::text[]::integer[], {_LEASE_SQL})",
                [str(n) for n in taken],
            )
        return launches, did

    def _free_departed(self) -> None:
        """From a provider that always takes its time, the answer would come too late for its token: that is free when
        the request has left."""
        for flight in self._flights.values():
            if flight.rate_token and flight.departure.at is not None:
                self._db.execute(
                    "SELECT activation._free_token($1::integer, to_timestamp($2::double precision), NULL)",
                    flight.rate_token,
                    flight.departure.at,
                )
                self._departed.append(flight)

    def _prepare(self, state: dict[str, Any], wanted: int) -> tuple[list[_Mail], _Ended, bool]:
        """Claims messages and renders them: those to be sent, those that end here, and whether there were any."""
        rows = self._db.execute(
            "SELECT message_id::text, loop_id, version, step, branch, next_attempt_at::text, batch_limit, email,"
            " user_row, template_mark, context, enrollment_id"
            f" FROM activation._claim_messages($1::integer, {_marks_sql(2)})",
            wanted,
            *self._mark_columns(),
        )
        found = [row for row in rows if row["user_row"] is not None]
        self._in_hand = [row["message_id"] for row in found]
        for row in found:
            here = (row["next_attempt_at"], row["message_id"])
            self._marks[row["loop_id"]] = max(self._marks.get(row["loop_id"], here), here)
        ended = _Ended()
        mails: list[_Mail] = []
        began = looked = time.monotonic()
        spent: dict[int, float] = defaultdict(float)
        late = [row for row in found if row["loop_id"] in self._slow_loops]
        todo = [row for row in found if row["loop_id"] not in self._slow_loops]
        while todo or late:
            # A loop whose mails take long does not hold the others' up.
            row = todo.pop(0) if todo else late.pop(0)
            if todo and spent[row["loop_id"]] > SHARE:
                late.append(row)
                continue
            now = time.monotonic()
            if now - looked > LOOK:
                # Nothing else lets a cancel or a shutdown through.
                self._db.execute("SELECT 1 AS one")
                looked = now
            if now - began > RENDERING:
                # The rest stays in the queue, before the marks.
                self.rewind()
                break
            try:
                mails.append(self._mail(row, state))
            except (Cancelled, Failed):
                raise
            except Exception as error:
                # Of this user alone, whatever their row or their template makes Python raise.
                ended.add(row["message_id"], "failed", row["email"], None, reason(error))
            spent[row["loop_id"]] += time.monotonic() - now
        self._slow_loops = {loop_id for loop_id, seconds in spent.items() if seconds > SHARE}
        return mails, ended, bool(rows)

    def _mail(self, row: dict[str, Any], state: dict[str, Any]) -> _Mail:
        address = (row["email"] or "").strip()
        if not address:
            raise RenderError("the user has no email address")
        if len(address) > 320 or not address.isprintable() or not _ADDRESS.fullmatch(address):
            raise RenderError(f"not an email address: {address[:100]}")
        branch = self._branch(row["loop_id"], row["version"], row["step"], row["branch"])
        leave = (
            None
            if branch.transactional
            else unsubscribe.link(state["public_url"], state["signing_key"], row["enrollment_id"])
        )
        rendered = rendered_mail(
            branch.action,
            branch.loop,
            row["user_row"],
            row["context"],
            self._source_for(branch.action, row["template_mark"]),
            leave,
        )
        email = {
            "from": branch.action["sender"] or state["sender"],
            "to": [state["redirect_to"] if state["mode"] == "redirect" else address],
            "subject": rendered.subject,
            **({"html": rendered.html} if rendered.html is not None else {}),
            "text": rendered.text,
            **({"reply_to": reply_to} if (reply_to := branch.action["reply_to"] or state["reply_to"]) else {}),
            **({"headers": _leaving(leave)} if leave else {}),
            "tags": [{"name": "activation_message", "value": row["message_id"]}],
        }
        return _Mail(row["message_id"], row["loop_id"], email, branch.recovery, row["batch_limit"] or BATCH)

    def _finish(self, ended: _Ended) -> None:
        if ended.ids:
            self._db.execute(
                "SELECT activation._finish($1::text[]::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])",
                ended.ids,
                ended.states,
                ended.recipients,
                ended.subjects,
                ended.errors,
            )

    # -- what is kept ----------------------------------------

    def _mark_columns(self) -> tuple[list[str], list[str], list[str]]:
        marks = self._marks
        return [str(loop_id) for loop_id in marks], [at for at, _ in marks.values()], [id_ for _, id_ in marks.values()]

    def _branch(self, loop_id: int, version: int, step: int, branch: str) -> _Branch:
        key = (loop_id, version, step, branch)
        if key not in self._branches:
            row = self._db.execute("SELECT * FROM activation._branch($1::integer, $2::integer, $3::integer, $4)", *key)[
                0
            ]
            self._branches[key] = _Branch(row["loop"], json.loads(row["action"]), row["recovery"], row["transactional"])
        return self._branches[key]

    def _source_for(self, action: dict[str, Any], mark: int) -> Source | None:
        key = (str(action["template"]), mark)
        if key not in self._sources:
            self._sources[key] = find_source(self._db, *key)
        return self._sources[key]

    def _client_for(self, url: str, api_key: str) -> Resend:
        if self._client is None or self._client[0] != (url, api_key):
            self._client = ((url, api_key), Resend(url, api_key))
        return self._client[1]

    def _stored_secret(self, name: str) -> str | None:
        found = self._db.execute("SELECT activation._secret($1) AS value", name)[0]["value"]
        return None if found is None else str(found)


def reason(error: Exception) -> str:
    """Why one message cannot be made, for the person who looks."""
    if isinstance(error, RenderError):
        return str(error)
    if isinstance(error, Failed):
        return f"it could not be claimed: {error.text}"
    said = (str(error).splitlines() or [""])[0]
    return f"the mail cannot be made from the user's row: {type(error).__name__}: {said}"


def _pause_sql(error: DeliveryError | None) -> str:
    """Until when the provider is to be left alone after this, as an SQL expression."""
    if not isinstance(error, Paused):
        return "NULL"
    if error.until_midnight:
        return "(date_trunc('day', activation._now() AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC'"
    if error.pause is not None:
        return f"activation._now() + interval '{error.pause:.3f} seconds'"
    return "'infinity'"


def _marks_sql(first: int) -> str:
    """The columns of the marks as parameters, the first of which has this number."""
    return f"${first}::text[]::integer[], ${first + 1}::text[]::timestamptz[], ${first + 2}::text[]::uuid[]"


def find_source(db: Database, template: str, mark: int) -> Source | None:
    """The template that an enrollment with this mark uses: the database's own, else the built-in of that name."""
    rows = db.execute("SELECT subject, html, body_text FROM activation._template($1, $2::integer)", template, mark)
    if rows:
        return Source(rows[0]["subject"], rows[0]["html"], rows[0]["body_text"])
    return built_in(template)


def rendered_mail(
    action: dict[str, Any],
    loop: str,
    user_row: str,
    context: str | None,
    source: Source | None,
    unsubscribe_url: str | None = None,
) -> Rendered:
    """One mail of a loop for one user's row, in a time that is limited. Raises RenderError."""
    if source is None:
        raise RenderError(f"template {action['template']} does not exist")
    if action["subject"]:
        source = Source(action["subject"], source.html, source.text)
    until = deadline()
    variables = variables_of(
        action["personalization"],
        read(user_row, "the user's row"),
        loop,
        read(context, "the enrollment's context") if context else None,
        unsubscribe_url,
        until,
    )
    return render(source, variables, until)


def _leaving(url: str) -> dict[str, str]:
    """The headers by which a mail program lets people leave with one click (RFC 2369, RFC 8058)."""
    return {"List-Unsubscribe": f"<{url}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}


def _groups(mails: list[_Mail]) -> list[list[_Mail]]:
    """Mails that may share a request: handled alike after a failure, and no more than the limit of each of them."""
    groups: list[list[_Mail]] = []
    open_groups: dict[tuple[str, int], list[_Mail]] = {}
    for mail in mails:
        alike = (mail.recovery, mail.batch_limit)
        group = open_groups.get(alike)
        if group is None or len(group) >= mail.batch_limit:
            group = open_groups[alike] = []
            groups.append(group)
        group.append(mail)
    return groups
