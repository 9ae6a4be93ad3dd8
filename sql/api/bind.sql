-- A loop's compiled functions are bound to the app's columns. unbind() lets go of a table, so that
-- a migration can change a column's type; bind() compiles again.

-- Drops the compiled functions that depend on a table.
CREATE FUNCTION activation._unbind(caller oid, table_name regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET client_min_messages = warning
AS $$
DECLARE
    bound_function regprocedure;
BEGIN
    IF table_name IS NULL THEN
        RAISE EXCEPTION 'unbind needs a table'
            USING ERRCODE = '22004', HINT = 'SELECT activation.unbind(''users'');';
    END IF;
    PERFORM activation._require_owner(caller, table_name, 'unbind');
    -- Detectors go on. One that meets the table while it is altered waits for it a second at most;
    -- and bind() waits for nothing that a detector may hold.
    PERFORM activation._lock_define();
    -- What depends on the table, and the filters on it, whose arguments have the types of its
    -- columns.
    FOR bound_function IN
        SELECT DISTINCT p.oid::regprocedure
          FROM pg_proc p
         WHERE p.pronamespace = 'activation_compiled'::regnamespace
           AND (EXISTS (SELECT FROM pg_depend d
                         WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                           AND d.refclassid = 'pg_class'::regclass
                           AND d.refobjid = _unbind.table_name)
                OR p.proname IN (SELECT v.filter_function
                                   FROM activation.loop_version v
                                   JOIN activation.source s USING (source_id)
                                  WHERE s.table_name = _unbind.table_name))
    LOOP
        -- CASCADE: the evaluation of a condition hangs on the condition.
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = bound_function);
        EXECUTE format('DROP FUNCTION %s CASCADE', bound_function);
    END LOOP;
END
$$;

CREATE FUNCTION activation.unbind(table_name regclass) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('unbind', jsonb_build_object('table_name', table_name::oid::bigint))
$$;
COMMENT ON FUNCTION activation.unbind(regclass) IS
'Drops the compiled functions that hold on to a table, so that a column of it can change its type.
Call bind() afterwards, in the same transaction. For the table''s owner.
table_name: the table that is about to change.
Raises 22004 without a table, 42501 for a role without its owner''s privileges.';

-- Compiles the versions of loops whose functions are missing, and returns how many it compiled. A
-- version that no longer fits is let go if nobody is in it; otherwise its loop is failing, or with
-- or_fail this raises.
-- Long because a version that does not fit is handled where its error is caught.
CREATE FUNCTION activation._bind(or_fail boolean) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- A detector that meets a table which this transaction holds gives way within a second.
SET deadlock_timeout = '10s'
AS $$
DECLARE
    unbound record;
    compiled integer := 0;
BEGIN
    PERFORM activation._lock_define();
    FOR unbound IN
        SELECT v.loop_id, v.version, l.name, l.state, l.version = v.version AS is_current
          FROM activation.loop_version v JOIN activation."loop" l USING (loop_id)
         WHERE l.state <> 'archived' AND NOT activation._is_compiled(v.loop_id, v.version)
         ORDER BY v.loop_id, v.version
    LOOP
        BEGIN
            PERFORM activation._compile_version(unbound.loop_id, unbound.version);
            IF unbound.is_current THEN
                PERFORM activation._set_loop_state(unbound.loop_id, 'active', NULL, '{failing}');
            END IF;
            PERFORM activation._order_sweep(unbound.loop_id, activation._now());
            compiled := compiled + 1;
        EXCEPTION WHEN deadlock_detected OR lock_not_available OR serialization_failure THEN
            RAISE;
        WHEN others THEN
            -- A version that nobody is on their way in, and that owes no mail, is let go: what it
            -- was written for is gone.
            IF NOT unbound.is_current
               AND NOT EXISTS (SELECT FROM activation.enrollment e
                                WHERE e.loop_id = unbound.loop_id AND e.version = unbound.version
                                  AND e.state = 'waiting')
               AND NOT EXISTS (SELECT FROM activation.message m
                                WHERE m.loop_id = unbound.loop_id AND m.version = unbound.version
                                  AND m.state IN ('queued', 'sending')) THEN
                UPDATE activation.step s SET evaluate_function = NULL, condition_function = NULL
                 WHERE s.loop_id = unbound.loop_id AND s.version = unbound.version
                   AND s.evaluate_function IS NOT NULL;
                IF FOUND THEN
                    RAISE NOTICE 'loop "%": version % no longer fits, and nobody is in it',
                        unbound.name, unbound.version
                        USING DETAIL = SQLERRM,
                              HINT = 'Those who left it without reaching its goal '
                                     'are no longer watched for it.';
                END IF;
                DELETE FROM activation.watch w
                 WHERE w.loop_id = unbound.loop_id AND w.version = unbound.version;
                DELETE FROM activation.sweep w
                 WHERE w.loop_id = unbound.loop_id AND w.version = unbound.version;
                CONTINUE;
            END IF;
            IF or_fail AND unbound.state <> 'failing' THEN
                RAISE EXCEPTION 'loop "%" no longer fits: %', unbound.name, SQLERRM
                    USING ERRCODE = SQLSTATE,
                          DETAIL = format('It is version %s%s.', unbound.version,
                                          CASE WHEN NOT unbound.is_current
                                               THEN ', in which people are on their way'
                                               ELSE '' END),
                          HINT = CASE WHEN unbound.is_current
                                      THEN 'Define it anew between unbind() and bind().'
                                      ELSE 'Move them to the new version before bind(): '
                                           'activation.migrate_loop(name).' END;
            END IF;
            PERFORM activation._set_loop_state(
                unbound.loop_id, 'failing',
                format('version %s no longer fits: %s', unbound.version, SQLERRM));
            RAISE WARNING 'loop "%" no longer fits: %', unbound.name, SQLERRM
                USING HINT = 'It is failing until it is defined again.';
        END;
    END LOOP;
    RETURN compiled;
END
$$;

CREATE FUNCTION activation.bind(or_fail boolean DEFAULT false) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('bind', jsonb_build_object('or_fail', or_fail))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.bind(boolean) IS
'Compiles again what unbind() or a DROP … CASCADE removed. A loop that no longer fits is failing,
with a WARNING. An earlier version that no longer fits and that nobody is in is let go, with a
NOTICE.
or_fail: whether a loop that no longer fits raises instead, unless it was failing before.
Returns how many versions it compiled.
Raises, with or_fail, the code of what no longer compiles (see docs/errors.md).';
