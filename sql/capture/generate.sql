-- Capture: statement triggers on the app's tables, made anew whenever what they must do changes.

-- Brings functions and triggers of a table up to what loops and watches ask for. Only a table that lacks a trigger is
-- locked (SHARE ROW EXCLUSIVE, after at most 3 s of waiting); otherwise only a function is swapped. only_known: a table
-- without our trigger gets none (it may be in the middle of a restore, which brings its own); new partitions of one do.
CREATE FUNCTION activation._generate_capture(table_name regclass, only_known boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    watched_until timestamptz := (SELECT s.watched_until FROM activation.schedule s WHERE s.watching);
    wanted record;
    body text;
    function_name name;
    relation regclass;
    old_timeout text := current_setting('lock_timeout');
BEGIN
    -- One at a time a table: a transaction that has changed one table holds up no other.
    PERFORM FROM activation.source s WHERE s.table_name = _generate_capture.table_name ORDER BY s.source_id FOR NO KEY UPDATE;
    PERFORM activation._sync_source(table_name);
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = _generate_capture.table_name AND c.relnamespace <> 'activation'::regnamespace) THEN
        -- What becomes an event is told by track() itself.
        RETURN;
    END IF;
    FOR wanted IN
        SELECT * FROM (VALUES ('insert', 'insert', 'new'), ('update', 'update', 'new'), ('delete', 'delete', 'old'), ('moved', 'update', 'old'),
                              ('changed', 'update', NULL)) AS e(event, command, side)
    LOOP
        body := activation._capture_body(table_name, wanted.event, watched_until);
        SELECT p.proname INTO function_name
          FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
         WHERE t.tgrelid = table_name AND t.tgname = 'activation_' || wanted.event
           -- A trigger of the table's owner may have this name, too.
           AND p.pronamespace = 'activation_compiled'::regnamespace;
        CONTINUE WHEN function_name IS NULL AND (body IS NULL OR only_known);
        IF function_name IS NULL THEN
            SELECT activation._compiled_name(c.relname, format(': %s (%s)', wanted.event, min(s.source_id))) INTO function_name
              FROM pg_class c JOIN activation.source s ON s.table_name = c.oid
             WHERE c.oid = _generate_capture.table_name GROUP BY c.relname;
        END IF;
        EXECUTE format('CREATE OR REPLACE FUNCTION activation_compiled.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L',
                       function_name, coalesce(body, E'BEGIN\n    RETURN NULL;\nEND'));
        EXECUTE format('REVOKE ALL ON FUNCTION activation_compiled.%I() FROM PUBLIC', function_name);
        -- What runs in the app's session has the right to leave word for the engine, and no superuser's.
        EXECUTE format('ALTER FUNCTION activation_compiled.%I() OWNER TO activation_engine', function_name);
        FOR relation IN
            SELECT r.oid::regclass
              FROM (SELECT _generate_capture.table_name::oid AS oid
                     UNION SELECT relid::oid FROM pg_partition_tree(_generate_capture.table_name)) r
              JOIN pg_class c ON c.oid = r.oid
             WHERE c.relkind IN ('r', 'p')
               AND NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                                WHERE t.tgrelid = r.oid AND t.tgname = 'activation_' || wanted.event
                                  AND p.pronamespace = 'activation_compiled'::regnamespace AND p.proname = here.function_name)
             ORDER BY r.oid
        LOOP
            CONTINUE WHEN body IS NULL;
            BEGIN
                PERFORM set_config('lock_timeout', '3s', true);
                EXECUTE CASE WHEN wanted.side IS NULL THEN
                    format('CREATE TRIGGER %I AFTER %I ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION activation_compiled.%I()',
                           'activation_' || wanted.event, wanted.command, relation, function_name)
                ELSE
                    format('CREATE TRIGGER %I AFTER %I ON %s REFERENCING %I TABLE AS %I FOR EACH STATEMENT EXECUTE FUNCTION activation_compiled.%I()',
                           'activation_' || wanted.event, wanted.command, relation, wanted.side, wanted.side || '_rows', function_name)
                END;
            EXCEPTION WHEN lock_not_available THEN
                RAISE EXCEPTION 'table % is busy: its trigger could not be made within 3 seconds', activation._table_name(relation)
                    USING ERRCODE = 'lock_not_available',
                          DETAIL = coalesce((SELECT format('Held by process %s (%s), in a transaction since %s.', l.pid,
                                                           coalesce(nullif(a.application_name, ''), a.usename, 'unknown'), a.xact_start)
                                               FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                                              WHERE l.relation = here.relation AND l.granted AND l.pid <> pg_backend_pid()
                                              ORDER BY a.xact_start NULLS LAST LIMIT 1), 'The holder has gone meanwhile.'),
                          HINT = 'Nothing was changed. Try again when that transaction has ended; it is needed once for each table.';
            END;
            PERFORM set_config('lock_timeout', old_timeout, true);
        END LOOP;
    END LOOP;
END
$$;

-- The wake part stands in the capture functions only while somebody reads wakes, and writes no longer than half an hour
-- after a worker last said so: where workers vanish without stop(), the table of wakes stops growing. Workers say so at
-- the start of each run; the functions are made anew every quarter of an hour. Returns whether rows may have come that left
-- no wake, so that everybody is to be swept.
CREATE FUNCTION activation._set_watching(watching boolean) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
AS $$
DECLARE
    now timestamptz := clock_timestamp();
    was activation.schedule;
    captured regclass;
BEGIN
    PERFORM activation._sync_owners();
    SELECT * INTO was FROM activation.schedule;
    IF watching IS NOT DISTINCT FROM coalesce(was.watching, false) AND (NOT watching OR was.watched_until > now + interval '15 minutes') THEN
        RETURN false;
    END IF;
    PERFORM activation._lock('capture');
    SELECT * INTO was FROM activation.schedule;
    INSERT INTO activation.schedule AS s (watching, watched_until, detectors, deliverers)
    VALUES (_set_watching.watching, CASE WHEN _set_watching.watching THEN now + interval '30 minutes' END, 0, 0)
    ON CONFLICT ON CONSTRAINT schedule_pkey DO UPDATE SET watching = excluded.watching, watched_until = excluded.watched_until;
    FOR captured IN
        SELECT DISTINCT s.table_name::oid::regclass FROM activation.source s JOIN pg_class c ON c.oid = s.table_name
    LOOP
        BEGIN
            PERFORM activation._generate_capture(captured);
        EXCEPTION WHEN lock_not_available THEN
            -- Somebody is in the middle of changing this table. Its wakes are as they were; sweeps make up for them.
            RAISE WARNING 'activation could not renew what captures %: it is being changed', activation._table_name(captured);
        END;
    END LOOP;
    RETURN watching AND NOT coalesce(was.watching AND was.watched_until > now, false);
END
$$;
