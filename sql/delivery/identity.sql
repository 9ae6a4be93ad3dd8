-- Which server this is, and why it may send or not: a copy of production mails no one.

-- What tells this server apart from a copy of it.
-- With its owner's rights: the engine's role may not see where the data is.
CREATE FUNCTION activation._this_server(host text) RETURNS activation.identity
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT true, c.system_identifier, current_database()::text, host,
           current_setting('data_directory'), current_setting('port')::integer, activation._now()
      FROM pg_control_system() c
$$;

-- Why nothing may leave this server; NULL when nothing but the mode keeps mail here.
CREATE FUNCTION activation._disarmed(host text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
    was activation.identity;
    here activation.identity := activation._this_server(host);
    difference text;
BEGIN
    IF s.mode = 'capture' THEN
        RETURN NULL;
    END IF;
    SELECT * INTO was FROM activation.identity;
    IF was.singleton IS NULL THEN
        RETURN format('mode %s was set on another server: this one is a copy', s.mode);
    END IF;
    IF s.hosts IS NULL THEN
        SELECT string_agg(format('%s is %s and was %s', d.what, d.actual, d.armed), '; ')
          INTO difference
          FROM (VALUES ('system identifier',
                        here.system_identifier::text, was.system_identifier::text),
                       ('database', here.database, was.database),
                       ('host name', here.host, was.host),
                       ('data directory', here.data_directory, was.data_directory),
                       ('port', here.port::text, was.port::text)) AS d(what, actual, armed)
         WHERE d.actual <> d.armed;
    ELSE
        SELECT string_agg(format('%s is %s and was %s', d.what, d.actual, d.armed), '; ')
          INTO difference
          FROM (VALUES ('system identifier',
                        here.system_identifier::text, was.system_identifier::text),
                       ('database', here.database, was.database)) AS d(what, actual, armed)
         WHERE d.actual <> d.armed;
        IF NOT EXISTS (SELECT FROM unnest(s.hosts) AS h(pattern)
                        WHERE format('%s:%s', here.host, here.port) LIKE h.pattern) THEN
            difference := concat_ws('; ', difference,
                                    format('%s:%s matches none of hosts', here.host, here.port));
        END IF;
    END IF;
    RETURN CASE WHEN difference IS NOT NULL
                THEN format('mode %s was set on another server: %s', s.mode, difference) END;
END
$$;

-- A secret that set_secret() stored in the database, by its name; NULL where there is none.
CREATE FUNCTION activation._secret(secret_name text) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT s.value FROM activation.secret s WHERE s.name = secret_name $$;
