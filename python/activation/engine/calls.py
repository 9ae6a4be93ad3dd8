"""The seam between the engine and the database: a method for each function of the schema that the engine calls.

What is here is all that Python knows of these functions: their names, the names and types of their arguments, and the
columns that are read. A test compares it with the catalog. A subclass that answers by itself stands in for a database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

from activation.engine.protocol import Database

R = TypeVar("R")

#: Types of arguments that Python has as a number: a time as Unix time, an interval as seconds.
UNIX_TIME, SECONDS = "timestamptz of Unix time", "interval of seconds"

_CONVERTED = {
    UNIX_TIME: "pg_catalog.to_timestamp({}::double precision)",
    SECONDS: "pg_catalog.make_interval(secs => {}::double precision)",
}


class Function:
    """A function of the schema that returns one value. arguments: their types by name, or the function that computes
    one on the way."""

    def __init__(self, name: str, /, **arguments: str | Function) -> None:
        self.name = name
        self.arguments = arguments
        self.call = self._call(1)[0]
        self.sql = f"SELECT {self.call} AS value"

    def _call(self, number: int) -> tuple[str, int]:
        """The call with parameters from $number on, and the number of the next one."""
        given = []
        for name, kind in self.arguments.items():
            if isinstance(kind, Function):
                value, number = kind._call(number)
            else:
                value, number = _CONVERTED.get(kind, f"{{}}::{kind}").format(f"${number}"), number + 1
            given.append(f"{name} => {value}")
        return f"activation.{self.name}({', '.join(given)})", number


class Table(Function, Generic[R]):
    """A function of the schema that returns rows. row: a named tuple of what is read of them. expressions: how a field
    is computed whose column has another name or type."""

    def __init__(
        self,
        name: str,
        row: Callable[..., R],
        expressions: Mapping[str, str] | None = None,
        /,
        **arguments: str | Function,
    ) -> None:
        super().__init__(name, **arguments)
        self.row = row
        fields = row._fields  # type: ignore[attr-defined]
        self.columns = {field: (expressions or {}).get(field, field) for field in fields}
        read = ", ".join(f'{column} AS "{field}"' for field, column in self.columns.items())
        self.sql = f"SELECT {read} FROM {self.call} AS found"


class Calls:
    """What all of them have: the transaction, and how a function is called."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def commit(self) -> None:
        """Commit what was called."""
        self._db.commit()

    def rollback(self) -> None:
        """Undo what is not committed."""
        self._db.rollback()

    def subtransaction(self) -> AbstractContextManager[object]:
        """A part that is undone by itself where it raises."""
        return self._db.subtransaction()

    def look(self) -> None:
        """Let a cancel or a shutdown through."""
        self._db.execute("SELECT 1 AS one")

    def _value(self, function: Function, *arguments: object) -> Any:
        return self._db.execute(function.sql, *arguments)[0]["value"]

    def _rows(self, table: Table[R], *arguments: object) -> list[R]:
        return [table.row(**row) for row in self._db.execute(table.sql, *arguments)]


_NOW = Function("_now")


# -- the rate, and secrets


class Permit(NamedTuple):
    """A permit for one request: its number (0 where there is no limit), and when the request may leave (Unix time)."""

    number: int
    free_at: float


_LOCK_PERMITS = Table(
    "_lock_permits",
    Permit,
    {"number": "n", "free_at": "extract(epoch FROM free_at)::double precision"},
    wanted="integer",
    ahead=SECONDS,
)
_TAKE_PERMITS = Function("_take_permits", permits="integer[]", lease=SECONDS)
_FREE_PERMIT = Function("_free_permit", permit="integer", left_at=UNIX_TIME, finished_at=UNIX_TIME)
_SECRET = Function("_secret", secret_name="text")
_DISARMED = Function("_disarmed", host="text")


class ProviderCalls(Calls):
    """What it takes to ask Resend anything: permits of its rate, and secrets."""

    def lock_permits(self, wanted: int, ahead: float) -> list[Permit]:
        """At most so many permits that are free now or so many seconds ahead, locked until the end of the
        transaction."""
        return self._rows(_LOCK_PERMITS, wanted, ahead)

    def take_permits(self, numbers: list[int], lease: float) -> None:
        """Hold locked permits until they are freed, for so many seconds at most. If this session ends, they are free a
        second later."""
        self._value(_TAKE_PERMITS, numbers, lease)

    def free_permit(self, number: int, left_at: float, finished_at: float | None) -> None:
        """Give a permit back whose request left and was answered then; None: the answer is not waited for."""
        self._value(_FREE_PERMIT, number, left_at, finished_at)

    def stored_secret(self, name: str) -> str | None:
        """What set_secret() stored under a name."""
        found: str | None = self._value(_SECRET, name)
        return found

    def disarmed(self, host: str) -> str | None:
        """Why nothing may be sent from this server; None where nothing but the mode keeps mail here."""
        found: str | None = self._value(_DISARMED, host)
        return found


# -- detection


class Due(NamedTuple):
    """What a round would find to do."""

    signals: bool
    wakes: bool
    people: bool
    sweeps: bool
    backfills: bool


class Question(NamedTuple):
    """People of a loop about whom one question is to be asked: their enrollments, when each was last woken, and whether
    it is new. The first row of a round carries no people: it says how many were taken, and what could not be looked
    at."""

    loop_id: int
    version: int
    step: int
    ids: list[int]
    woken_at: list[str | None]
    is_new: list[bool]
    taken: int | None = None
    problem: str | None = None


class Sweep(NamedTuple):
    """A sweep that is due: everybody at a step, in one bucket of the users, whose enrollment is after swept_to."""

    loop_id: int
    version: int
    step: int
    bucket: int
    swept_to: int


class Stretch(NamedTuple):
    """The next people of a sweep: their enrollments."""

    ids: list[int]


_SWEEP = {"loop_id": "integer", "version": "integer", "step": "integer", "bucket": "integer"}

_DETECT_DUE = Table("_detect_due", Due)
_LOCK_ALL_BUCKETS = Function("_lock_buckets", buckets=Function("_all_buckets"), wait="boolean")
_LOCK_MY_BUCKETS = Function("_lock_buckets", buckets=Function("_my_buckets", slot="integer"), wait="boolean")
_DETECT_TAKE = Table(
    "_detect_take",
    Question,
    {"woken_at": "woken_at", "is_new": "is_new"},
    buckets="integer[]",
    batch="integer",
    signals="boolean",
    wakes="boolean",
    people="boolean",
)
_DETECT_ASK = Function(
    "_detect_ask", loop_id="integer", version="integer", step="integer", ids="bigint[]", one_by_one="boolean"
)
_DETECT_DECIDE = Function(
    "_detect_decide",
    of_step="integer",
    ids="bigint[]",
    woken_at="timestamptz[]",
    is_new="boolean[]",
    true_keys="text[]",
)
_DETECT_DEFER = Function("_detect_defer", ids="bigint[]", woken_at="timestamptz[]", is_new="boolean[]")
_DETECT_BAD_USER = Function("_detect_bad_user", id="bigint", error="text")
_DETECT_SWEEPS = Table("_detect_sweeps", Sweep, buckets="integer[]")
_DETECT_SWEEP = Function("_detect_sweep", **_SWEEP, swept_to="bigint", batch="integer")
_DETECT_STRETCH = Table("_detect_stretch", Stretch, **_SWEEP, swept_to="bigint", batch="integer")
_ADVANCE_SWEEP = Function("_advance_sweep", **_SWEEP, ids="bigint[]", batch="integer")
_DETECT_STRIKE = Function("_detect_strike", loop_id="integer", error="text")
_DETECT_CANCELLED = Function("_detect_cancelled", loop_id="integer", seconds="double precision")
_DETECT_POSTPONE = Function("_detect_postpone", loop_id="integer", error="text")
_CLEAR_STRIKES = Function("_clear_strikes", loop_id="integer")
_FAIL_AT_ONCE = Function("_fail_at_once", loop_id="integer", kind="text", error="text", lost="boolean")
_EVALUATING = Function("_evaluating", loop_id="integer")
_NEXT_BACKFILL = Function("_next_backfill")
_BACKFILL_CHUNK = Function("_backfill_chunk", loop_id="integer", batch="integer")
_RENEW_WAKE = Function("_renew_wake")
_ORDER_SWEEP = Function("_order_sweep", loop_id="integer", due_at=_NOW)


class DetectCalls(Calls):
    """What a detector asks of the database."""

    def due(self) -> Due:
        """What a round would find to do."""
        return self._rows(_DETECT_DUE)[0]

    def lock_buckets(self, slot: int | None) -> list[int]:
        """Lock the buckets of the users that a detector has, as far as they are free; without a slot all of them, and
        wait for them. Returns which."""
        if slot is None:
            return list(self._value(_LOCK_ALL_BUCKETS, True))
        return list(self._value(_LOCK_MY_BUCKETS, slot, False))

    def take(self, buckets: list[int], batch: int, due: Due) -> tuple[Question, list[Question]]:
        """Enroll and gather who is to be asked about: the row that counts, and the questions."""
        count, *questions = self._rows(_DETECT_TAKE, buckets, batch, due.signals, due.wakes, due.people)
        return count, questions

    def ask(self, loop_id: int, version: int, step: int, ids: list[int], one_by_one: bool) -> list[str] | None:
        """Run an author's condition. Returns the keys of whom it holds for; None: the step has no condition."""
        found: list[str] | None = self._value(_DETECT_ASK, loop_id, version, step, ids, one_by_one)
        return found

    def decide(
        self,
        step: int,
        ids: list[int],
        woken_at: list[str | None],
        is_new: list[bool],
        true_keys: list[str] | None,
    ) -> None:
        """Write down what an answer means."""
        self._value(_DETECT_DECIDE, step, ids, woken_at, is_new, true_keys)

    def defer(self, ids: list[int], woken_at: list[str | None], is_new: list[bool]) -> None:
        """Put people off to the next round."""
        self._value(_DETECT_DEFER, ids, woken_at, is_new)

    def set_user_aside(self, enrollment_id: int, error: str | None) -> None:
        """Try one user, on whom the condition raises, again later."""
        self._value(_DETECT_BAD_USER, enrollment_id, error)

    def sweeps(self, buckets: list[int]) -> list[Sweep]:
        """The sweeps that are due, the longest due first."""
        return self._rows(_DETECT_SWEEPS, buckets)

    def sweep(self, sweep: Sweep, batch: int) -> int:
        """Ask about the next people of a sweep, and decide. Returns how many they were."""
        return int(self._value(_DETECT_SWEEP, *sweep, batch))

    def stretch(self, sweep: Sweep, batch: int) -> list[int]:
        """The next people of a sweep, whom nobody asks about yet."""
        return list(self._rows(_DETECT_STRETCH, *sweep, batch)[0].ids)

    def advance_sweep(self, sweep: Sweep, ids: list[int], batch: int) -> None:
        """These people of a sweep were asked about."""
        self._value(_ADVANCE_SWEEP, *sweep[:4], ids, batch)

    def strike(self, loop_id: int, error: str) -> bool:
        """A loop's condition raised as a whole. After the third time it is failing. Returns, as the next two do,
        whether it is written down that the loop is left alone for a while: not where somebody holds what would say so.
        """
        return bool(self._value(_DETECT_STRIKE, loop_id, error))

    def cancelled(self, loop_id: int, seconds: float) -> bool:
        """A loop's condition was cancelled after so long."""
        return bool(self._value(_DETECT_CANCELLED, loop_id, seconds))

    def postpone(self, loop_id: int, error: str) -> bool:
        """A loop's condition, or what its answer means, met somebody's lock, which is nobody's fault."""
        return bool(self._value(_DETECT_POSTPONE, loop_id, error))

    def order_sweep(self, loop_id: int) -> bool:
        """Have everybody asked about again whose condition is open in a loop. Returns whether somebody holds none of
        it."""
        return bool(self._value(_ORDER_SWEEP, loop_id))

    def clear_strikes(self, loop_id: int) -> None:
        """A loop's condition answered: its strikes are forgotten."""
        self._value(_CLEAR_STRIKES, loop_id)

    def fail_at_once(self, loop_id: int, error: str | None, lost: bool) -> bool:
        """A loop's code harmed the session. lost: for good. Returns as strike() does."""
        return bool(self._value(_FAIL_AT_ONCE, loop_id, "detect", error, lost))

    def evaluation_ended(self) -> None:
        """Say to the other workers that no author's code runs here any more."""
        self._value(_EVALUATING, None)

    def backfill_due(self) -> int | None:
        """A loop whose next chunk of users is to be enrolled: existing ones, or those whom a schedule returns."""
        found: int | None = self._value(_NEXT_BACKFILL)
        return found

    def backfill(self, loop_id: int, batch: int) -> int:
        """Make signals of the next users that a loop walks over. Returns how many."""
        return int(self._value(_BACKFILL_CHUNK, loop_id, batch))

    def renew_wake(self) -> bool | None:
        """Make the table of wakes anew where it has grown: None where it has not, False where it cannot be done now."""
        found: bool | None = self._value(_RENEW_WAKE)
        return found


# -- delivery


class DeliveryState(NamedTuple):
    """What a deliverer must know before it claims."""

    mode: str
    redirect_to: str | None
    disarmed: str | None
    paused: str | None
    paused_key: str | None
    sender: str | None
    reply_to: str | None
    resend_url: str
    api_key: str | None
    public_url: str | None
    signing_key: str | None
    slow: bool
    due: bool
    expired: bool


class Claimed(NamedTuple):
    """A message that was claimed, with what it takes to render it. user_row: None where it ended or was put back."""

    message_id: str
    loop_id: int
    version: int
    step: int
    branch: str
    next_attempt_at: str
    batch_limit: int | None
    email: str | None
    user_row: str | None
    newest_template_id: int
    context: str | None
    enrollment_id: int


class Repeat(NamedTuple):
    """A stored request whose outcome is not known."""

    request_id: str
    endpoint: str
    body: str


class StepEmail(NamedTuple):
    """What a branch of a step sends, as its version defines it; it never changes. action, recovery: JSON."""

    loop: str
    action: str
    recovery: str
    transactional: bool


class Template(NamedTuple):
    """A template of the database's own."""

    subject: str
    html: str | None
    body_text: str | None


#: How far the queue of each loop was walked: by loop, the due time and the id of the last message claimed.
Cursors = Mapping[int, tuple[str, str]]

_CURSORS = {"cursor_loops": "integer[]", "cursor_times": "timestamptz[]", "cursor_ids": "uuid[]"}

_DELIVER_DUE = Function("_deliver_due")
_DELIVER_STATE = Table("_deliver_state", DeliveryState, host="text", **_CURSORS)
_EXPIRE_REQUESTS = Function("_expire_requests")
_END_PAUSE = Function("_end_pause")
_CLAIM_REQUESTS = Table("_claim_requests", Repeat, new_lease_id="uuid", lease=SECONDS, wanted="integer")
_CLAIM_MESSAGES = Table("_claim_messages", Claimed, wanted="integer", **_CURSORS)
_STEP_EMAIL = Table("_step_email", StepEmail, loop_id="integer", version="integer", step="integer", branch="text")
_TEMPLATE = Table("_template", Template, template_name="text", newest_template_id="integer")
_STORE = Function(
    "_store_request",
    request_id="uuid",
    endpoint="text",
    body="text",
    members="uuid[]",
    recipients="text[]",
    subjects="text[]",
    mode="text",
    recovery="jsonb",
    lease_id="uuid",
    lease=SECONDS,
)
_FINISH = Function(
    "_finish_messages", message_ids="uuid[]", states="text[]", recipients="text[]", subjects="text[]", errors="text[]"
)
_END_QUEUED = Function("_end_queued", messages="uuid[]", state="text", cause="text", note="text")
_COUNT_HOURLY_SENDS = Function("_count_hourly_sends", loop_ids="integer[]", emails="integer[]")
_RECORD = Function(
    "_record_try",
    request_id="uuid",
    lease_id="uuid",
    outcome="text",
    resend_ids="text[]",
    http_status="integer",
    error_name="text",
    error="text",
    retry_after="double precision",
    started_at=UNIX_TIME,
    finished_at=UNIX_TIME,
)
_LEARN = Function(
    "_learn_from_answer",
    rate="numeric",
    rtt="double precision",
    pause_reason="text",
    pause_until="timestamptz",
    key_fingerprint="text",
    too_many="boolean",
)


class DeliverCalls(ProviderCalls):
    """What a deliverer asks of the database."""

    def due(self) -> bool:
        """Whether there is anything to claim or to give up, for who has walked no queue."""
        return bool(self._value(_DELIVER_DUE))

    def state(self, host: str, cursors: Cursors) -> DeliveryState:
        """The mode, whether and with what it may send, and whether there is anything to do."""
        return self._rows(_DELIVER_STATE, host, *_columns(cursors))[0]

    def expire_requests(self) -> None:
        """Give up requests whose outcome was not known for too long."""
        self._value(_EXPIRE_REQUESTS)

    def end_pause(self) -> None:
        """The provider is asked again."""
        self._value(_END_PAUSE)

    def claim_requests(self, lease_id: str, lease: float, wanted: int) -> list[Repeat]:
        """Requests that are to be repeated, at most so many."""
        return self._rows(_CLAIM_REQUESTS, lease_id, lease, wanted)

    def claim_messages(self, wanted: int, cursors: Cursors) -> list[Claimed]:
        """Messages that are due, at most so many, locked until the end of the transaction."""
        return self._rows(_CLAIM_MESSAGES, wanted, *_columns(cursors))

    def step_email(self, loop_id: int, version: int, step: int, branch: str) -> StepEmail:
        """What a branch of a step sends."""
        return self._rows(_STEP_EMAIL, loop_id, version, step, branch)[0]

    def template(self, name: str, newest_id: int) -> Template | None:
        """The newest version of a template up to this id; None where the database has none of that name."""
        found = self._rows(_TEMPLATE, name, newest_id)
        return found[0] if found else None

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
        """Keep a request that is about to be sent. members: its messages, in the order of the body."""
        given = (request_id, endpoint, body, members, recipients, subjects, mode, recovery, lease_id, lease)
        self._value(_STORE, *given)

    def finish_messages(
        self,
        message_ids: list[str],
        states: list[str],
        recipients: list[str | None],
        subjects: list[str | None],
        errors: list[str | None],
    ) -> None:
        """Messages that end without a request."""
        self._value(_FINISH, message_ids, states, recipients, subjects, errors)

    def set_message_aside(self, message_id: str, error: str | None) -> None:
        """End a message on which the claim raises, if it is still queued."""
        self._value(_END_QUEUED, [message_id], "failed", "claim_raised", error)

    def count_hourly_sends(self, emails: Mapping[int, int]) -> None:
        """So many emails of each loop are about to leave."""
        self._value(_COUNT_HOURLY_SENDS, list(emails), list(emails.values()))

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
        """Write down what came of one try."""
        given = (outcome, resend_ids, http_status, error_name, error, retry_after, started_at, finished_at)
        self._value(_RECORD, request_id, lease_id, *given)

    def learn(
        self,
        rate: float | None,
        rtt: float | None,
        pause_reason: str | None,
        pause_until: str | None,
        key_fingerprint: str,
        too_many: bool,
    ) -> None:
        """What an answer says about the provider. pause_until: a time as text."""
        self._value(_LEARN, rate, rtt, pause_reason, pause_until, key_fingerprint, too_many)

    def after(self, seconds: float) -> str:
        """The time so many seconds from now, on the engine's clock."""
        return str(self._text(f"{_NOW.call} + pg_catalog.make_interval(secs => $1::double precision)", seconds))

    def next_midnight(self) -> str:
        """When the next day begins in UTC, on the engine's clock."""
        day = f"pg_catalog.date_trunc('day', {_NOW.call} AT TIME ZONE 'UTC')"
        return str(self._text(f"({day} + interval '1 day') AT TIME ZONE 'UTC'"))

    def _text(self, expression: str, *arguments: object) -> Any:
        return self._db.execute(f"SELECT ({expression})::text AS value", *arguments)[0]["value"]


def _columns(cursors: Cursors) -> tuple[list[int], list[str], list[str]]:
    return list(cursors), [at for at, _ in cursors.values()], [id_ for _, id_ in cursors.values()]


# -- feedback


class PullState(NamedTuple):
    """What is to be asked of Resend, and where. problem: why nothing is."""

    problem: str | None
    resend_url: str | None
    api_key: str | None
    webhook_id: str | None
    pulled_to: float
    sync_due: bool


class _Text(NamedTuple):
    value: str


_PULL_STATE = Table("_pull_state", PullState, host="text")
_UNKNOWN_EVENTS = Table("_unknown_events", _Text, {"value": "found"}, ids="text[]")
_EVENT = Function("_parse_event", body="text")
_KEEP_EVENT = Function("_keep_event", webhook_id="text", event="jsonb", fallback_time=UNIX_TIME, now=_NOW)
_PULLED = Function("_note_pull", of_webhook="text", upto="double precision")
_IMPORT_SUPPRESSIONS = Function("_import_suppressions", addresses="text[]", origins="text[]")
_UNEXPORTED = Table("_unexported_suppressions", _Text, {"value": "found"}, known="text[]")
_UNSUPPRESSED = Function("_note_unsuppressed", addresses="text[]")
_SYNCED = Function("_note_sync")


class FeedbackCalls(ProviderCalls):
    """What a puller asks of the database."""

    def state(self, host: str) -> PullState:
        """What is to be asked."""
        return self._rows(_PULL_STATE, host)[0]

    def unknown_events(self, ids: list[str]) -> set[str]:
        """Those of these events that are not known yet."""
        return {row.value for row in self._rows(_UNKNOWN_EVENTS, ids)}

    def keep_event(self, webhook_id: str, text: str, fallback: str, happened_at: float) -> None:
        """Keep an event as a webhook would bring it. fallback: what is kept where PostgreSQL cannot read its text."""
        event: str | None = self._value(_EVENT, text)
        self._value(_KEEP_EVENT, webhook_id, event or fallback, happened_at)

    def pulled(self, webhook_id: str, upto: float) -> None:
        """All events of a webhook up to this time are read."""
        self._value(_PULLED, webhook_id, upto)

    def to_unsuppress(self) -> list[str]:
        """Addresses that are to be removed from Resend's list."""
        return [str(row["address"]) for row in self._db.execute("SELECT address FROM activation.unsuppression")]

    def unsuppressed(self, addresses: list[str]) -> None:
        """These are removed from Resend's list."""
        self._value(_UNSUPPRESSED, addresses)

    def import_suppressions(self, addresses: list[str], origins: list[str | None]) -> None:
        """Take over a page of Resend's list."""
        self._value(_IMPORT_SUPPRESSIONS, addresses, origins)

    def unexported_suppressions(self, known: list[str]) -> list[str]:
        """What Resend's list lacks of ours, given all of it."""
        return [row.value for row in self._rows(_UNEXPORTED, known)]

    def synced(self) -> None:
        """Both lists are the same."""
        self._value(_SYNCED)


# -- workers


class Overdue(NamedTuple):
    """What was done to another worker, and for how long it had run: code of a loop, or nothing that gave a sign of
    life."""

    loop_id: int | None
    seconds: float
    deed: str


class Done(NamedTuple):
    """What a task of housekeeping left to do, and what it could not do."""

    more: bool | None = None
    problem: str | None = None


_STARTED_DURING_STOP = Function("_started_during_stop", application_name="text")
_TAKE_SLOT = Function("_take_slot", kind="text", slot="integer")
_LEAVE_SLOT = Function("_leave_slot", kind="text", slot="integer")
_BEAT = Function("_beat", kind="text", slot="integer", worked="boolean", note="text")
_END_OVERDUE = Table("_end_overdue", Overdue)
_SET_WATCHING = Function("_set_watching", watching="boolean")
_APPLY_EVENTS = Function("_apply_events")
_ERASE_DUE = Table("_erase_due", Done, {"more": "NULL::boolean"})
_HOUSEKEEP = Table("_housekeep", Done)
_PRUNE_JOB_RUNS = Function("_prune_job_runs")


class WorkerCalls(Calls):
    """What every worker asks of the database."""

    def started_during_stop(self, application_name: str) -> bool:
        """Whether pg_cron began this run while stop() was removing its job."""
        return bool(self._value(_STARTED_DURING_STOP, application_name))

    def take_slot(self, kind: str, slot: int) -> bool:
        """Take a slot for this session. Returns whether it is ours."""
        return bool(self._value(_TAKE_SLOT, kind, slot))

    def leave_slot(self, kind: str, slot: int) -> None:
        """Give a slot back."""
        self._value(_LEAVE_SLOT, kind, slot)

    def beat(self, kind: str, slot: int, worked: bool, note: str | None) -> bool:
        """A heartbeat. Returns whether to go on."""
        return bool(self._value(_BEAT, kind, slot, worked, note))

    def end_overdue(self) -> list[Overdue]:
        """End what other workers have run for too long."""
        return self._rows(_END_OVERDUE)

    def watch_tables(self) -> None:
        """Have the capture functions write wakes, and sweep once for what came before."""
        if self._value(_SET_WATCHING, True):
            self._value(_ORDER_SWEEP, None)

    def apply_events(self) -> Done:
        """Bring what Resend told too early to its messages."""
        self._value(_APPLY_EVENTS)
        return Done()

    def erase_due(self) -> Done:
        """Forget who is to be forgotten."""
        return self._rows(_ERASE_DUE)[0]

    def housekeep(self) -> Done:
        """Remove a little of what is old."""
        return self._rows(_HOUSEKEEP)[0]

    def prune_job_runs(self) -> Done:
        """Remove old runs from pg_cron's table."""
        self._value(_PRUNE_JOB_RUNS)
        return Done()


_SETTLE = Function("_settle")
_END_SESSION = Function("_end_session")
_SETTLED = (
    f"SELECT {_SETTLE.call} AS trusted,"
    " pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false) AS search_path"
)


def settle(db: Database) -> bool:
    """Before a commit: let what an author's code would have left for it run now, where nobody can take other rights,
    and set the path again, whatever it was set to. Returns whether the session can be gone on with."""
    return bool(db.execute(_SETTLED)[0]["trusted"])


def end_session(db: Database) -> None:
    """End this session, for good."""
    db.execute(_END_SESSION.sql)


#: All functions that are called, for the test that compares them with the catalog.
FUNCTIONS: list[Function] = [found for found in list(globals().values()) if isinstance(found, Function)]
