-- doctor(): all checks.

-- One row for each check; one that raises is a row like any other.
CREATE FUNCTION activation._doctor()
RETURNS TABLE (name text, state text, detail text, cure text)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    FOREACH name IN ARRAY ARRAY[
        'versions', 'mode', 'key', 'sender', 'public_url', 'webhooks', 'pause', 'pg_cron', 'jobs',
        'workers', 'lag', 'leases', 'unknown', 'loops', 'users', 'triggers', 'conditions',
        'indexes', 'autovacuum', 'retention']
    LOOP
        BEGIN
            EXECUTE format(
                'SELECT CASE WHEN bool_or(f.state = ''problem'') THEN ''problem'''
                ' WHEN bool_or(f.state = ''warning'') THEN ''warning'' ELSE ''ok'' END,'
                '       coalesce(string_agg(f.detail, ''; '') FILTER (WHERE f.state <> ''ok''),'
                ' string_agg(f.detail, ''; ''), ''nothing found''),'
                '       string_agg(DISTINCT f.cure, E''\n'')'
                '  FROM activation.%I() f', '_doctor_' || name)
               INTO state, detail, cure;
        EXCEPTION WHEN others OR assert_failure THEN
            state := 'problem';
            GET STACKED DIAGNOSTICS detail = MESSAGE_TEXT, cure = PG_EXCEPTION_HINT;
            detail := 'this could not be looked at: ' || detail;
            cure := nullif(cure, '');
        END;
        RETURN NEXT;
    END LOOP;
END
$$;

-- lock_timeout: a migration that holds a table must not hold whoever looks for what is wrong.
CREATE FUNCTION activation.doctor()
RETURNS TABLE ("check" text, state text, detail text, cure text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$ SELECT d.name, d.state, d.detail, d.cure FROM activation._doctor() d $$;
COMMENT ON FUNCTION activation.doctor() IS
'Looks for what is wrong with this installation. It only reads, also on a standby. A check that
fails is a problem like any other.
Returns a row for each check.
check: what was looked at.
state: ok, warning or problem.
detail: what was found, and what it means.
cure: the commands that cure it, one a line. One that begins with two dashes is for a person.';
