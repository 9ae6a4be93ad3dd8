-- What a session holds before and after an author's code has run in it: prepared statements and
-- advisory locks, which a rolled back subtransaction does not give back.

CREATE TYPE activation.held_statement AS (
    name        text,
    prepared_at timestamptz,
    from_sql    boolean,
    statement   text,
    types       oid[]
);
COMMENT ON TYPE activation.held_statement IS
    'A prepared statement of the session, as it was before an author''s code ran.';

-- The prepared statements of this session, to compare with those it has later.
CREATE FUNCTION activation._held_statements() RETURNS activation.held_statement[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT ARRAY(SELECT ROW(p.name, p.prepare_time, p.from_sql, p.statement,
                            p.parameter_types::oid[])::activation.held_statement
                   FROM pg_prepared_statements p ORDER BY p.name);
END;

-- The advisory locks of this session. NULL where it is known to have none of its own
-- (activation.no_locks, set by workers): then an author's code took whatever is there after it ran.
CREATE FUNCTION activation._held_locks() RETURNS text[]
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN current_setting('activation.no_locks', true) IS DISTINCT FROM 'on'
                THEN ARRAY(SELECT format('%s %s %s %s', l.classid, l.objid, l.objsubid, l.mode)
                             FROM pg_locks l
                            WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid()
                            ORDER BY 1) END;
END;

-- Whether the session has open cursors. Code that runs in it could read, use up and close them, and
-- no rollback gives back where they were. The portal of a client's statement has no name, and
-- cannot be used while it runs; portals that were made within the same statement and have no name
-- of their own are those of loops in PL/pgSQL, ours among them.
CREATE FUNCTION activation._has_cursors() RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM pg_cursors c
                    WHERE c.name <> ''
                      AND (c.name NOT LIKE '<unnamed portal %'
                           OR c.creation_time < statement_timestamp()));
END;

-- Refuses to run an author's code in a session with open cursors.
CREATE FUNCTION activation._refuse_cursors() RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF activation._has_cursors() THEN
        RAISE EXCEPTION 'this session has open cursors, which a loop''s own code could read'
            USING ERRCODE = '55000', HINT = 'CLOSE ALL; or ask in another session.';
    END IF;
END
$$;

-- Brings a session back to what it held before an author's code ran: what is new goes. What is
-- missing cannot be had again. Returns what the code did, NULL if nothing; lost: something is
-- missing; missing: the statements that are.
CREATE FUNCTION activation._mend_session(held_statements activation.held_statement[],
                                         held_locks text[],
                                         OUT done text, OUT lost boolean,
                                         OUT missing activation.held_statement[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    new_name text;
    new_lock record;
BEGIN
    lost := false;
    missing := '{}';
    IF activation._held_statements() IS NOT DISTINCT FROM held_statements
       AND (held_locks IS NULL
            OR activation._held_locks() IS NOT DISTINCT FROM held_locks) THEN
        RETURN;
    END IF;
    FOR new_name IN
        SELECT h.name FROM unnest(activation._held_statements()) AS h
         WHERE h <> ALL (held_statements)
    LOOP
        EXECUTE format('DEALLOCATE %I', new_name);
        done := concat_ws(', ', done, format('it prepared statement %I', new_name));
    END LOOP;
    missing := ARRAY(SELECT h FROM unnest(held_statements) AS h
                      WHERE h <> ALL (activation._held_statements()));
    IF missing <> '{}' THEN
        lost := true;
        done := concat_ws(', ', done,
                          (SELECT 'it took away prepared statement '
                                  || string_agg(quote_ident(m.name), ', ' ORDER BY m.name)
                             FROM unnest(missing) AS m));
    END IF;
    IF held_locks IS NULL THEN
        PERFORM pg_advisory_unlock_all();
        RETURN;
    END IF;
    LOOP
        SELECT l.classid::bigint AS high, l.objid::bigint AS low, l.objsubid,
               l.mode = 'ShareLock' AS shared
          INTO new_lock
          FROM pg_locks l
         WHERE l.locktype = 'advisory' AND l.pid = pg_backend_pid()
           AND format('%s %s %s %s', l.classid, l.objid, l.objsubid, l.mode) <> ALL (held_locks)
         LIMIT 1;
        EXIT WHEN NOT FOUND;
        EXECUTE CASE new_lock.objsubid
            WHEN 1 THEN
                format('SELECT pg_advisory_unlock%s(%s)',
                       CASE WHEN new_lock.shared THEN '_shared' END,
                       (new_lock.high::bit(32) || new_lock.low::bit(32))::bit(64)::bigint)
            ELSE
                format('SELECT pg_advisory_unlock%s(%s, %s)',
                       CASE WHEN new_lock.shared THEN '_shared' END,
                       new_lock.high::bit(32)::integer, new_lock.low::bit(32)::integer) END;
        done := concat_ws(', ', done, 'it took an advisory lock');
    END LOOP;
    IF EXISTS (SELECT FROM unnest(held_locks) AS h WHERE h <> ALL (activation._held_locks())) THEN
        lost := true;
        done := concat_ws(', ', done, 'it gave an advisory lock of the session back');
    END IF;
END
$$;

-- Compares, after an author's code has run, what the session holds with what it held. ACT04:
-- something was new, and is gone again; ACT05: something is missing, and whoever uses this session
-- next cannot trust it.
CREATE FUNCTION activation._check_session(held_statements activation.held_statement[],
                                          held_locks text[]) RETURNS void
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
              HINT = 'SQL of a loop only looks: it prepares and deallocates no statements, '
                     'and takes and gives back no session locks.';
END
$$;

-- Prepares a statement again that an author's code took from the session, and undoes all else that
-- preparing it does. Whoever executes the statement has it analyzed anew, with their own rights and
-- path. Preparing reads the statement's strings, so this is a function of a role that has no right
-- at all. A statement that cannot be prepared stays missing: the session's next use of it says so.
CREATE FUNCTION activation._prepare_again(statement text, app_path text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('transaction_read_only', 'on', true),
            set_config('search_path', app_path, true);
    -- @plpgsql_check_options: security_warnings = off
    EXECUTE statement;
    RAISE EXCEPTION USING ERRCODE = 'ACT00';
EXCEPTION WHEN others THEN
    NULL;
END
$$;

-- As _check_session(), in the app's session, which must go on: statements that are missing are
-- prepared again. Returns what the code did.
CREATE FUNCTION activation._check_app_session(held_statements activation.held_statement[],
                                              held_locks text[], app_path text) RETURNS text
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
        types := (SELECT string_agg(format_type(t.oid, NULL), ', ' ORDER BY t.n)
                    FROM unnest(statement.types) WITH ORDINALITY AS t(oid, n));
        PERFORM activation._prepare_again(
            CASE WHEN statement.from_sql THEN statement.statement
                 ELSE format('PREPARE %I', statement.name) || coalesce('(' || types || ')', '')
                      || ' AS ' || statement.statement END,
            app_path);
    END LOOP;
    RETURN 'the filter changed what the session holds: ' || mended.done;
END
$$;

-- Runs before a worker commits: constraint triggers that wait for the commit fire here, and cursors
-- that would be read to their end at the commit are closed. There should be none. Should there be,
-- they run with the engine's rights, in a function in which no other role can be taken. Returns
-- whether the session is as it was; if an author's code took something of it away, the session is
-- not to be used any further.
CREATE FUNCTION activation._settle() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    cursor_name text;
BEGIN
    SET CONSTRAINTS ALL IMMEDIATE;
    FOR cursor_name IN
        SELECT c.name FROM pg_cursors c
         WHERE c.is_holdable AND c.creation_time >= statement_timestamp()
    LOOP
        EXECUTE format('CLOSE %I', cursor_name);
    END LOOP;
    RETURN current_setting('activation.untrusted', true) IS DISTINCT FROM 'on';
END
$$;

-- Ends this session, for good.
CREATE FUNCTION activation._end_session() RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_terminate_backend(pg_backend_pid()) $$;
