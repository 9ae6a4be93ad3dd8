-- Detection: signals and wakes in, enrollments and messages out. Each function here and in the next three parts is one
-- transaction's worth of work; the loops that call them and commit are in Python.

-- plan_cache_mode, where a function sets it: a plan for arrays of unknown length expects ten entries, and one made while a
-- table was small scans it for as long as the session lives. Both turned milliseconds into seconds. For the same reason
-- people are looked up one by one (LATERAL … OFFSET 0) where the planner could begin at the wrong end.

-- ---- the black box -----------------------------------------------------------------------------------------------------

-- What a session holds that a rolled back subtransaction does not give back: prepared statements, and advisory locks.
CREATE TYPE activation.held_statement AS (name text, prepared_at timestamptz, from_sql boolean, statement text, types oid[]);
COMMENT ON TYPE activation.held_statement IS 'A prepared statement of the session, as it was before an author''s code ran.';

CREATE FUNCTION activation._held_statements() RETURNS activation.held_statement[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT ARRAY(SELECT ROW(p.name, p.prepare_time, p.from_sql, p.statement, p.parameter_types::oid[])::activation.held_statement
                   FROM pg_prepared_statements p ORDER BY p.name);
END;

-- NULL where the session is known to have none of its own (activation.no_locks, set by workers): then what is there after
-- an author's code is its.
CREATE FUNCTION activation._held_locks() RETURNS text[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN current_setting('activation.no_locks', true) IS DISTINCT FROM 'on'
                THEN ARRAY(SELECT format('%s %s %s %s', l.classid, l.objid, l.objsubid, l.mode)
                             FROM pg_locks l WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid() ORDER BY 1) END;
END;

-- Brings a session back to what it held before an author's code ran: what is new goes. What is missing cannot be had
-- again. Returns what the code did, NULL if nothing; lost: something is missing; missing: the statements that are.
CREATE FUNCTION activation._mend_session(held_statements activation.held_statement[], held_locks text[],
                                         OUT done text, OUT lost boolean, OUT missing activation.held_statement[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    statement text;
    lock record;
BEGIN
    lost := false;
    missing := '{}';
    IF activation._held_statements() IS NOT DISTINCT FROM held_statements
       AND (held_locks IS NULL OR activation._held_locks() IS NOT DISTINCT FROM held_locks) THEN
        RETURN;
    END IF;
    FOR statement IN SELECT h.name FROM unnest(activation._held_statements()) AS h WHERE h <> ALL (held_statements) LOOP
        EXECUTE format('DEALLOCATE %I', statement);
        done := concat_ws(', ', done, format('it prepared statement %I', statement));
    END LOOP;
    missing := ARRAY(SELECT h FROM unnest(held_statements) AS h WHERE h <> ALL (activation._held_statements()));
    IF missing <> '{}' THEN
        lost := true;
        done := concat_ws(', ', done, (SELECT 'it took away prepared statement ' || string_agg(quote_ident(m.name), ', ' ORDER BY m.name)
                                         FROM unnest(missing) AS m));
    END IF;
    IF held_locks IS NULL THEN
        PERFORM pg_advisory_unlock_all();
        RETURN;
    END IF;
    LOOP
        SELECT l.classid::bigint AS high, l.objid::bigint AS low, l.objsubid, l.mode = 'ShareLock' AS shared INTO lock
          FROM pg_locks l
         WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid()
           AND format('%s %s %s %s', l.classid, l.objid, l.objsubid, l.mode) <> ALL (held_locks) LIMIT 1;
        EXIT WHEN NOT FOUND;
        EXECUTE CASE lock.objsubid
            WHEN 1 THEN format('SELECT pg_advisory_unlock%s(%s)', CASE WHEN lock.shared THEN '_shared' END, (lock.high::bit(32) || lock.low::bit(32))::bit(64)::bigint)
            ELSE format('SELECT pg_advisory_unlock%s(%s, %s)', CASE WHEN lock.shared THEN '_shared' END, lock.high::bit(32)::integer, lock.low::bit(32)::integer) END;
        done := concat_ws(', ', done, 'it took an advisory lock');
    END LOOP;
    IF EXISTS (SELECT FROM unnest(held_locks) AS h WHERE h <> ALL (activation._held_locks())) THEN
        lost := true;
        done := concat_ws(', ', done, 'it gave an advisory lock of the session back');
    END IF;
END
$$;

-- Compares, after an author's code has run, what the session holds with what it held. ACT04: something was new, and is gone
-- again; ACT05: something is missing, and whoever uses this session next cannot trust it.
CREATE FUNCTION activation._check_session(held_statements activation.held_statement[], held_locks text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mended record;
BEGIN
    SELECT m.* INTO mended FROM activation._mend_session(held_statements, held_locks) m;
    IF mended.done IS NULL THEN
        RETURN;
    END IF;
    RAISE EXCEPTION 'the loop''s own code changed what the session holds: %', mended.done
        USING ERRCODE = CASE WHEN mended.lost THEN 'ACT05' ELSE 'ACT04' END,
              HINT = 'SQL of a loop only looks: it prepares and deallocates no statements, and takes and gives back no session locks.';
END
$$;

-- Prepares a statement of the session's again, undone but for itself; whoever executes it has it analyzed anew, with their
-- own rights and path. Its strings are read here, so this is a function of a role that has no right at all. What it cannot
-- prepare stays missing: the session's next use of it says so.
CREATE FUNCTION activation._prepare_again(statement text, app_path text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('transaction_read_only', 'on', true), set_config('search_path', app_path, true);
    -- @plpgsql_check_options: security_warnings = off
    EXECUTE statement;
    RAISE EXCEPTION USING ERRCODE = 'ACT00';
EXCEPTION WHEN others THEN
    NULL;
END
$$;

-- The same in the app's session, which must go on: statements that are missing are prepared again. Returns what the code
-- did.
CREATE FUNCTION activation._check_app_session(held_statements activation.held_statement[], held_locks text[], app_path text) RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mended record;
    statement activation.held_statement;
    types text;
BEGIN
    SELECT m.* INTO mended FROM activation._mend_session(held_statements, held_locks) m;
    FOREACH statement IN ARRAY mended.missing LOOP
        types := (SELECT string_agg(format_type(t.oid, NULL), ', ' ORDER BY t.n) FROM unnest(statement.types) WITH ORDINALITY AS t(oid, n));
        PERFORM activation._prepare_again(
            CASE WHEN statement.from_sql THEN statement.statement
                 ELSE format('PREPARE %I', statement.name) || coalesce('(' || types || ')', '') || ' AS ' || statement.statement END, app_path);
    END LOOP;
    RETURN 'the filter changed what the session holds: ' || mended.done;
END
$$;

-- An author's compiled function is only ever called through here. It runs with its owner's rights (it is SECURITY DEFINER,
-- checked before every call), read-only, and in a subtransaction that is always rolled back. Nothing but the returned
-- texts leaves it: no deferred trigger, no cursor, no setting. What a rollback does not give back is compared. The engine
-- itself never plans an author's text. This function has the engine's rights, not the caller's: should all of it fail, they
-- are all there is to win. one_by_one: look up each key by an index where there is one, so that no row of another user is
-- computed with.
CREATE FUNCTION activation._safe_eval(function_name name, owner regrole, keys text[], one_by_one boolean DEFAULT false) RETURNS text[]
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer text[];
    evaluated boolean := false;
    box record;
    -- Written out, since it comes with every call.
    held activation.held_statement[] := ARRAY(SELECT ROW(p.name, p.prepare_time, p.from_sql, p.statement, p.parameter_types::oid[])::activation.held_statement
                                                FROM pg_prepared_statements p ORDER BY p.name);
    locks text[] := CASE WHEN current_setting('activation.no_locks', true) IS DISTINCT FROM 'on' THEN activation._held_locks() END;
BEGIN
    SELECT p.oid, p.prosecdef, p.proowner INTO box
      FROM pg_proc p
     WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = function_name
       AND p.proargtypes = ARRAY['text[]'::regtype]::oidvector;
    IF box.oid IS NULL THEN
        RAISE EXCEPTION 'compiled function % is missing', quote_ident(function_name)
            USING ERRCODE = 'ACT02', HINT = 'SELECT activation.bind(); or define the loop again.';
    END IF;
    IF NOT box.prosecdef OR box.proowner <> _safe_eval.owner THEN
        RAISE EXCEPTION 'compiled function % no longer runs with the rights of %', quote_ident(function_name), activation._role_name(_safe_eval.owner)
            USING ERRCODE = 'ACT02',
                  DETAIL = format('Its owner is %s.', activation._role_name(box.proowner)),
                  HINT = 'SELECT activation.bind(); or define the loop again.';
    END IF;
    BEGIN
        PERFORM set_config('transaction_read_only', 'on', true);
        IF one_by_one THEN
            PERFORM set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true);
        END IF;
        EXECUTE format('SELECT ARRAY(SELECT k FROM activation_compiled.%I($1) AS k)', function_name) INTO answer USING keys;
        evaluated := true;
        RAISE EXCEPTION USING ERRCODE = 'ACT00';
    EXCEPTION WHEN others OR assert_failure OR query_canceled THEN
        IF locks IS NULL THEN
            PERFORM pg_advisory_unlock_all();
        END IF;
        IF locks IS NOT NULL OR held IS DISTINCT FROM ARRAY(
               SELECT ROW(p.name, p.prepare_time, p.from_sql, p.statement, p.parameter_types::oid[])::activation.held_statement
                 FROM pg_prepared_statements p ORDER BY p.name) THEN
            PERFORM activation._check_session(held, locks);
        END IF;
        IF SQLSTATE = 'ACT00' AND NOT evaluated THEN
            RAISE EXCEPTION 'the loop''s own code raised SQLSTATE ACT00' USING ERRCODE = 'ACT03';
        ELSIF NOT evaluated THEN
            RAISE;
        END IF;
    END;
    RETURN answer;
END
$$;

-- The same, for those who want to know why it raised: {"value": how many texts it returned} or {"error"}.
CREATE FUNCTION activation._try_eval(function_name name, owner oid, keys text[]) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    message text;
    code text;
BEGIN
    RETURN jsonb_build_object('value', cardinality(activation._safe_eval(function_name, owner, keys)));
EXCEPTION WHEN others OR assert_failure THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, code = RETURNED_SQLSTATE;
    RETURN jsonb_build_object('error', jsonb_build_object('message', message, 'code', code));
END
$$;

-- Before a worker commits: constraint triggers that wait for the commit fire here, and cursors that would be read to their end
-- then are closed. There should be none; should there be, they run with the engine's rights and where no other can be taken.
-- Returns whether the session is as it was; where an author's code took something of it away, it is not to be gone on with.
CREATE FUNCTION activation._settle() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held text;
BEGIN
    SET CONSTRAINTS ALL IMMEDIATE;
    FOR held IN SELECT c.name FROM pg_cursors c WHERE c.is_holdable AND c.creation_time >= statement_timestamp() LOOP
        EXECUTE format('CLOSE %I', held);
    END LOOP;
    RETURN current_setting('activation.untrusted', true) IS DISTINCT FROM 'on';
END
$$;

-- Ends this session, for good.
CREATE FUNCTION activation._end_session() RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_terminate_backend(pg_backend_pid()) $$;

-- Whether an error may come from one person's data: not what a loop's code always raises (a missing table, a right, a write),
-- nor what comes of meeting others, of a cancel, or of the machine.
CREATE FUNCTION activation._of_a_person(code text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN left(code, 2) NOT IN ('08', '25', '2D', '40', '42', '53', '55', '57', '58', 'AC');

-- As much of an error's text, or of any other that is not ours, as is worth keeping.
CREATE FUNCTION activation._short(said text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN length(said) > 500 THEN left(said, 500) || '…' ELSE said END;

-- What raised in one of several parts of some work, as words for status; the others go on. Not for an error that is not about
-- the data (somebody else's lock, a cancel, a machine without room): that ends the whole work, which is done anew.
CREATE FUNCTION activation._problem(what text, said text, others text DEFAULT NULL) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN concat_ws('; ', others, format('%s: %s', what, activation._short(said)));

-- Asks an author's function about many, and where that raises what may be one person's error, about ever fewer, until those
-- on whom it raises are found: one by one, so that no row of another user is computed with. Whatever else it raises is the
-- loop's, or everybody's. first_lines: see _users_body().
CREATE FUNCTION activation._safe_eval_each(function_name name, owner regrole, keys text[], first_lines boolean DEFAULT false, again boolean DEFAULT false,
                                           OUT answers text[], OUT bad_keys text[], OUT errors text[], OUT codes text[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    size integer := cardinality(keys);
    part text[];
    found record;
BEGIN
    bad_keys := '{}';
    errors := '{}';
    codes := '{}';
    BEGIN
        answers := activation._safe_eval(function_name, owner, CASE WHEN first_lines THEN NULL::text || keys ELSE keys END, again);
        RETURN;
    EXCEPTION WHEN others OR assert_failure THEN
        IF NOT activation._of_a_person(SQLSTATE) THEN
            RAISE;
        END IF;
        answers := '{}';
        IF size = 1 AND again THEN
            bad_keys := keys;
            errors := ARRAY[activation._short(SQLERRM)];
            codes := ARRAY[SQLSTATE::text];
            RETURN;
        END IF;
    END;
    FOR n IN 1 .. least(size, 2) LOOP
        part := CASE WHEN size = 1 THEN keys WHEN n = 1 THEN keys[: size / 2] ELSE keys[size / 2 + 1 :] END;
        SELECT * INTO found FROM activation._safe_eval_each(function_name, owner, part, first_lines, true);
        answers := answers || found.answers;
        bad_keys := bad_keys || found.bad_keys;
        errors := errors || found.errors;
        codes := codes || found.codes;
    END LOOP;
END
$$;

-- ---- detect -------------------------------------------------------------------------------------------------------------

-- Takes the locks of as many of these parts of the users as are free; with wait, all of them.
CREATE FUNCTION activation._lock_parts(parts integer[], wait boolean) RETURNS integer[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- In this order always, so that nobody waits in a circle.
    IF wait THEN
        RETURN ARRAY(SELECT p.part FROM activation.user_part p WHERE p.part = ANY (parts) ORDER BY p.part FOR UPDATE);
    END IF;
    RETURN ARRAY(SELECT p.part FROM activation.user_part p WHERE p.part = ANY (parts) ORDER BY p.part FOR UPDATE SKIP LOCKED);
END
$$;

-- Waits until nobody else moves this user.
CREATE FUNCTION activation._lock_part(user_id text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._lock_parts(ARRAY[activation._part(user_id)], true);
END
$$;

-- Asks for a sweep of every step with a condition (of one loop, or of all): everybody whose condition is open is asked again.
CREATE FUNCTION activation._sweep(loop_id integer, due_at timestamptz) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.sweep (loop_id, version, step, part, due_at)
    SELECT s.loop_id, s.version, s.step, p.part, _sweep.due_at
      FROM activation.step s JOIN activation."loop" l USING (loop_id), unnest(activation._all_parts()) AS p(part)
     WHERE (_sweep.loop_id IS NULL OR s.loop_id = _sweep.loop_id)
       AND s.evaluate_function IS NOT NULL AND l.state <> 'archived'
     ORDER BY 1, 2, 3, 4
    ON CONFLICT ON CONSTRAINT sweep_pkey DO UPDATE SET due_at = excluded.due_at, mark = 0
$$;

-- The marker row of wake is gone after a crash or a promotion, and with it the wakes: sweep once, put it back.
-- The table is emptied first, so that the marker stands on its first page and is found at once.
CREATE FUNCTION activation._mend_wake(now timestamptz) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM activation.wake w WHERE w.source_id = 0)
       OR NOT activation._try_lock('wake') THEN
        RETURN false;
    END IF;
    DELETE FROM activation.wake;
    INSERT INTO activation.wake (source_id, user_id) VALUES (0, 'marker');
    PERFORM activation._sweep(NULL, now);
    RETURN true;
END
$$;

-- Wakes that were taken leave dead rows behind, and whoever looks for wakes reads past them. When there are many, the
-- table is made anew, with the few wakes that are in it. That needs the table for itself: an app's INSERT waits for this
-- a few milliseconds at most, since nobody waits longer than lock_timeout for those before him, and the next try comes
-- later. In a transaction of its own. NULL: not yet.
CREATE FUNCTION activation._renew_wake() RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5ms'
AS $$
DECLARE
    kept activation.wake[];
BEGIN
    IF pg_relation_size('activation.wake') < 2 * 1024 * 1024 THEN
        RETURN NULL;
    END IF;
    LOCK TABLE activation.wake IN ACCESS EXCLUSIVE MODE;
    kept := ARRAY(SELECT w FROM activation.wake w LIMIT 1001);
    IF cardinality(kept) > 1000 THEN
        RETURN false;
    END IF;
    TRUNCATE activation.wake;
    INSERT INTO activation.wake SELECT w.* FROM unnest(kept) w ORDER BY w.source_id <> 0;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;

-- Loops whose people are evaluated now: also when the brake has stopped their mail, not while a strike is fresh.
-- Without a SET clause, so that it becomes a part of the statement that it stands in.
CREATE FUNCTION activation._detect_loops(now timestamptz) RETURNS SETOF integer
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT l.loop_id FROM activation."loop" l
     WHERE l.state IN ('active', 'stopped')
       AND NOT EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = l.loop_id AND k.kind = 'detect' AND k.retry_at > now);
END;

-- What a round would find to do: signals, wakes, people whose step begins, at their deadline or to be tried again, sweeps,
-- users to be enrolled in chunks. Asked many times a second, without a lock, so that a worker with nothing to do costs next
-- to nothing. Without sequential scans, since a plan made while the tables were small would stay.
CREATE FUNCTION activation._detect_due(OUT signals boolean, OUT wakes boolean, OUT people boolean, OUT sweeps boolean, OUT rolls boolean)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    now timestamptz := activation._now();
    unmarked boolean := NOT EXISTS (SELECT FROM activation.wake w WHERE w.source_id = 0);
BEGIN
    signals := EXISTS (SELECT FROM activation.signal);
    wakes := unmarked OR EXISTS (SELECT FROM activation.wake w WHERE w.source_id <> 0);
    people := EXISTS (SELECT FROM activation._detect_loops(now) l(loop_id)
                       WHERE EXISTS (SELECT FROM activation.enrollment e
                                      WHERE e.loop_id = l.loop_id AND e.state = 'waiting' AND coalesce(e.starts_at, e.deadline) <= now
                                        AND (e.retry_at IS NULL OR e.retry_at <= now))
                          OR EXISTS (SELECT FROM activation.enrollment e WHERE e.loop_id = l.loop_id AND e.retry_at <= now));
    sweeps := unmarked OR EXISTS (SELECT FROM activation.sweep w JOIN activation._detect_loops(now) l(loop_id) USING (loop_id)
                                   WHERE w.due_at <= now);
    -- Who signs up now does not wait for a multitude.
    rolls := NOT signals AND EXISTS (SELECT FROM activation.roll r JOIN activation._detect_loops(now) l(loop_id) USING (loop_id) WHERE r.due_at <= now);
END
$$;

-- The side of a user in a loop's holdout: the same for ever, also on another server, and another one in each loop.
CREATE FUNCTION activation._held_out(loop text, user_id text, share numeric) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN share > 0 AND ('x' || substr(md5(loop || ':' || user_id), 1, 8))::bit(32)::bigint < share * 4294967296;

-- Which of these users exist, asked through the black box of any loop on their table; NULL where there is none to ask.
CREATE FUNCTION activation._existing(users regclass, user_ids text[]) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v activation.loop_version;
    rows text[];
BEGIN
    SELECT x.* INTO v FROM activation.loop_version x JOIN activation."loop" l USING (loop_id, version)
     WHERE x.users = _existing.users AND l.state <> 'archived'
       AND EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = x.users_function)
     ORDER BY x.loop_id LIMIT 1;
    IF v.users_function IS NULL THEN
        RETURN NULL;
    END IF;
    -- First lines only, see _users_body(): whatever else stands in somebody's row, they exist. A key that is not even of the
    -- key's type is nobody's.
    PERFORM activation._evaluating(v.loop_id);
    BEGIN
        rows := (activation._safe_eval_each(v.users_function, v.owner, user_ids, first_lines => true)).answers;
    EXCEPTION WHEN SQLSTATE 'ACT04' OR SQLSTATE 'ACT05' THEN
        -- The loop fails for it, and nobody is taken for gone.
        PERFORM activation._evaluating(NULL);
        PERFORM activation._fail_at_once(v.loop_id, 'detect', SQLERRM, SQLSTATE = 'ACT05');
        RETURN user_ids;
    END;
    PERFORM activation._evaluating(NULL);
    RETURN ARRAY(SELECT split_part(u.r, E'\n', 1)::jsonb ->> 0 FROM unnest(rows) AS u(r));
END
$$;

-- Writes down, for each loop that these users wait in, that nobody knows whether they exist. Who is gone gets no mail all the
-- same: a claim reads their row.
CREATE FUNCTION activation._cannot_tell(of_users regclass, user_ids text[], problem text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    INSERT INTO activation.capture_failure (at, loop_id, user_id, error)
    SELECT DISTINCT activation._now(), e.loop_id, e.user_id,
           'a row of this user was deleted, and whether they have another could not be told: ' || problem
      FROM unnest(user_ids) AS k(user_id)
      CROSS JOIN LATERAL (SELECT x.user_id, x.loop_id, x.version, x.state FROM activation.enrollment x WHERE x.user_id = k.user_id OFFSET 0) e
      JOIN activation.loop_version v ON v.loop_id = e.loop_id AND v.version = e.version AND v.users = of_users
     WHERE e.state = 'waiting'
$$;

-- Of users whose rows were deleted, those who have none now: a row made again under the same key is the same user. NULL where
-- that cannot be told now.
CREATE FUNCTION activation._still_gone(users regclass, user_ids text[]) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(SELECT unnest(user_ids) EXCEPT SELECT unnest(activation._existing(users, user_ids)));
EXCEPTION
    WHEN lock_not_available OR serialization_failure OR deadlock_detected OR query_canceled THEN
        -- It cannot be told now. An author's code may say so as well, so that nobody else waits for it.
        PERFORM activation._evaluating(NULL);
        RETURN NULL;
    WHEN others THEN
        PERFORM activation._evaluating(NULL);
        IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = users) THEN
            RETURN user_ids;
        END IF;
        -- Nobody is taken for gone because a function failed.
        PERFORM activation._cannot_tell(users, user_ids, SQLERRM);
        RETURN ARRAY[]::text[];
END
$$;

-- Notes which addresses people had, whose rows will not tell any more; unless they were forgotten already.
CREATE FUNCTION activation._remember_addresses(user_ids text[], addresses text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    PERFORM activation._signing_key();
    INSERT INTO activation.past_address (user_id, hash, at)
    SELECT DISTINCT u.user_id, h.hash, activation._now()
      FROM unnest(user_ids, addresses) AS u(user_id, address), activation._hash_address(u.address) AS h(hash)
     WHERE u.address LIKE '_%@_%' AND NOT EXISTS (SELECT FROM activation.suppression s WHERE s.address = h.hash)
    ON CONFLICT DO NOTHING;
END
$$;

-- The longest key of a user, in bytes: what an index entry can hold, with room for what stands beside it.
CREATE FUNCTION activation._longest_key() RETURNS integer
LANGUAGE sql IMMUTABLE
RETURN 1000;

CREATE FUNCTION activation._key_fits(user_id text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN octet_length(user_id) <= activation._longest_key();

-- Takes signals, at most so many, and turns them into enrollments. One that raises is found by halving and set aside.
CREATE FUNCTION activation._take_signals(parts integer[], batch integer, OUT taken integer, OUT ids bigint[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    found tid[] := ARRAY(SELECT s.ctid FROM activation.signal s WHERE activation._part(s.user_id) = ANY (parts) LIMIT batch);
BEGIN
    taken := cardinality(found);
    IF taken > 0 THEN
        ids := activation._take_these_signals(found);
    END IF;
END
$$;

CREATE FUNCTION activation._take_these_signals(places tid[]) RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    middle integer := cardinality(places) / 2;
BEGIN
    BEGIN
        RETURN activation._enroll_signals(places);
    EXCEPTION WHEN others THEN
        IF NOT activation._of_a_person(SQLSTATE) THEN
            RAISE;
        ELSIF middle = 0 THEN
            PERFORM activation._set_signal_aside(places[1], activation._short(SQLERRM));
            RETURN NULL;
        END IF;
    END;
    RETURN activation._take_these_signals(places[: middle]) || activation._take_these_signals(places[middle + 1 :]);
END
$$;

-- A signal that cannot be taken: in each loop that it was for, that is written down.
CREATE FUNCTION activation._set_signal_aside(place tid, problem text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH aside AS (
        DELETE FROM activation.signal WHERE ctid = place RETURNING *
    )
    INSERT INTO activation.capture_failure (at, loop_id, user_id, error)
    SELECT t.at, l.loop_id, t.user_id, problem
      FROM aside t
      LEFT JOIN activation.source s ON s.source_id = t.source_id
      -- A deletion in the users table is for every loop whose users those are.
      JOIN activation.loop_version v ON CASE WHEN t.gone THEN v.users = s.table_name
                                             WHEN t.loop_id IS NULL THEN v.source_id = t.source_id
                                             ELSE v.loop_id = t.loop_id END
      JOIN activation."loop" l ON l.loop_id = v.loop_id AND l.version = v.version
     WHERE l.state <> 'archived'
$$;

-- Turns signals into enrollments. There is at most one waiting enrollment of a user in a loop, and a next one only where the
-- loop's reentry allows it.
CREATE FUNCTION activation._enroll_signals(places tid[]) RETURNS bigint[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    mark integer := coalesce((SELECT max(t.template_id) FROM activation.template t), 0);
    ids bigint[];
    gone_sources integer[];
    gone_users text[];
    gone_addresses text[];
    gone record;
    harmful jsonb;
    harm record;
BEGIN
    WITH signals AS (
        DELETE FROM activation.signal WHERE ctid = ANY (places) RETURNING *
    ), meant AS (
        SELECT v.loop_id, v.version, t.user_id, t.at, t.how, t.context, v.reentry, v.holdout, activation._key_fits(t.user_id) AS fits
          FROM signals t
          JOIN activation.loop_version v ON v.source_id = t.source_id AND v.event = 'insert' AND v.filter_function IS NULL AND v.generation <= t.generation
          JOIN activation."loop" l ON l.loop_id = v.loop_id AND l.version = v.version
         WHERE t.loop_id IS NULL AND t.error IS NULL AND t.gone IS NULL AND l.state <> 'archived'
        UNION ALL
        -- Who passed the filter of an earlier version of a loop is in it.
        SELECT v.loop_id, v.version, t.user_id, t.at, t.how, t.context, v.reentry, v.holdout, activation._key_fits(t.user_id)
          FROM signals t
          JOIN activation."loop" l USING (loop_id)
          JOIN activation.loop_version v ON v.loop_id = l.loop_id AND v.version = l.version AND t.source_id IN (0, v.source_id)
         WHERE t.error IS NULL AND l.state <> 'archived'
    ), failed AS (
        INSERT INTO activation.capture_failure (at, loop_id, user_id, error)
        SELECT t.at, t.loop_id, t.user_id, 'the filter raised: ' || t.error FROM signals t WHERE t.error IS NOT NULL
        UNION ALL
        SELECT m.at, m.loop_id, m.user_id, format('the key has %s bytes, and the longest that can be kept has %s', octet_length(m.user_id), activation._longest_key())
          FROM meant m WHERE NOT m.fits
    ), enrolled AS (
        INSERT INTO activation.enrollment (loop_id, version, user_id, pass, state, step, enrolled_at, created_at, starts_at, deadline,
                                           holdout, template_mark, how, context)
        SELECT DISTINCT ON (m.loop_id, m.user_id)
               m.loop_id, m.version, m.user_id, coalesce(last.pass, 0) + 1, 'waiting', s.step, m.at, now,
               CASE WHEN s.delay > interval '0' THEN m.at + s.delay END, m.at + s.delay + s.timeout,
               activation._held_out(l.name, m.user_id, m.holdout), mark, m.how, m.context
          FROM meant m
          JOIN activation."loop" l USING (loop_id)
          JOIN activation.step s ON s.loop_id = m.loop_id AND s.version = m.version AND s.position = 1
          LEFT JOIN LATERAL (SELECT x.pass, x.state, x.enrolled_at FROM activation.enrollment x
                              WHERE m.reentry IS NOT NULL AND x.user_id = m.user_id AND x.loop_id = m.loop_id
                              ORDER BY x.pass DESC LIMIT 1) last ON true
         WHERE m.fits AND (last.pass IS NULL OR last.state <> 'waiting' AND last.enrolled_at + m.reentry <= m.at)
         ORDER BY m.loop_id, m.user_id, m.at
        ON CONFLICT DO NOTHING
        RETURNING enrollment_id
    )
    SELECT (SELECT array_agg(e.enrollment_id) FROM enrolled e), g.sources, g.users, g.addresses,
           (SELECT jsonb_object_agg(t.loop_id, t.harm) FROM signals t WHERE t.harm IS NOT NULL)
      INTO ids, gone_sources, gone_users, gone_addresses, harmful
      FROM (SELECT array_agg(t.source_id) AS sources, array_agg(t.user_id) AS users, array_agg(t.address) AS addresses
              FROM signals t WHERE t.gone AND activation._key_fits(t.user_id)) g;
    FOR harm IN SELECT h.key::integer AS loop_id, h.value FROM jsonb_each_text(harmful) AS h LOOP
        PERFORM activation._fail_at_once(harm.loop_id, 'detect', harm.value, false);
    END LOOP;
    IF gone_users IS NOT NULL THEN
        FOR gone IN
            SELECT s.table_name, activation._still_gone(s.table_name, array_agg(u.user_id)) AS users
              FROM unnest(gone_sources, gone_users) AS u(source_id, user_id) JOIN activation.source s USING (source_id) GROUP BY 1
        LOOP
            IF gone.users IS NULL THEN
                -- A later round asks again.
                INSERT INTO activation.signal (at, source_id, generation, user_id, gone, address)
                SELECT now, u.source_id, 0, u.user_id, true, u.address
                  FROM unnest(gone_sources, gone_users, gone_addresses) AS u(source_id, user_id, address) JOIN activation.source s USING (source_id)
                 WHERE s.table_name = gone.table_name;
                CONTINUE;
            END IF;
            PERFORM activation._leave(ARRAY(
                SELECT e.enrollment_id
                  FROM unnest(gone.users) AS k(user_id)
                  CROSS JOIN LATERAL (SELECT x.enrollment_id, x.loop_id, x.version FROM activation.enrollment x WHERE x.user_id = k.user_id OFFSET 0) e
                  JOIN activation.loop_version v ON v.loop_id = e.loop_id AND v.version = e.version AND v.users = gone.table_name),
                'the user was deleted');
            PERFORM activation._remember_addresses(u.users, u.addresses)
               FROM (SELECT array_agg(x.user_id) AS users, array_agg(activation._fold_address(x.address)) AS addresses
                       FROM unnest(gone_users, gone_addresses) AS x(user_id, address) WHERE x.user_id = ANY (gone.users)) u;
            IF (activation._setting()).erase_on_delete THEN
                INSERT INTO activation.erasure (user_id, asked_at) SELECT DISTINCT k, now FROM unnest(gone.users) AS k ON CONFLICT DO NOTHING;
            END IF;
        END LOOP;
    END IF;
    RETURN ids;
END
$$;

-- Lets people out of a loop: they are exited, and what is queued for them is cancelled.
CREATE FUNCTION activation._leave(ids bigint[], reason text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    places tid[] := ARRAY(SELECT x.ctid FROM unnest(ids) AS u(id)
                           CROSS JOIN LATERAL (SELECT e.ctid, e.state FROM activation.enrollment e WHERE e.enrollment_id = u.id FOR NO KEY UPDATE OFFSET 0) x
                           WHERE x.state = 'waiting');
    mails uuid[] := ARRAY(SELECT m.message_id FROM unnest(ids) AS u(id)
                           CROSS JOIN LATERAL (SELECT x.message_id, x.state FROM activation.message x WHERE x.enrollment_id = u.id OFFSET 0) m
                           WHERE m.state = 'queued');
BEGIN
    UPDATE activation.enrollment e
       SET state = 'exited', decided_at = activation._now(), reason = _leave.reason, deadline = NULL
     WHERE e.ctid = ANY (places);
    -- No index names the state, so that this one cannot walk the whole queue.
    UPDATE activation.message m
       SET state = 'cancelled', finished_at = activation._now(), last_error = _leave.reason
     WHERE m.message_id = ANY (mails) AND m.state = 'queued';
END
$$;

-- Takes wakes, at most so many, and finds whom they concern. Without sequential scans its plan may stay: for hundreds of
-- rounds a second, planning would cost more than all the rest.
CREATE FUNCTION activation._take_wakes(parts integer[], batch integer, OUT taken integer, OUT ids bigint[], OUT ats timestamptz[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
BEGIN
    WITH wakes AS (
        DELETE FROM activation.wake
         WHERE ctid = ANY (ARRAY(SELECT w.ctid FROM activation.wake w
                                  WHERE w.source_id <> 0 AND activation._part(w.user_id) = ANY (parts) LIMIT batch))
        RETURNING source_id, user_id, at
    ), newest AS MATERIALIZED (
        SELECT t.source_id, t.user_id, max(t.at) AS at FROM wakes t GROUP BY 1, 2
    ), found AS (
        -- One look-up by (loop, user) for each woken user, whatever the statistics say: a table that has just grown from
        -- nothing would otherwise be joined by comparing all with all.
        SELECT e.enrollment_id, max(n.at) AS at
          FROM newest n
          JOIN activation.watch w ON w.source_id = n.source_id
          CROSS JOIN LATERAL (SELECT x.enrollment_id, x.version, x.step, x.activated_at, x.state FROM activation.enrollment x
                               WHERE x.loop_id = w.loop_id AND x.user_id = n.user_id OFFSET 0) e
         WHERE e.version = w.version AND (w.goal AND e.activated_at IS NULL OR e.step = w.step AND e.state = 'waiting')
         GROUP BY 1
    )
    SELECT (SELECT count(*) FROM wakes), array_agg(f.enrollment_id), array_agg(f.at) INTO taken, ids, ats FROM found f;
END
$$;

-- Finds those whose step begins or is at its deadline, and those to be tried again, at most so many of each. Of every loop
-- some: one with a long queue does not hold the others up.
-- now is an argument, since an index cannot be walked up to a function that reads the clock.
CREATE FUNCTION activation._find_due(parts integer[], batch integer, now timestamptz) RETURNS bigint[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    SELECT array_agg(e.enrollment_id)
      FROM (SELECT d.enrollment_id
              FROM activation._detect_loops(_find_due.now) l(loop_id)
              CROSS JOIN LATERAL (SELECT x.enrollment_id, row_number() OVER (ORDER BY coalesce(x.starts_at, x.deadline)) AS place FROM activation.enrollment x
                                   WHERE x.loop_id = l.loop_id AND x.state = 'waiting' AND coalesce(x.starts_at, x.deadline) <= _find_due.now
                                     AND (x.retry_at IS NULL OR x.retry_at <= _find_due.now) AND activation._part(x.user_id) = ANY (parts)
                                   ORDER BY coalesce(x.starts_at, x.deadline) LIMIT batch) d
             ORDER BY d.place LIMIT batch) e
$$;

CREATE FUNCTION activation._find_retries(parts integer[], batch integer, now timestamptz) RETURNS bigint[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    SELECT array_agg(e.enrollment_id)
      FROM (SELECT d.enrollment_id
              FROM activation._detect_loops(_find_retries.now) l(loop_id)
              CROSS JOIN LATERAL (SELECT x.enrollment_id, row_number() OVER (ORDER BY x.retry_at) AS place FROM activation.enrollment x
                                   WHERE x.loop_id = l.loop_id AND x.retry_at <= _find_retries.now AND activation._part(x.user_id) = ANY (parts)
                                   ORDER BY x.retry_at LIMIT batch) d
             ORDER BY d.place LIMIT batch) e
$$;

-- Gathers who is to be evaluated now, by question: the condition of the step that somebody is at, and the goal where that
-- is another one. Who: the newly enrolled, the woken, those whose step begins or is at its deadline, and those to be tried
-- again. Runs under the locks of the parts it is given, in one transaction with the evaluation: an action committed
-- before the enrollment is seen by its first evaluation, and a later one brings a wake that finds it. signals, wakes,
-- people: what to look for, see _detect_due(). The first row only says how many were taken of what most were taken of, and what
-- could not be looked at, which does not keep the rest waiting.
CREATE FUNCTION activation._detect_take(parts integer[], batch integer, signals boolean, wakes boolean, people boolean)
RETURNS TABLE (loop_id integer, version integer, step integer, ids bigint[], woken timestamptz[], fresh boolean[], taken integer, problem text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    new record;
    awake record;
    due_ids bigint[];
    retried_ids bigint[];
    problems text;
BEGIN
    SELECT 0 AS taken, NULL::bigint[] AS ids, NULL::timestamptz[] AS ats INTO awake;
    new := awake;
    IF signals THEN
        BEGIN
            SELECT s.* INTO new FROM activation._take_signals(parts, batch) s;
        EXCEPTION WHEN others THEN
            IF NOT activation._of_a_person(SQLSTATE) THEN
                RAISE;
            END IF;
            problems := activation._problem('signals', SQLERRM, problems);
        END;
    END IF;
    IF wakes THEN
        BEGIN
            IF NOT activation._mend_wake(now) THEN
                SELECT w.* INTO awake FROM activation._take_wakes(parts, batch) w;
            END IF;
        EXCEPTION WHEN others THEN
            IF NOT activation._of_a_person(SQLSTATE) THEN
                RAISE;
            END IF;
            problems := activation._problem('wakes', SQLERRM, problems);
        END;
    END IF;
    IF people THEN
        BEGIN
            due_ids := activation._find_due(parts, batch, now);
            retried_ids := activation._find_retries(parts, batch, now);
        EXCEPTION WHEN others THEN
            IF NOT activation._of_a_person(SQLSTATE) THEN
                RAISE;
            END IF;
            problems := activation._problem('people who are due', SQLERRM, problems);
        END;
    END IF;
    RETURN QUERY SELECT 0, 0, 0, NULL::bigint[], NULL::timestamptz[], NULL::boolean[],
                        greatest(new.taken, awake.taken, cardinality(due_ids || retried_ids)), problems;
    IF new.ids IS NULL AND awake.ids IS NULL AND due_ids IS NULL AND retried_ids IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT e.loop_id, e.version, q.step, array_agg(e.enrollment_id ORDER BY e.enrollment_id),
           array_agg(coalesce(c.at, p.at) ORDER BY e.enrollment_id), array_agg(c.fresh OR p.fresh ORDER BY e.enrollment_id), NULL::integer, NULL::text
      FROM (SELECT u.id, max(u.at) AS at, bool_or(u.fresh) AS fresh, bool_and(u.due) AS due
              FROM (SELECT unnest(new.ids), NULL::timestamptz, true, false
                    UNION ALL SELECT w.id, w.at, false, false FROM unnest(awake.ids, awake.ats) AS w(id, at)
                    UNION ALL SELECT unnest(due_ids), NULL, false, true
                    UNION ALL SELECT unnest(retried_ids), NULL, false, false) AS u(id, at, fresh, due)
             GROUP BY u.id) c
      CROSS JOIN LATERAL (SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = c.id OFFSET 0) e
      -- What _detect_defer() kept.
      CROSS JOIN LATERAL (SELECT CASE WHEN e.last_error IS NULL AND isfinite(e.retry_at) THEN e.retry_at END AS at,
                                 e.last_error IS NULL AND coalesce(e.retry_at = '-infinity', false) AS fresh) p
      JOIN activation.loop_version v ON v.loop_id = e.loop_id AND v.version = e.version
      CROSS JOIN LATERAL (SELECT e.step WHERE e.state = 'waiting' AND (e.starts_at IS NULL OR e.starts_at <= now)
                          UNION SELECT v.goal_step WHERE NOT c.due AND e.activated_at IS NULL AND v.goal_step IS NOT NULL) q
      JOIN activation._detect_loops(now) l(loop_id) ON l.loop_id = e.loop_id
     GROUP BY e.loop_id, e.version, q.step
     ORDER BY coalesce((SELECT k.strikes FROM activation.strike k WHERE k.loop_id = e.loop_id AND k.kind = 'detect'), 0), 1, 2, 3;
END
$$;

-- Where a worker says in which loop's code it is; NULL for tick and the puller, which no other session watches.
CREATE FUNCTION activation._said_in(kind text, slot integer) RETURNS regclass
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN to_regclass('activation.' || kind || '_' || slot);
END
$$;

-- Says to the other workers which loop's code this one runs from now on; NULL: none any more. It is not undone with the
-- transaction, so whoever catches an author's error says NULL, too. A session that is no worker says nothing.
-- What is said: the time in whole seconds, and in the lower 31 bits the loop, or 0. That it is over is a sign of life, too.
CREATE FUNCTION activation._evaluating(loop_id integer) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The newest: who died under the same pid may have left a lease behind.
    PERFORM setval(activation._said_in(w.kind, w.slot),
                   ceil(extract(epoch FROM clock_timestamp()))::bigint << 31 | coalesce(loop_id, 0))
       FROM activation.worker w WHERE w.pid = pg_backend_pid() ORDER BY w.backend_start DESC LIMIT 1;
END
$$;

-- Whether code that was cancelled after so long was cancelled for that.
CREATE FUNCTION activation._too_long(seconds double precision) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT seconds >= extract(epoch FROM (activation._setting()).condition_timeout) $$;

-- Asks the condition of a step for these enrollments: the keys for which it is true. The only part of a round that runs
-- an author's code, and so the only one whose errors are an author's.
CREATE FUNCTION activation._detect_ask(loop_id integer, version integer, step integer, ids bigint[], one_by_one boolean DEFAULT false) RETURNS text[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    asked record;
    true_keys text[];
BEGIN
    SELECT s.evaluate_function, v.owner INTO asked
      FROM activation.step s JOIN activation.loop_version v USING (loop_id, version)
     WHERE s.loop_id = _detect_ask.loop_id AND s.version = _detect_ask.version AND s.step = _detect_ask.step;
    IF asked.evaluate_function IS NULL THEN
        RETURN NULL;
    END IF;
    PERFORM activation._evaluating(_detect_ask.loop_id);
    true_keys := activation._safe_eval(asked.evaluate_function, asked.owner,
        ARRAY(SELECT e.user_id FROM unnest(ids) AS a(id) JOIN activation.enrollment e ON e.enrollment_id = a.id), one_by_one);
    PERFORM activation._evaluating(NULL);
    RETURN true_keys;
END
$$;

-- Sweeps that are due, for a round that holds the locks of these parts.
CREATE FUNCTION activation._detect_sweeps(parts integer[])
RETURNS TABLE (loop_id integer, version integer, step integer, part integer, mark bigint)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT w.loop_id, w.version, w.step, w.part, w.mark
      FROM activation.sweep w JOIN activation._detect_loops(activation._now()) l(loop_id) USING (loop_id)
     WHERE w.due_at <= activation._now() AND w.part = ANY (parts)
     ORDER BY w.due_at, w.loop_id, w.version, w.step, w.part
$$;

-- The next people of a sweep, at most so many: everybody whose condition is open, but for those who are tried again by
-- themselves after an error.
CREATE FUNCTION activation._detect_stretch(loop_id integer, version integer, step integer, part integer, mark bigint, batch integer,
                                           OUT ids bigint[], OUT keys text[])
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    SELECT coalesce(array_agg(s.enrollment_id), '{}'), coalesce(array_agg(s.user_id), '{}')
      FROM (SELECT e.enrollment_id, e.user_id FROM activation.enrollment e
             WHERE e.loop_id = _detect_stretch.loop_id AND e.version = _detect_stretch.version
               AND (e.step = _detect_stretch.step OR (SELECT v.goal_step = _detect_stretch.step FROM activation.loop_version v
                                                       WHERE v.loop_id = _detect_stretch.loop_id AND v.version = _detect_stretch.version))
               AND activation._part(e.user_id) = part AND e.enrollment_id > mark
               AND (e.activated_at IS NULL OR e.state = 'waiting') AND e.retry_at IS NULL
             ORDER BY e.enrollment_id LIMIT batch) s
$$;

-- A stretch of a sweep at once: asks about everybody in it, and touches only those for whom the condition is true. Returns
-- how many people it was. When it raises, its people are evaluated like others, who are to blame is found there.
CREATE FUNCTION activation._detect_sweep(loop_id integer, version integer, step integer, part integer, mark bigint, batch integer) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    stretch record;
    true_keys text[];
    asked record;
BEGIN
    SELECT * INTO stretch FROM activation._detect_stretch(loop_id, version, step, part, mark, batch);
    IF stretch.ids <> '{}' THEN
        SELECT s.evaluate_function, v.owner INTO asked
          FROM activation.step s JOIN activation.loop_version v USING (loop_id, version)
         WHERE s.loop_id = _detect_sweep.loop_id AND s.version = _detect_sweep.version AND s.step = _detect_sweep.step;
        PERFORM activation._evaluating(loop_id);
        true_keys := activation._safe_eval(asked.evaluate_function, asked.owner, stretch.keys);
        PERFORM activation._evaluating(NULL);
        PERFORM activation._detect_well(loop_id);
        IF true_keys <> '{}' THEN
            PERFORM activation._detect_decide(step, ARRAY(SELECT u.id FROM unnest(stretch.ids, stretch.keys) AS u(id, key)
                                                           WHERE u.key = ANY (true_keys)), '{}', '{}', true_keys);
        END IF;
    END IF;
    PERFORM activation._detect_swept(loop_id, version, step, part, stretch.ids, batch);
    RETURN cardinality(stretch.ids);
END
$$;

-- A stretch that was full goes on in the next round; otherwise the sweep is over until its next time.
CREATE FUNCTION activation._detect_swept(loop_id integer, version integer, step integer, part integer, ids bigint[], batch integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.sweep w
       SET due_at = CASE WHEN cardinality(ids) = batch THEN w.due_at
                         ELSE activation._now() + coalesce((SELECT s.every FROM activation.step s
                                                             WHERE s.loop_id = w.loop_id AND s.version = w.version AND s.step = w.step), '10 minutes') END,
           mark = CASE WHEN cardinality(ids) = batch THEN ids[batch] ELSE 0 END
     WHERE w.loop_id = _detect_swept.loop_id AND w.version = _detect_swept.version AND w.step = _detect_swept.step AND w.part = _detect_swept.part
$$;

-- Locks people's enrollments one by one, by their own key, and says where they are. The statement that follows finds them
-- there, so no plan of it can read all who wait for each of these people; and it sees what others did meanwhile.
CREATE FUNCTION activation._locked(wanted activation.decided[], OUT places tid[], OUT people activation.decided[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    SELECT array_agg(e.ctid), array_agg((p.id, p.branch, p.at, p.fresh)::activation.decided) INTO places, people
      FROM unnest(wanted) AS p(id, branch, at, fresh)
      CROSS JOIN LATERAL (SELECT x.ctid FROM activation.enrollment x WHERE x.enrollment_id = p.id FOR NO KEY UPDATE OFFSET 0) e;
END
$$;

-- Writes down what the answer to a question changed, and nothing for the others. question: the step whose condition was
-- asked. true_keys: whose answer was true; NULL for a step without a condition, which is decided by its own start. For the
-- goal, true is activation. For the step that somebody is at, true is the action's message, and still false at the
-- deadline the otherwise message; either way the next step follows, if there is one.
CREATE FUNCTION activation._detect_decide(question integer, ids bigint[], woken timestamptz[], fresh boolean[], true_keys text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    acted activation.decided[];
    late activation.decided[];
    reached activation.decided[];
    places tid[];
BEGIN
    IF true_keys IS NULL THEN
        acted := ARRAY(SELECT (a.id, 'action', NULL, NULL)::activation.decided FROM unnest(ids) AS a(id));
    ELSE
        IF true_keys <> '{}' THEN
            acted := ARRAY(SELECT (a.id, 'action', a.at, a.fresh)::activation.decided
                             FROM unnest(ids, woken, fresh) AS a(id, at, fresh)
                             CROSS JOIN LATERAL (SELECT x.user_id FROM activation.enrollment x WHERE x.enrollment_id = a.id OFFSET 0) e
                            WHERE e.user_id = ANY (true_keys));
            -- For those who are at the goal's own step, _advance() does.
            SELECT array_agg((a.id, a.branch, a.at, a.fresh)::activation.decided) INTO reached
              FROM unnest(acted) AS a(id, branch, at, fresh)
              CROSS JOIN LATERAL (SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = a.id OFFSET 0) e
             WHERE e.activated_at IS NULL AND NOT (e.step = question AND e.state = 'waiting' AND coalesce(e.starts_at <= now, true))
               AND EXISTS (SELECT FROM activation.loop_version v WHERE v.loop_id = e.loop_id AND v.version = e.version AND v.goal_step = question);
            IF reached IS NOT NULL THEN
                SELECT l.places, l.people INTO places, reached FROM activation._locked(reached) l;
                UPDATE activation.enrollment e
                   SET activated_at = CASE WHEN a.fresh THEN e.enrolled_at ELSE coalesce(a.at, now) END
                  FROM unnest(places, reached) AS a(place, id, branch, at, fresh)
                 WHERE e.ctid = a.place AND e.activated_at IS NULL;
            END IF;
        END IF;
        late := ARRAY(SELECT (a.id, 'otherwise', NULL, NULL)::activation.decided
                        FROM unnest(ids) AS a(id)
                        CROSS JOIN LATERAL (SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = a.id OFFSET 0) e
                       WHERE e.step = question AND e.state = 'waiting' AND e.deadline <= now AND coalesce(e.starts_at <= now, true)
                         AND NOT e.user_id = ANY (true_keys));
    END IF;
    IF acted <> '{}' OR late <> '{}' THEN
        PERFORM activation._advance(question, acted || late, now);
    END IF;
    IF true_keys IS NOT NULL THEN
        -- Who has begun and goes on waiting; and who could not be evaluated before, and now was, has no error any more.
        SELECT array_agg((a.id, NULL, NULL, NULL)::activation.decided) INTO reached
          FROM unnest(ids) AS a(id)
          CROSS JOIN LATERAL (SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = a.id OFFSET 0) e
         WHERE e.retry_at <= now OR e.step = question AND e.state = 'waiting' AND e.starts_at <= now;
        IF reached IS NOT NULL THEN
            SELECT l.places INTO places FROM activation._locked(reached) l;
            UPDATE activation.enrollment e
               SET starts_at = CASE WHEN e.step = question AND e.starts_at <= now THEN NULL ELSE e.starts_at END, retry_at = NULL, last_error = NULL
             WHERE e.ctid = ANY (places)
               AND (e.retry_at <= now OR e.step = question AND e.state = 'waiting' AND e.starts_at <= now);
        END IF;
    END IF;
END
$$;

-- Whether a branch of a step only nudges towards the goal, so that whoever has reached that gets none: the otherwise of any
-- step, and what a step without a condition has waited with. Without SET clauses, so that they become parts of statements.
CREATE FUNCTION activation._nudge(s activation.step, branch text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN branch = 'otherwise' OR s.evaluate_function IS NULL AND s.delay > interval '0';

CREATE FUNCTION activation._nudges(s activation.step) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN s.otherwise IS NOT NULL OR s.action IS NOT NULL AND s.evaluate_function IS NULL AND s.delay > interval '0';

-- People for whom a step is decided: its message, and the next step. Of these, those who are at it and have begun.
-- A nudge towards a goal that is reached is cancelled as it is made, so that why() can tell.
CREATE FUNCTION activation._advance(question integer, people activation.decided[], now timestamptz) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_variable
DECLARE
    places tid[];
BEGIN
    SELECT l.places, l.people INTO places, people FROM activation._locked(people) l;
    WITH moved AS (
        UPDATE activation.enrollment e
           SET activated_at = CASE WHEN d.branch = 'action' AND v.goal_step = question AND e.activated_at IS NULL
                                   THEN CASE WHEN d.fresh THEN e.enrolled_at ELSE coalesce(d.at, now) END ELSE e.activated_at END,
               state = CASE WHEN f.exits THEN 'exited' WHEN n.step IS NOT NULL THEN 'waiting' WHEN d.branch = 'action' THEN 'completed' ELSE 'timed_out' END,
               reason = CASE WHEN f.exits THEN format('step "%s" timed out', s.name) END,
               decided_at = CASE WHEN f.exits OR n.step IS NULL THEN now END,
               history = CASE WHEN s.position = 1 AND n.step IS NULL THEN NULL
                              ELSE coalesce(e.history, '[]') || jsonb_build_array(jsonb_build_array(s.step, d.branch, now)) END,
               step = CASE WHEN f.exits OR n.step IS NULL THEN e.step ELSE n.step END,
               starts_at = CASE WHEN NOT f.exits AND n.step IS NOT NULL THEN now + n.delay END,
               deadline = CASE WHEN f.exits OR n.step IS NULL THEN e.deadline ELSE now + n.delay + n.timeout END,
               retry_at = NULL, last_error = NULL
          FROM unnest(places, people) AS d(place, id, branch, at, fresh)
          CROSS JOIN LATERAL (SELECT x.* FROM activation.enrollment x WHERE x.ctid = d.place OFFSET 0) was
          JOIN activation.step s ON s.loop_id = was.loop_id AND s.version = was.version AND s.step = question
          JOIN activation.loop_version v ON v.loop_id = s.loop_id AND v.version = s.version
          LEFT JOIN LATERAL (SELECT x.step, x.delay, x.timeout FROM activation.step x
                              WHERE x.loop_id = s.loop_id AND x.version = s.version AND x.position = s.position + 1) n ON true,
               LATERAL (SELECT d.branch = 'otherwise' AND s.on_timeout = 'exit' AS exits) f
         -- Nothing else is asked of e: there may be an index for it, and statistics from when hardly anybody waited.
         WHERE e.ctid = d.place AND was.step = question AND was.state = 'waiting' AND coalesce(was.starts_at <= now, true)
        RETURNING e.enrollment_id, e.loop_id, e.version, e.user_id, e.activated_at, e.holdout, d.branch,
                  coalesce(was.starts_at, CASE d.branch WHEN 'otherwise' THEN was.deadline END, now) AS due_at,
                  CASE d.branch WHEN 'action' THEN s.action ELSE s.otherwise END AS email,
                  activation._nudge(s, d.branch) AS nudge
    )
    INSERT INTO activation.message (message_id, enrollment_id, loop_id, version, user_id, step, branch, state, created_at, next_attempt_at,
                                    finished_at, last_error)
    SELECT gen_random_uuid(), m.enrollment_id, m.loop_id, m.version, m.user_id, question, m.branch, o.state, now, now,
           CASE WHEN o.state <> 'queued' THEN now END,
           CASE WHEN m.holdout THEN 'held out'
                WHEN m.nudge AND m.activated_at IS NOT NULL THEN 'the user had reached the goal'
                WHEN o.state <> 'queued' THEN 'it came due while the loop was paused' END
      FROM moved m JOIN activation."loop" l USING (loop_id)
      CROSS JOIN LATERAL (SELECT CASE WHEN m.holdout THEN 'held_out'
                                      WHEN m.nudge AND m.activated_at IS NOT NULL OR m.due_at < l.drop_before THEN 'cancelled'
                                      ELSE 'queued' END AS state) o
     WHERE m.email IS NOT NULL
    ON CONFLICT DO NOTHING;
END
$$;

-- People about whom this round has no time to ask: the next one does, and knows from retry_at when they were woken, or that
-- they are new.
CREATE FUNCTION activation._detect_defer(ids bigint[], woken timestamptz[], fresh boolean[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
    UPDATE activation.enrollment e SET retry_at = CASE WHEN a.fresh THEN '-infinity' ELSE coalesce(a.at, activation._now()) END
      FROM unnest(ids, woken, fresh) AS a(id, at, fresh) WHERE e.enrollment_id = a.id AND e.retry_at IS NULL
$$;

-- One user on whom the condition raises: kept aside and tried again, without harm to the others.
CREATE FUNCTION activation._detect_bad_user(id bigint, error text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.enrollment e
       SET last_error = error, retry_at = activation._now() + interval '1 minute'
     WHERE e.enrollment_id = id
$$;

-- A strike against a loop whose code raised as a whole or ran too long. It is tried again after a while; after the third
-- strike it is failing and left alone until resume_loop().
CREATE FUNCTION activation._strike(loop_id integer, kind text, error text) RETURNS timestamptz
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    k activation.strike;
BEGIN
    INSERT INTO activation.strike AS x (loop_id, kind, strikes, retry_at, last_error, struck_at)
    VALUES (_strike.loop_id, _strike.kind, 1, now + interval '10 seconds', error, now)
    ON CONFLICT ON CONSTRAINT strike_pkey DO UPDATE
       SET strikes = x.strikes + 1, retry_at = now + interval '10 seconds' * (x.strikes + 1),
           last_error = excluded.last_error, struck_at = excluded.struck_at
    RETURNING x.* INTO k;
    IF k.strikes >= 3 THEN
        UPDATE activation."loop" l SET state = 'failing', reason = error WHERE l.loop_id = _strike.loop_id AND l.state IN ('active', 'stopped');
    END IF;
    RETURN k.retry_at;
END
$$;

-- A loop whose code did something to the session that it ran in is failing at once. lost: that cannot be mended, and the
-- session ends when this is committed.
CREATE FUNCTION activation._fail_at_once(loop_id integer, kind text, error text, lost boolean) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._strike(loop_id, kind, error);
    UPDATE activation.strike k SET strikes = greatest(k.strikes, 3) WHERE k.loop_id = _fail_at_once.loop_id AND k.kind = _fail_at_once.kind;
    UPDATE activation."loop" l SET state = 'failing', reason = error WHERE l.loop_id = _fail_at_once.loop_id AND l.state IN ('active', 'stopped');
    IF lost THEN
        PERFORM set_config('activation.untrusted', 'on', false);
    END IF;
END
$$;

-- The condition of a loop struck; its people are swept when it is tried again.
CREATE FUNCTION activation._detect_strike(loop_id integer, error text) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT activation._sweep(loop_id, activation._strike(loop_id, 'detect', error)) $$;

-- The condition waited for a lock of the app, or somebody cancelled it: nobody's fault, no strike. Its people are swept a
-- little later.
CREATE FUNCTION activation._detect_postpone(loop_id integer, error text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    again timestamptz := activation._now() + interval '3 seconds';
BEGIN
    INSERT INTO activation.strike AS x (loop_id, kind, strikes, retry_at, last_error, struck_at)
    VALUES (_detect_postpone.loop_id, 'detect', 0, again, error, activation._now())
    ON CONFLICT ON CONSTRAINT strike_pkey DO UPDATE
       SET retry_at = excluded.retry_at, last_error = excluded.last_error, struck_at = excluded.struck_at;
    PERFORM activation._sweep(_detect_postpone.loop_id, again);
END
$$;

-- The condition was cancelled after so many seconds: because it ran too long, or for another reason, which is not to blame
-- on the loop when it happens once; its own code may raise the same.
CREATE FUNCTION activation._detect_cancelled(loop_id integer, seconds double precision) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF activation._too_long(seconds) THEN
        PERFORM activation._detect_strike(loop_id, 'its condition was cancelled, because it ran too long');
    ELSIF EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = _detect_cancelled.loop_id AND k.kind = 'detect') THEN
        PERFORM activation._detect_strike(loop_id, 'its condition raised: it was cancelled');
    ELSE
        PERFORM activation._detect_postpone(loop_id, 'its condition was cancelled');
    END IF;
END
$$;

CREATE FUNCTION activation._detect_well(loop_id integer) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ DELETE FROM activation.strike k WHERE k.loop_id = _detect_well.loop_id AND k.kind = 'detect' $$;
