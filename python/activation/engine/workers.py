"""Runs of the workers: how long they last, how often they look, and that there is one a slot.

Delivery is imported where it is used: a detector needs neither requests nor liquid.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from activation.engine.calls import DeliverCalls, DetectCalls, Done, FeedbackCalls, WorkerCalls
from activation.engine.detect import Detector
from activation.engine.protocol import Cancelled, Database, Failed, storable

if TYPE_CHECKING:
    from activation.engine.deliver import Deliverer
    from activation.engine.feedback import Feedback

#: Seconds between two polls: while there was work within the last WARM seconds, and otherwise. While at least MANY
#: signals and wakes come at a time, a detector waits POLL_BUSY, so that even more come at a time: a look costs as much
#: as hundreds of signals.
POLL_WARM = 0.01
POLL_IDLE = 0.12
POLL_BUSY, MANY = 0.03, 50
WARM = 5.0

#: Heartbeats this far apart (seconds).
BEAT = 2.0

#: Looks for what is old after so many seconds of a run, and then this far apart (seconds).
FIRST_HOUSEKEEPING = 5.0
HOUSEKEEPING = 30.0

#: A deliverer whose run is over claims nothing more and waits for its answers. Where that takes longer than DRAIN
#: (seconds), from a slow provider or for one slow answer, it goes on for another minute, so often at most.
DRAIN = 0.5
MORE_MINUTES = 5

#: After an error that nobody expected, a worker waits so long (seconds).
AFTER_ERROR = 1.0

#: How long a worker waits for a lock.
LOCK_TIMEOUT = "1s"


class WorkerDatabase(Database, Protocol):
    """A database that can also speak to whoever called the worker."""

    def refuse(self, message: str, hint: str, code: str) -> None:
        """Raise an error for whoever called the worker."""

    def commit_settings(self) -> None:
        """Commit where no author's code has run since the last commit: settings of the session stay."""

    def warn(self, message: str) -> None:
        """Warn whoever called the worker."""

    def notice(self, message: str) -> None:
        """Tell whoever called the worker."""


def _end_of_run(db: WorkerDatabase) -> tuple[float, bool]:
    """When a run ends: one second after the next full minute, when pg_cron has queued the next one; earlier where a
    statement_timeout would end it. And whether it may last longer."""
    row = db.execute(
        "SELECT extract(epoch FROM clock_timestamp())::double precision AS now,"
        " extract(epoch FROM clock_timestamp() - statement_timestamp())::double precision AS since,"
        " (SELECT s.setting::double precision / 1000 FROM pg_catalog.pg_settings s"
        "   WHERE s.name = 'statement_timeout') AS timeout"
    )[0]
    seconds = 61 - row["now"] % 60
    if row["timeout"]:
        # Which counts from the statement's beginning: the imports came before this.
        seconds = min(seconds, max(row["timeout"] - 2, row["timeout"] / 2) - row["since"])
    return time.monotonic() + float(seconds), not row["timeout"]


@contextlib.contextmanager
def _slot(db: WorkerDatabase, kind: str, slot: int) -> Iterator[bool]:
    """Holds a worker's slot: one worker a slot. Committing workers need READ COMMITTED."""
    try:
        db.commit_settings()
    except Failed as error:
        if error.code == "2D000":
            db.refuse(
                "a worker commits, so it cannot be called inside a transaction or a function",
                "CALL it on its own: outside BEGIN, and not from a function or a DO block.",
                "2D000",
            )
        raise
    if db.execute("SELECT EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable) AS some")[0]["some"]:
        db.refuse(
            "this session has open cursors, which a loop's own code could read",
            "CLOSE ALL; or CALL it in another session.",
            "55000",
        )
    # A worker's statements may not be redirected by the session's search_path, nor fail for a stricter isolation level.
    kept = db.execute(
        "SELECT pg_catalog.current_setting('search_path') AS search_path,"
        " pg_catalog.current_setting('default_transaction_isolation') AS default_transaction_isolation,"
        " pg_catalog.current_setting('lock_timeout') AS lock_timeout,"
        " pg_catalog.current_setting('jit') AS jit,"
        " pg_catalog.current_setting('application_name') AS application_name,"
        " coalesce(pg_catalog.current_setting('activation.no_locks', true), '') AS \"activation.no_locks\","
        " pg_catalog.current_setting('session_authorization') AS session_authorization,"
        " pg_catalog.current_setting('role') AS role"
    )[0]
    got = False
    try:
        _set(db, "search_path", "pg_catalog, pg_temp")
        _set(db, "default_transaction_isolation", "read committed")
        # Its statements are many and short; one that the planner takes for a long one would be compiled for longer than
        # it runs.
        _set(db, "jit", "off")
        # For people who look; nothing reads it.
        _set(db, "application_name", f"activation {kind}" if kind == "tick" else f"activation {kind} {slot}")
        if kind != "tick":
            # Workers do not wait for each other for long: one may hold a row while it runs an author's endless query,
            # which another one is to cancel; nor does an author's query wait for the app's migrations.
            _set(db, "lock_timeout", LOCK_TIMEOUT)
        _become_engine(db)
        # Whoever calls a worker may hold advisory locks; where there are none, what is there after an author's code is
        # its own.
        holds = "SELECT FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()"
        if not db.execute(f"SELECT EXISTS ({holds}) AS some")[0]["some"]:
            _set(db, "activation.no_locks", "on")
        db.commit_settings()
        calls = WorkerCalls(db)
        got = not calls.started_during_stop(kept["application_name"]) and calls.take_slot(kind, slot)
        db.commit()
        yield got
    finally:
        try:
            _leave(db, kind, slot, got, kept)
        except (Cancelled, Failed):
            # A cancel may arrive just now; who lives on keeps the slot no longer for that.
            _leave(db, kind, slot, got, kept)
            raise


def _leave(db: WorkerDatabase, kind: str, slot: int, got: bool, kept: dict[str, str]) -> None:
    """Gives the slot back, if it was got, and leaves the session as it was."""
    db.rollback()
    if got:
        WorkerCalls(db).leave_slot(kind, slot)
    # Who one is comes first, and the role after the session.
    for name in ("session_authorization", "role"):
        _set(db, name, kept[name])
    for name, value in kept.items():
        if name not in ("session_authorization", "role"):
            _set(db, name, value)
    db.commit_settings()


def _become_engine(db: WorkerDatabase) -> None:
    """Takes the rights of the engine's role, which may call the engine and nothing else; where the session may not
    become it, it goes on with its own."""
    for name in ("session_authorization", "role"):
        try:
            with db.subtransaction():
                _set(db, name, "activation_engine")
        except Failed:
            continue
        break


def _set(db: WorkerDatabase, name: str, value: str) -> None:
    db.execute("SELECT pg_catalog.set_config($1, $2, false)", name, value)


@contextlib.contextmanager
def _worker(db: WorkerDatabase, kind: str, slot: int) -> Iterator[bool]:
    """What every worker stands in: False where there is nothing for it to do, on a standby, in a slot that is taken, or
    in a run that began during stop(). Errors keep their SQLSTATE."""
    try:
        if db.execute("SELECT pg_catalog.pg_is_in_recovery() AS standby")[0]["standby"]:
            yield False
        else:
            with _slot(db, kind, slot) as got:
                yield got
    except (Cancelled, Failed) as error:
        raise (error.__cause__ or error) from None


def _watch_tables(db: WorkerDatabase) -> None:
    WorkerCalls(db).watch_tables()
    db.commit()


class _Pulse:
    """Heartbeats of one worker, and the word whether to go on."""

    def __init__(self, db: WorkerDatabase, kind: str, slot: int) -> None:
        self._db, self._calls, self._kind, self._slot = db, WorkerCalls(db), kind, slot
        self._next = 0.0
        self._worked = False
        self.go_on = True

    def beat(self, worked: bool, note: str | None) -> None:
        self._worked = self._worked or worked
        if time.monotonic() < self._next:
            return
        self.go_on = self._calls.beat(self._kind, self._slot, self._worked, note)
        self._db.commit()
        self._worked = False
        self._next = time.monotonic() + BEAT
        self._watch_others()

    def _watch_others(self) -> None:
        again = True
        while again:
            again = False
            for ended in self._calls.end_overdue():
                if ended.deed == "struck":
                    # Its worker is terminated next, when whoever takes over can see the strike.
                    again = True
                    continue
                what = f"ran code of loop {ended.loop_id}" if ended.loop_id else "gave no sign of life"
                self._db.warn(f"activation {ended.deed} a worker that {what} for {ended.seconds:.0f} s")
            self._db.commit()


class _Housekeeping:
    """Looks now and then for what is to be removed, and removes it little by little, at leisure while there is work.
    A task that raises keeps neither the others nor the worker from going on; it is tried again the next time."""

    def __init__(self, db: WorkerDatabase) -> None:
        self._db, self._calls = db, WorkerCalls(db)
        self._next = time.monotonic() + FIRST_HOUSEKEEPING
        self._problems: dict[str, str] = {}

    @property
    def note(self) -> str | None:
        """What could not be done the last time, for status."""
        return "; ".join(self._problems.values()) or None

    def turn(self, idle: bool) -> None:
        if time.monotonic() < self._next:
            return
        more = self.some()
        if not more:
            self._task("_prune_job_runs", self._calls.prune_job_runs)
        self._next = time.monotonic() + (HOUSEKEEPING if not more else 0 if idle else 1)

    def some(self) -> bool:
        """Removes a little, brings what Resend told too early to its messages, and forgets who is to be forgotten.
        Returns whether there is more."""
        self._task("_apply_events", self._calls.apply_events)
        self._task("_erase_due", self._calls.erase_due)
        return bool(self._task("_housekeep", self._calls.housekeep).more)

    def _task(self, name: str, act: Callable[[], Done]) -> Done:
        try:
            done = act()
            self._db.commit()
        except Failed as error:
            self._db.rollback()
            if not error.passing:
                self._problems[name] = storable(f"{name}: {error.text}") or name
            return Done()
        if done.problem:
            self._problems[name] = done.problem
        else:
            self._problems.pop(name, None)
        return done


def _patiently(db: WorkerDatabase, act: Callable[[], None]) -> None:
    done = False
    while not done:
        with _passing(db):
            act()
            done = True


@contextlib.contextmanager
def _passing(db: WorkerDatabase) -> Iterator[None]:
    """Lets a collision with others pass: what was begun is undone, and done anew in a moment."""
    try:
        yield
    except Failed as error:
        db.rollback()
        if not error.passing:
            raise
        time.sleep(POLL_IDLE)


class _Steadfast:
    """Lets any error pass but a cancel: what was begun is undone, told by status, and done anew after a while. Only who
    cannot even write a heartbeat ends."""

    def __init__(self, db: WorkerDatabase) -> None:
        self._db = db
        self._warned: set[str] = set()
        self.note: str | None = None

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        try:
            with _passing(self._db):
                yield
                self.note = None
        except Cancelled:
            raise
        except Exception as error:
            self._db.rollback()
            said = error.text if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            self.note = storable(f"raised, and goes on: {said}") or ""
            if said not in self._warned:
                # Once a run, that is once a minute.
                self._warned.add(said)
                self._db.warn(f"activation's worker {self.note}")
            time.sleep(AFTER_ERROR)


def detect(db: WorkerDatabase, slot: int) -> None:
    """One run of a detector: rounds until a second past the next full minute."""
    with _worker(db, "detector", slot) as wanted:
        if not wanted:
            return
        detector, pulse = Detector(DetectCalls(db), slot), _Pulse(db, "detector", slot)
        end, warm_until = _end_of_run(db)[0], 0.0
        housekeeping = _Housekeeping(db)
        # The heartbeat comes first: who is stuck in a first round is found by it.
        _patiently(db, lambda: pulse.beat(False, None))
        _patiently(db, lambda: _watch_tables(db))
        steadfast, worked = _Steadfast(db), False
        while time.monotonic() < end and pulse.go_on:
            with _passing(db):
                pulse.beat(worked, _notes(steadfast.note, detector.note, housekeeping.note))
            worked = False
            with steadfast.going_on():
                worked = detector.round()
                housekeeping.turn(not worked)
                if worked:
                    warm_until = time.monotonic() + WARM
                if not detector.more:
                    warm = POLL_BUSY if detector.taken >= MANY else POLL_WARM
                    time.sleep(warm if time.monotonic() < warm_until else POLL_IDLE)


def deliver(db: WorkerDatabase, slot: int) -> None:
    """One run of a deliverer: turns until a second past the next full minute, then until nothing is in flight. Other
    mail does not wait for an answer that is slow to come."""
    from activation.engine.deliver import Deliverer

    with _worker(db, "deliverer", slot) as wanted:
        if not wanted:
            return
        pulse, (end, may_last), warm_until = _Pulse(db, "deliverer", slot), _end_of_run(db), 0.0
        minutes_left = MORE_MINUTES if may_last else 0
        deliverer, steadfast, worked = Deliverer(DeliverCalls(db), socket.gethostname()), _Steadfast(db), False
        if disarmed := DeliverCalls(db).disarmed(socket.gethostname()):
            # Once a run, that is once a minute.
            db.warn(f"activation sends nothing: {disarmed}")
        try:
            _patiently(db, lambda: pulse.beat(False, None))
            while (in_time := pulse.go_on and time.monotonic() < end) or deliverer.busy:
                if not in_time and pulse.go_on and minutes_left and (deliverer.slow or time.monotonic() > end + DRAIN):
                    end, minutes_left = end + 60, minutes_left - 1
                    continue
                with _passing(db):
                    pulse.beat(worked, _notes(steadfast.note, deliverer.note))
                worked = False
                with steadfast.going_on():
                    worked = deliverer.turn(in_time)
                    if worked:
                        warm_until = time.monotonic() + WARM
                    else:
                        _watch(
                            db, deliverer, POLL_WARM if deliverer.busy or time.monotonic() < warm_until else POLL_IDLE
                        )
        finally:
            deliverer.close()


def _notes(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


def _watch(db: WorkerDatabase, deliverer: Deliverer, seconds: float) -> None:
    """Waits with no transaction open, then touches the server once, so that a cancel or a shutdown gets through: a turn
    with requests in flight may do without the server, one with none never does."""
    deliverer.wait(seconds)
    if deliverer.busy:
        db.execute("SELECT 1 AS one")
        db.rollback()


def tick(db: WorkerDatabase) -> None:
    """Everything that is due: rounds and turns until there is nothing left to do now."""
    from activation.engine.deliver import Deliverer

    with _worker(db, "tick", 0) as wanted:
        if not wanted:
            return
        _watch_tables(db)
        detector, deliverer = Detector(DetectCalls(db), None), Deliverer(DeliverCalls(db), socket.gethostname())
        try:
            while True:
                worked = False
                while detector.round():
                    worked = True
                while deliverer.turn() or deliverer.busy or deliverer.out_of_permits:
                    worked = True
                    if deliverer.busy or deliverer.out_of_permits:
                        _watch(db, deliverer, POLL_WARM)
                if not worked and not deliverer.rewind():
                    break
            housekeeping = _Housekeeping(db)
            while housekeeping.some():
                pass
        finally:
            deliverer.close()


def pull_webhooks(db: WorkerDatabase) -> None:
    """Reads what Resend has to tell since the last time; every hour also its suppression list, where that is wanted."""
    from activation.engine.feedback import Feedback

    with _worker(db, "puller", 1) as wanted:
        if not wanted:
            return
        feedback = Feedback(FeedbackCalls(db), socket.gethostname(), _end_of_run(db)[0])
        read = feedback.pull()
        if feedback.sync_due:
            feedback.sync()
        _Pulse(db, "puller", 1).beat(read > 0, feedback.note)
        _tell(db, feedback)


def sync_suppressions(db: WorkerDatabase) -> None:
    """Makes Resend's list of suppressed addresses and ours the same."""
    from activation.engine.feedback import Feedback

    with _worker(db, "puller", 1) as wanted:
        if not wanted:
            return
        feedback = Feedback(FeedbackCalls(db), socket.gethostname(), _end_of_run(db)[0] + 60)
        feedback.sync()
        _tell(db, feedback)


def _tell(db: WorkerDatabase, feedback: Feedback) -> None:
    if feedback.idle:
        db.notice(f"activation asked Resend nothing: {feedback.note}")
    elif feedback.note:
        db.warn(f"activation did not ask Resend everything: {feedback.note}")
