-- Capture: statement triggers on the app's tables, made anew whenever what they must do changes.

-- Makes one of the triggers of a captured table. Waits at most 3 s for the table; if it is busy for
-- longer, says who holds it.
CREATE FUNCTION activation._make_trigger(captured_table regclass, event text, command text,
                                         side text, function_name name) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rows_of text := CASE WHEN side IS NULL THEN 'OLD TABLE AS old_rows NEW TABLE AS new_rows'
                         ELSE format('%I TABLE AS %I', side, side || '_rows') END;
BEGIN
    PERFORM set_config('lock_timeout', '3s', true);
    EXECUTE format('CREATE TRIGGER %I AFTER %I ON %s REFERENCING %s '
                   'FOR EACH STATEMENT EXECUTE FUNCTION activation_compiled.%I()',
                   'activation_' || event, command, captured_table, rows_of, function_name);
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'table % is busy: its trigger could not be made within 3 seconds',
        activation._table_name(captured_table)
        USING ERRCODE = 'lock_not_available',
              DETAIL = coalesce(
                  (SELECT format('Held by process %s (%s), in a transaction since %s.', l.pid,
                                 coalesce(nullif(a.application_name, ''), a.usename, 'unknown'),
                                 a.xact_start)
                     FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                    WHERE l.relation = captured_table AND l.granted AND l.pid <> pg_backend_pid()
                    ORDER BY a.xact_start NULLS LAST LIMIT 1),
                  'The holder has gone meanwhile.'),
              HINT = 'Nothing was changed. Try again when that transaction has ended; '
                     'it is needed once for each table.';
END
$$;

-- Brings functions and triggers of a table up to what loops and watches ask for. Only a table that
-- lacks a trigger is locked (SHARE ROW EXCLUSIVE, after at most 3 s of waiting); otherwise only a
-- function is swapped. only_known: a table without our trigger gets none (it may be in the middle
-- of a restore, which brings its own); new partitions of one do.
CREATE FUNCTION activation._generate_capture(table_name regclass, only_known boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
<<here>>
DECLARE
    watched_until timestamptz := (SELECT s.watched_until FROM activation.schedule s
                                   WHERE s.watching);
    capture record;
    body text;
    function_name name;
    relation regclass;
    old_timeout text := current_setting('lock_timeout');
BEGIN
    -- One transaction at a time for each table: it holds up none that changes another table.
    PERFORM FROM activation.source s
     WHERE s.table_name = _generate_capture.table_name
     ORDER BY s.source_id FOR NO KEY UPDATE;
    PERFORM activation._sync_source(table_name);
    IF NOT EXISTS (SELECT FROM pg_class c
                    WHERE c.oid = _generate_capture.table_name
                      AND c.relnamespace <> 'activation'::regnamespace) THEN
        -- Events need no capture: track() itself writes signals and wakes.
        RETURN;
    END IF;
    FOR capture IN
        SELECT * FROM (VALUES ('insert', 'insert', 'new'), ('update', 'update', 'new'),
                              ('delete', 'delete', 'old'), ('moved', 'update', 'old'),
                              ('changed', 'update', NULL)) AS e(event, command, side)
    LOOP
        body := activation._capture_body(table_name, capture.event, watched_until);
        SELECT p.proname INTO function_name
          FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
         WHERE t.tgrelid = table_name AND t.tgname = 'activation_' || capture.event
           -- A trigger of the table's owner may have this name, too.
           AND p.pronamespace = 'activation_compiled'::regnamespace;
        CONTINUE WHEN function_name IS NULL AND (body IS NULL OR only_known);
        IF function_name IS NULL THEN
            SELECT activation._compiled_name(
                       c.relname, format(': %s (%s)', capture.event, min(s.source_id)))
              INTO function_name
              FROM pg_class c JOIN activation.source s ON s.table_name = c.oid
             WHERE c.oid = _generate_capture.table_name GROUP BY c.relname;
        END IF;
        EXECUTE format('CREATE OR REPLACE FUNCTION activation_compiled.%I() RETURNS trigger '
                       'LANGUAGE plpgsql SECURITY DEFINER AS %L',
                       function_name, coalesce(body, E'BEGIN\n    RETURN NULL;\nEND'));
        EXECUTE format('REVOKE ALL ON FUNCTION activation_compiled.%I() FROM PUBLIC',
                       function_name);
        -- What runs in the app's session may leave word for the engine, and has no superuser's
        -- rights.
        EXECUTE format('ALTER FUNCTION activation_compiled.%I() OWNER TO activation_engine',
                       function_name);
        CONTINUE WHEN body IS NULL;
        FOR relation IN
            SELECT r.oid::regclass
              FROM (SELECT _generate_capture.table_name::oid AS oid
                    UNION
                    SELECT relid::oid
                      FROM pg_partition_tree(_generate_capture.table_name)) r
              JOIN pg_class c ON c.oid = r.oid
             WHERE c.relkind IN ('r', 'p')
               AND NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
                                WHERE t.tgrelid = r.oid
                                  AND t.tgname = 'activation_' || capture.event
                                  AND p.pronamespace = 'activation_compiled'::regnamespace
                                  AND p.proname = here.function_name)
             ORDER BY r.oid
        LOOP
            PERFORM activation._make_trigger(relation, capture.event, capture.command,
                                             capture.side, function_name);
            PERFORM set_config('lock_timeout', old_timeout, true);
        END LOOP;
    END LOOP;
END
$$;

-- Sets whether capture functions write wakes. They do so only while somebody reads wakes, and no
-- longer than half an hour after a worker last said so: where workers vanish without stop(), the
-- table of wakes stops growing. Workers say so at the start of each run; the functions are made
-- anew every quarter of an hour. Returns whether rows may have come that left no wake, so that
-- everybody is to be swept.
CREATE FUNCTION activation._set_watching(watching boolean) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '1s'
AS $$
DECLARE
    now timestamptz := clock_timestamp();
    previous activation.schedule;
    captured_table regclass;
BEGIN
    PERFORM activation._sync_owners();
    SELECT * INTO previous FROM activation.schedule;
    IF watching IS NOT DISTINCT FROM coalesce(previous.watching, false)
       AND (NOT watching OR previous.watched_until > now + interval '15 minutes') THEN
        RETURN false;
    END IF;
    PERFORM activation._lock('capture');
    SELECT * INTO previous FROM activation.schedule;
    INSERT INTO activation.schedule AS s (watching, watched_until, detectors, deliverers)
    VALUES (_set_watching.watching,
            CASE WHEN _set_watching.watching THEN now + interval '30 minutes' END, 0, 0)
    ON CONFLICT ON CONSTRAINT schedule_pkey DO UPDATE
       SET watching = excluded.watching, watched_until = excluded.watched_until;
    FOR captured_table IN
        SELECT DISTINCT s.table_name::oid::regclass
          FROM activation.source s JOIN pg_class c ON c.oid = s.table_name
    LOOP
        BEGIN
            PERFORM activation._generate_capture(captured_table);
        EXCEPTION WHEN lock_not_available THEN
            -- Somebody is in the middle of changing this table. Its wakes are as they were; sweeps
            -- make up for them.
            RAISE WARNING 'activation could not renew what captures %: it is being changed',
                activation._table_name(captured_table);
        END;
    END LOOP;
    RETURN watching AND NOT coalesce(previous.watching AND previous.watched_until > now, false);
END
$$;
