-- Changes of the app's tables are followed: by event triggers, in the transaction that makes them.

-- Follows a change of a captured table. A renamed or dropped key column would make every INSERT of
-- the app fail. This follows the rename, or empties the capture of the table and stops the loops
-- that need it.
CREATE FUNCTION activation._follow(changed_table regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._sync_source(changed_table);
    PERFORM activation._set_loop_state(
                v.loop_id, 'failing',
                format('column %I of %s, the key of this loop''s users, was dropped: '
                       'define the loop again', s.key_column, s.table_name),
                '{active,paused}')
       FROM activation."loop" l
       JOIN activation.loop_version v USING (loop_id, version)
       JOIN activation.source s USING (source_id)
      WHERE s.table_name = changed_table
        AND NOT EXISTS (SELECT FROM pg_attribute a
                         WHERE a.attrelid = s.table_name AND a.attnum = s.key_attnum
                           AND NOT a.attisdropped);
    PERFORM activation._set_loop_state(
                v.loop_id, 'failing',
                format('a column of %s that the filter reads was dropped: '
                       'define the loop again', s.table_name),
                '{active,paused}')
       FROM activation."loop" l
       JOIN activation.loop_version v USING (loop_id, version)
       JOIN activation.source s USING (source_id)
      WHERE s.table_name = changed_table
        AND EXISTS (SELECT FROM unnest(v.filter_attnums || v.old_attnums) AS f(attnum)
                      JOIN pg_attribute a ON a.attrelid = s.table_name AND a.attnum = f.attnum
                     WHERE a.attisdropped);
    PERFORM activation._generate_capture(changed_table, only_known => true);
END
$$;

-- Follows what a command changed of captured tables. Like _follow_drop(), it runs inside the app's
-- migration and must never raise.
CREATE FUNCTION activation._follow_table() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed_table regclass;
BEGIN
    FOR changed_table IN
        SELECT DISTINCT s.table_name::oid::regclass
          FROM pg_event_trigger_ddl_commands() d
          JOIN activation.source s ON s.table_name = d.objid
                                   OR s.table_name = (SELECT pg_partition_root(d.objid))
         WHERE d.classid = 'pg_class'::regclass
    LOOP
        PERFORM activation._follow(changed_table);
    END LOOP;
EXCEPTION WHEN others THEN
    RAISE WARNING 'activation could not follow this change of a table: %', SQLERRM
        USING HINT = 'SELECT * FROM activation.status shows the loops that need attention.';
END
$$;
CREATE EVENT TRIGGER activation_follow_table ON ddl_command_end
    -- ALTER VIEW renames columns of tables, too.
    WHEN TAG IN ('ALTER TABLE', 'CREATE TABLE', 'ALTER VIEW', 'ALTER MATERIALIZED VIEW')
    EXECUTE FUNCTION activation._follow_table();

-- Follows columns of captured tables that went with something that was dropped: whatever is dropped
-- with CASCADE may take columns with it (a type, a domain, a collation, an extension, a schema).
CREATE FUNCTION activation._follow_drop() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    changed_table regclass;
BEGIN
    IF tg_tag = 'ALTER TABLE' THEN
        RETURN;  -- _follow_table() follows it.
    END IF;
    FOR changed_table IN
        SELECT DISTINCT s.table_name::oid::regclass
          FROM pg_event_trigger_dropped_objects() d
          JOIN activation.source s ON s.table_name = d.objid
         WHERE d.classid = 'pg_class'::regclass AND d.objsubid > 0
    LOOP
        PERFORM activation._follow(changed_table);
    END LOOP;
EXCEPTION WHEN others THEN
    RAISE WARNING 'activation could not follow what was dropped with a table''s column: %', SQLERRM
        USING HINT = 'SELECT * FROM activation.status shows the loops that need attention.';
END
$$;
CREATE EVENT TRIGGER activation_follow_drop ON sql_drop
    EXECUTE FUNCTION activation._follow_drop();
