-- Builders: verbs that return a part of a definition, for define_loop() to take.
--
-- Callers of the verbs in this folder need EXECUTE on them and nothing else. A verb that must know
-- its caller runs with the caller's rights and inserts into activation.call; most others are
-- SECURITY DEFINER. Whose rights a loop runs with, and on which path its names are looked up, are
-- the arguments owner and names: their defaults are evaluated on the caller's side.

-- Checks a part of a definition. Returns it as it was given, or completed: with every default
-- written out, in the one spelling that a definition has.
CREATE FUNCTION activation._checked_fragment(
    kind text, document jsonb, completed boolean DEFAULT false
) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb := activation._fragment(kind, document);
BEGIN
    PERFORM activation._raise(answer -> 'error');
    RETURN CASE WHEN completed THEN answer -> 'definition' ELSE document END;
END
$$;

-- A trigger on changes of a table: what on_insert(), on_update() and on_delete() have in common.
CREATE FUNCTION activation._table_trigger(
    builder text, table_name regclass, event text, columns name[], user_key name, filter text
) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF table_name IS NULL THEN
        RAISE EXCEPTION '% needs a table', builder
            USING ERRCODE = '22004', HINT = format('activation.%s(''users'')', builder);
    END IF;
    RETURN activation._checked_fragment('trigger', jsonb_build_object(
        'type', 'database', 'table', activation._table_name(table_name), 'event', event,
        'columns', to_jsonb(columns), 'user_key', user_key, 'filter', filter));
END
$$;

CREATE FUNCTION activation.on_insert(
    table_name regclass, user_key name DEFAULT NULL, filter text DEFAULT NULL
) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._table_trigger('on_insert', table_name, 'insert', NULL, user_key, filter)
$$;
COMMENT ON FUNCTION activation.on_insert(regclass, name, text) IS
'Trigger of a loop: a row inserted into table_name. filter: an SQL expression over NEW, the '
'inserted row; only rows for which it is true count. user_key: the column with the user''s key '
'where table_name is not the users table (default: the only one that references it).';

CREATE FUNCTION activation.on_update(
    table_name regclass, columns name[], user_key name DEFAULT NULL, filter text DEFAULT NULL
) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._table_trigger('on_update', table_name, 'update', columns, user_key, filter)
$$;
COMMENT ON FUNCTION activation.on_update(regclass, name[], name, text) IS
'Trigger of a loop: a row of table_name in which one of columns changed (IS DISTINCT FROM). '
'filter: an SQL expression over OLD and NEW, the row as it was and as it is. user_key: as in '
'on_insert. A row whose key changed does not count.';

CREATE FUNCTION activation.on_delete(
    table_name regclass, user_key name DEFAULT NULL, filter text DEFAULT NULL
) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._table_trigger('on_delete', table_name, 'delete', NULL, user_key, filter)
$$;
COMMENT ON FUNCTION activation.on_delete(regclass, name, text) IS
'Trigger of a loop: a row deleted from table_name, which is not the users table: nobody would be '
'left to mail. filter: an SQL expression over OLD, the deleted row. user_key: as in on_insert.';

CREATE FUNCTION activation.on_event(event text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._checked_fragment('trigger', jsonb_build_object(
        'type', 'event', 'event', event))
$$;
COMMENT ON FUNCTION activation.on_event(text) IS
'Trigger of a loop: an event told by activation.track(user_id, event, …).';

CREATE FUNCTION activation.on_schedule(cron text, query text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._checked_fragment('trigger', jsonb_build_object(
        'type', 'schedule', 'cron', cron, 'query', query))
$$;
COMMENT ON FUNCTION activation.on_schedule(text, text) IS
'Trigger of a loop: at the times of cron (minute hour day month weekday, on the clock of the '
'setting timezone) everybody whom query returns is enrolled, as the loop''s reentry allows. query: '
'one SELECT of one column, the users'' keys.';

CREATE FUNCTION activation.query(
    sql text, timeout interval DEFAULT NULL, every interval DEFAULT NULL, watch jsonb DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._positive('timeout', timeout), activation._positive('every', every);
    RETURN activation._checked_fragment('condition', jsonb_build_object(
        'type', 'query', 'query', sql, 'timeout', timeout::text, 'every', every::text,
        'watch', watch));
END
$$;
COMMENT ON FUNCTION activation.query(text, interval, interval, jsonb) IS
'Condition of a loop: one SELECT with $1 for the user''s key, true when it returns a row. timeout: '
'how long to wait for it from the step''s start (for ever if absent). every: how often to ask '
'again where changes cannot be seen. watch: {"table": "column of the user''s key"} for tables that '
'only a function reads.';

CREATE FUNCTION activation.email(
    template text, personalization jsonb DEFAULT '{}', subject text DEFAULT NULL,
    sender text DEFAULT NULL, reply_to text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN activation._checked_fragment('action', jsonb_build_object(
        'type', 'email', 'provider', 'resend', 'template', template,
        'personalization', coalesce(personalization, '{}'), 'subject', subject, 'sender', sender,
        'reply_to', reply_to));
END
$$;
COMMENT ON FUNCTION activation.email(text, jsonb, text, text, text) IS
'Action of a step: an email from a template. personalization: {"variable": "Liquid text"}, each '
'value rendered with the user''s row as user. subject, sender, reply_to: instead of the '
'template''s and the settings''.';

CREATE FUNCTION activation.retry(
    retries integer DEFAULT 3, backoff text DEFAULT 'exponential',
    initial interval DEFAULT '30 seconds', max interval DEFAULT '1 hour'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM activation._positive('initial', initial), activation._positive('max', max);
    RETURN activation._checked_fragment('recovery', jsonb_build_object(
        'retries', retries, 'backoff', backoff, 'initial', initial::text, 'max', max::text));
END
$$;
COMMENT ON FUNCTION activation.retry(integer, text, interval, interval) IS
'Recovery of a loop: retries, the tries after the first (0 to 20); backoff, fixed or exponential; '
'initial, the wait before the first retry; max, the longest wait. Waits are spread by a fifth '
'either way.';

CREATE FUNCTION activation.step(
    name text, delay interval DEFAULT NULL, condition jsonb DEFAULT NULL,
    action jsonb DEFAULT NULL, otherwise jsonb DEFAULT NULL, on_timeout text DEFAULT 'continue'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF delay < interval '0' THEN
        RAISE EXCEPTION 'delay is %', delay
            USING ERRCODE = '22023', HINT = 'Give a time to wait, such as ''1 hour'', or none.';
    END IF;
    RETURN jsonb_build_object(
        'name', name, 'delay', delay::text, 'condition', condition, 'action', action,
        'otherwise', otherwise, 'on_timeout', on_timeout);
END
$$;
COMMENT ON FUNCTION activation.step(text, interval, jsonb, jsonb, jsonb, text) IS
'Step of a loop, for define_loop(steps => ARRAY[…]). condition: activation.query(…); action: sent '
'when it is true (or at once without one); otherwise: sent when it is still false at its timeout; '
'on_timeout: continue or exit; delay: to wait before the step starts. Its clock begins when the '
'step before was decided, or with the enrollment.';

CREATE FUNCTION activation.send_window(
    days text, opens time, closes time, otherwise text DEFAULT 'next'
) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._checked_fragment('send_window', jsonb_build_object(
        'days', days,
        'opens', to_char(opens, 'HH24:MI'),
        'closes', CASE WHEN closes = '24:00' THEN '24:00' ELSE to_char(closes, 'HH24:MI') END,
        'otherwise', otherwise), completed => true)
$$;
COMMENT ON FUNCTION activation.send_window(text, time, time, text) IS
'When a loop may mail, on the user''s own clock: days, as Mon-Fri or Mon,Wed,Sat; from opens to '
'closes, over midnight where closes is earlier. The user''s time zone is that of the users '
'table''s timezone column, else the setting. otherwise: what is due outside waits for the next '
'window (next) or is dropped (skip).';

-- Refuses a duration that is not longer than zero, or longer than 100 years. NULL passes.
CREATE FUNCTION activation._positive(argument text, duration interval) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF duration <= interval '0' OR duration > interval '100 years' THEN
        RAISE EXCEPTION '% is %', argument, duration
            USING ERRCODE = '22023',
                  HINT = 'Give a duration longer than zero, such as ''5 minutes'' or ''3 days''.';
    END IF;
END
$$;
