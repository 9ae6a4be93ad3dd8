-- Checks of doctor(): loops, their triggers, functions and indexes.

-- Loops that are not evaluated, or raise while they are.
CREATE FUNCTION activation._doctor_loops() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE l.state WHEN 'failing' THEN 'problem' WHEN 'stopped' THEN 'problem'
                        ELSE 'warning' END,
           concat_ws(': ',
               format('loop %I %s', l.name,
                      CASE l.state WHEN 'paused' THEN 'is paused: nobody is evaluated or mailed'
                                   WHEN 'stopped' THEN 'was stopped by the brake'
                                   WHEN 'failing' THEN 'is failing'
                                   ELSE 'raises and is tried again' END),
               coalesce(l.reason,
                        (SELECT k.last_error FROM activation.strike k
                          WHERE k.loop_id = l.loop_id
                          ORDER BY k.struck_at DESC LIMIT 1))),
           format('SELECT activation.resume_loop(%L);', l.name)
      FROM activation."loop" l
     WHERE l.state IN ('failing', 'stopped', 'paused')
        OR l.state = 'active'
           AND EXISTS (SELECT FROM activation.strike k WHERE k.loop_id = l.loop_id)
     ORDER BY l.name
$$;

-- Triggers that loops ask for on the app's tables and their partitions; and the event triggers that
-- follow renamed and dropped columns.
CREATE FUNCTION activation._doctor_triggers() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH captured AS MATERIALIZED (
        SELECT s.table_name, e.event
          FROM (SELECT DISTINCT x.table_name::oid::regclass AS table_name
                  FROM activation.source x JOIN pg_class c ON c.oid = x.table_name
                 WHERE c.relnamespace <> 'activation'::regnamespace) s
          CROSS JOIN unnest(ARRAY['insert', 'update', 'delete', 'moved', 'changed']) AS e(event)
         WHERE activation._capture_body(s.table_name, e.event, NULL) IS NOT NULL
    ), wanted AS (
        SELECT c.table_name, r.oid::regclass AS relation, 'activation_' || c.event AS name
          FROM captured c
          CROSS JOIN LATERAL (SELECT c.table_name::oid AS oid
                              UNION
                              SELECT p.relid::oid FROM pg_partition_tree(c.table_name) p) r
          JOIN pg_class t ON t.oid = r.oid AND t.relkind IN ('r', 'p')
    )
    SELECT 'problem',
           format('trigger %s on %s is %s: what happens there is not seen',
                  w.name, activation._table_name(w.relation),
                  CASE WHEN t.oid IS NULL THEN 'missing' ELSE 'disabled' END),
           CASE WHEN t.oid IS NULL
                THEN format('SELECT activation._generate_capture(%L);',
                            activation._table_name(w.table_name))
                ELSE format('ALTER TABLE %s ENABLE TRIGGER %I;',
                            activation._table_name(w.relation), w.name) END
      FROM wanted w
      LEFT JOIN (pg_trigger t JOIN pg_proc p
                 ON p.oid = t.tgfoid AND p.pronamespace = 'activation_compiled'::regnamespace)
        ON t.tgrelid = w.relation AND t.tgname = w.name
     WHERE t.oid IS NULL OR t.tgenabled NOT IN ('O', 'A')
    UNION ALL
    SELECT 'problem',
           'an event trigger that follows renamed and dropped columns is off: after a migration '
           'INSERTs of the app could fail',
           format('ALTER EVENT TRIGGER %I ENABLE;', e.evtname)
      FROM pg_event_trigger e
     WHERE e.evtname IN ('activation_follow_table', 'activation_follow_drop')
       AND e.evtenabled NOT IN ('O', 'A')
$$;

-- The grants that a loop's owner lacks on the tables that its condition reads, one a line.
CREATE FUNCTION activation._doctor_grants(condition_function name, owner oid) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT string_agg(format('GRANT SELECT ON %s TO %s;', activation._table_name(t),
                             activation._role_name(owner)), E'\n')
      FROM activation._tables_read(condition_function) r, unnest(r.tables) AS t
     WHERE NOT has_any_column_privilege(owner, t, 'SELECT')
$$;

-- Whether a condition can be planned without running anybody's code: it calls none, and reads no
-- views, no tables with policies, and none whose indexes or checks hold code.
CREATE FUNCTION activation._doctor_plain(condition_function name) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT NOT EXISTS (
        SELECT
          FROM pg_proc p
          JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
          LEFT JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid
         WHERE p.pronamespace = 'activation_compiled'::regnamespace
           AND p.proname = condition_function
           AND CASE WHEN d.refclassid = 'pg_class'::regclass
                    THEN c.relrowsecurity OR NOT activation._plans_plainly(c.oid)
                    ELSE d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass,
                                          'pg_type'::regclass, 'pg_collation'::regclass) END)
$$;

-- Whether compiled conditions are there, run with their owner's rights, and run at all: they are
-- asked about nobody. One whose planning would run an author's code, which could take as long as
-- its author likes, is not run: what a detector met stands in its strikes.
CREATE FUNCTION activation._doctor_conditions() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    condition record;
    grants text;
BEGIN
    RETURN QUERY
    SELECT 'problem',
           format(CASE WHEN EXISTS (SELECT
                                      FROM activation._compiled_functions(v.loop_id, v.version) b
                                     WHERE b.there AND NOT b.intact)
                       THEN 'a compiled function of loop %I, version %s, no longer runs with '
                            'the rights of %s'
                       ELSE 'compiled functions of loop %I, version %s, are gone: nobody is '
                            'evaluated' END,
                  l.name, v.version, activation._role_name(v.owner)),
           'SELECT activation.bind();'
      FROM activation."loop" l JOIN activation.loop_version v USING (loop_id)
     WHERE l.state <> 'archived' AND NOT activation._is_compiled(v.loop_id, v.version);
    FOR condition IN
        SELECT l.name, v.owner, s.condition_function, s.evaluate_function, b.intact
          FROM activation."loop" l
          JOIN activation.loop_version v USING (loop_id, version)
          JOIN activation.step s USING (loop_id, version)
          JOIN activation._compiled_functions(l.loop_id, l.version) b
            ON b.function_name = s.evaluate_function AND b.there
         WHERE l.state <> 'archived'
         ORDER BY l.name, s.step
    LOOP
        CONTINUE WHEN NOT condition.intact;
        IF NOT activation._doctor_plain(condition.condition_function) THEN
            grants := activation._doctor_grants(condition.condition_function, condition.owner);
            IF grants IS NOT NULL THEN
                RETURN NEXT activation._finding(
                    'problem',
                    format('the condition of loop %I reads what its owner may not', condition.name),
                    grants);
            END IF;
            CONTINUE;
        END IF;
        BEGIN
            PERFORM activation._safe_eval(condition.evaluate_function, condition.owner, '{}');
        EXCEPTION
            WHEN lock_not_available THEN
                RETURN NEXT activation._finding(
                    'warning',
                    format('the condition of loop %I waits for a lock, as of a migration',
                           condition.name),
                    'SELECT * FROM pg_locks WHERE mode = ''AccessExclusiveLock'' AND granted;');
            WHEN others OR assert_failure THEN
                RETURN NEXT activation._finding(
                    'problem',
                    format('the condition of loop %I does not run: %s', condition.name, SQLERRM),
                    coalesce(activation._doctor_grants(condition.condition_function,
                                                       condition.owner),
                             format('-- define loop %I again', condition.name)));
        END;
    END LOOP;
END
$$;

-- Whether an index finds the rows of a user: the column leads it, or comes after columns that the
-- condition uses, too.
CREATE FUNCTION activation._doctor_index(relation oid, key_column name, used name[])
RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_index i
          CROSS JOIN LATERAL (
               SELECT array_agg(a.attname ORDER BY k.ordinal) AS columns
                 FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, ordinal)
                 LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                                         AND k.attnum > 0
                WHERE k.ordinal <= i.indnkeyatts) x
         WHERE i.indrelid = relation AND i.indisvalid
           AND coalesce(x.columns[1:array_position(x.columns, key_column) - 1] <@ used, false))
$$;

-- Whether each table that wakes a condition has an index by the user's key. These are the tables
-- whose rows the planner looks up by it; without an index each round reads them whole.
CREATE FUNCTION activation._doctor_indexes() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH lookup AS (
        SELECT s.table_name::oid AS root, a.attname, l.name AS loop,
               ARRAY(SELECT u.attname
                       FROM pg_depend d
                       JOIN pg_attribute u ON u.attrelid = d.refobjid AND u.attnum = d.refobjsubid
                      WHERE d.classid = 'pg_proc'::regclass
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.table_name
                        AND d.objid IN (
                            SELECT p.oid FROM pg_proc p
                             WHERE p.pronamespace = 'activation_compiled'::regnamespace
                               AND p.proname = t.condition_function)) AS used
          FROM activation.watch w
          JOIN activation."loop" l USING (loop_id, version)
          JOIN activation.step t USING (loop_id, version, step)
          JOIN activation.source s USING (source_id)
          JOIN pg_attribute a ON a.attrelid = s.table_name AND a.attname = s.key_column
                             AND NOT a.attisdropped
         WHERE l.state <> 'archived'
        UNION ALL
        SELECT u.users::oid, u.key_column, l.name, '{}'
          FROM activation.users_table u
          JOIN activation.loop_version v USING (users)
          JOIN activation."loop" l USING (loop_id, version)
         WHERE l.state <> 'archived'
    ), slow AS (
        SELECT c.oid::regclass AS root, k.attname, c.relkind,
               string_agg(DISTINCT quote_ident(k.loop), ', ') AS loops
          FROM lookup k JOIN pg_class c ON c.oid = k.root
         WHERE EXISTS (SELECT
                         FROM (SELECT k.root AS oid
                               UNION
                               SELECT p.relid FROM pg_partition_tree(k.root) p) r
                         JOIN pg_class t ON t.oid = r.oid AND t.relkind = 'r'
                        WHERE NOT activation._doctor_index(t.oid, k.attname, k.used))
         GROUP BY c.oid, k.attname, c.relkind
    )
    SELECT 'warning',
           format('no index finds a user''s rows of %s by %I: each round of %s reads the whole '
                  'table', activation._table_name(x.root), x.attname, x.loops),
           format('CREATE INDEX %sON %s (%I);',
                  CASE x.relkind WHEN 'r' THEN 'CONCURRENTLY ' ELSE '' END,
                  activation._table_name(x.root), x.attname)
      FROM slow x
$$;
