-- Strikes: a loop whose code fails gets one, and is failing after three of them. The people who
-- were to be asked about are asked about again later.

-- Writes down a strike against a loop whose code raised as a whole or ran too long. It is tried
-- again after a while, which is returned; after the third strike it is failing and left alone until
-- resume_loop(), or until it is defined again. Nobody waits for what an author's open transaction,
-- or a worker that is stuck in an author's code, may hold: then the strike is lost, which is
-- returned as NULL, and comes again.
CREATE FUNCTION activation._strike(loop_id integer, kind text, error text) RETURNS timestamptz
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    now timestamptz := activation._now();
    struck activation.strike;
BEGIN
    INSERT INTO activation.strike AS k (loop_id, kind, strikes, retry_at, last_error, struck_at)
    VALUES (_strike.loop_id, _strike.kind, 1, now + interval '10 seconds', error, now)
    ON CONFLICT ON CONSTRAINT strike_pkey DO UPDATE
       SET strikes = k.strikes + 1,
           retry_at = now + interval '10 seconds' * (k.strikes + 1),
           last_error = excluded.last_error,
           struck_at = excluded.struck_at
    RETURNING k.* INTO struck;
    IF struck.strikes >= 3 THEN
        PERFORM activation._try_loop_state(loop_id, 'failing', error, '{active,stopped}');
    END IF;
    RETURN struck.retry_at;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$$;

-- Makes a loop failing at once, whose code did something to the session that it ran in. lost: that
-- cannot be mended, and the session ends when this is committed. Returns whether it is written.
CREATE FUNCTION activation._fail_at_once(loop_id integer, kind text, error text, lost boolean)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    written boolean := activation._strike(loop_id, kind, error) IS NOT NULL;
BEGIN
    IF written THEN
        UPDATE activation.strike k
           SET strikes = greatest(k.strikes, 3)
         WHERE k.loop_id = _fail_at_once.loop_id
           AND k.kind = _fail_at_once.kind;
    END IF;
    PERFORM activation._try_loop_state(loop_id, 'failing', error, '{active,stopped}');
    IF lost THEN
        PERFORM set_config('activation.untrusted', 'on', false);
    END IF;
    RETURN written;
END
$$;

-- A strike against a loop's condition. Its people are swept when it is tried again. Returns whether
-- both are written.
CREATE FUNCTION activation._detect_strike(loop_id integer, error text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    again timestamptz := activation._strike(loop_id, 'detect', error);
BEGIN
    RETURN activation._order_sweep(
               loop_id, coalesce(again, activation._now() + interval '10 seconds'))
       AND again IS NOT NULL;
END
$$;

-- Puts a loop's condition off without a strike: it waited for a lock of the app, or somebody
-- cancelled it, and that is nobody's fault. Its people are swept a little later. Where an author's
-- open transaction holds the row that says so, the detector alone remembers. Returns whether it is
-- written.
CREATE FUNCTION activation._detect_postpone(loop_id integer, error text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    again timestamptz := activation._now() + interval '3 seconds';
    written boolean := true;
BEGIN
    BEGIN
        INSERT INTO activation.strike AS k
               (loop_id, kind, strikes, retry_at, last_error, struck_at)
        VALUES (_detect_postpone.loop_id, 'detect', 0, again, error, activation._now())
        ON CONFLICT ON CONSTRAINT strike_pkey DO UPDATE
           SET retry_at = excluded.retry_at,
               last_error = excluded.last_error,
               struck_at = excluded.struck_at;
    EXCEPTION WHEN lock_not_available THEN
        written := false;
    END;
    RETURN activation._order_sweep(_detect_postpone.loop_id, again) AND written;
END
$$;

-- Decides what a cancelled condition means for its loop. Too long a run is a strike. Any other
-- cancel is not blamed on the loop when it happens once; but its own code may raise the same error,
-- so the second time in a row is a strike, too.
CREATE FUNCTION activation._detect_cancelled(loop_id integer, seconds double precision)
RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF activation._over_condition_timeout(seconds) THEN
        RETURN activation._detect_strike(
            loop_id, 'its condition was cancelled, because it ran too long');
    ELSIF EXISTS (
        SELECT FROM activation.strike k
         WHERE k.loop_id = _detect_cancelled.loop_id AND k.kind = 'detect')
    THEN
        RETURN activation._detect_strike(loop_id, 'its condition raised: it was cancelled');
    ELSE
        RETURN activation._detect_postpone(loop_id, 'its condition was cancelled');
    END IF;
END
$$;

-- Forgets the strikes against a loop's condition, since it has just been evaluated without an
-- error. Strikes that somebody holds are struck or forgotten just now.
CREATE FUNCTION activation._clear_strikes(loop_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM activation.strike k
     WHERE k.ctid = ANY (ARRAY(SELECT x.ctid
                                 FROM activation.strike x
                                WHERE x.loop_id = _clear_strikes.loop_id
                                  AND x.kind = 'detect'
                                  FOR UPDATE SKIP LOCKED))
$$;

-- Leaves to the next round the people about whom this one has no time to ask, with when they were
-- woken and whether they are new.
CREATE FUNCTION activation._detect_defer(ids bigint[], woken_at timestamptz[], is_new boolean[])
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
SET plan_cache_mode = force_custom_plan
AS $$
    UPDATE activation.enrollment e
       SET retry_at = activation._now(),
           deferred_wake = a.at,
           deferred_new = a.is_new
      FROM unnest(ids, woken_at, is_new) AS a(id, at, is_new)
     WHERE e.enrollment_id = a.id
       AND e.retry_at IS NULL
$$;

-- Keeps aside one user on whom the condition raises, to be tried again later, so that the others go
-- on.
CREATE FUNCTION activation._detect_bad_user(id bigint, error text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$
    UPDATE activation.enrollment e
       SET last_error = error,
           retry_at = activation._now() + interval '1 minute'
     WHERE e.enrollment_id = id
$$;
