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
'Makes a trigger of a loop: a row inserted into a table, by whatever statement.
table_name: the table to watch. Its rows are users, or belong to one.
user_key: the column with the user''s key, where table_name is not the users table (default: the
  only column that references a users table).
filter: an SQL expression over NEW, the inserted row. Only rows for which it is true enroll
  (default: all).
Returns the trigger, for define_loop(trigger => …).
Raises 22004 without a table. What is wrong with the table or the filter is told by define_loop().';

CREATE FUNCTION activation.on_update(
    table_name regclass, columns name[], user_key name DEFAULT NULL, filter text DEFAULT NULL
) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._table_trigger('on_update', table_name, 'update', columns, user_key, filter)
$$;
COMMENT ON FUNCTION activation.on_update(regclass, name[], name, text) IS
'Makes a trigger of a loop: a row of a table in which one of some columns changed (IS DISTINCT
FROM). A row whose primary key or user changed does not count.
table_name: the table to watch. It needs a primary key.
columns: the columns of which one must change.
user_key: as in on_insert().
filter: an SQL expression over OLD and NEW, the row as it was and as it is (default: none).
Returns the trigger, for define_loop(trigger => …).
Raises 22004 without a table.';

CREATE FUNCTION activation.on_delete(
    table_name regclass, user_key name DEFAULT NULL, filter text DEFAULT NULL
) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._table_trigger('on_delete', table_name, 'delete', NULL, user_key, filter)
$$;
COMMENT ON FUNCTION activation.on_delete(regclass, name, text) IS
'Makes a trigger of a loop: a row deleted from a table. That cannot be the users table, since
nobody would be left to mail.
table_name: the table to watch.
user_key: as in on_insert().
filter: an SQL expression over OLD, the deleted row (default: none).
Returns the trigger, for define_loop(trigger => …).
Raises 22004 without a table.';

CREATE FUNCTION activation.on_event(event text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._checked_fragment('trigger', jsonb_build_object(
        'type', 'event', 'event', event))
$$;
COMMENT ON FUNCTION activation.on_event(text) IS
'Makes a trigger of a loop: an event that the app tells by track() or track_all().
event: the event''s name.
Returns the trigger, for define_loop(trigger => …).
Raises 22023 without a name.';

CREATE FUNCTION activation.on_schedule(cron text, query text) RETURNS jsonb
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT activation._checked_fragment('trigger', jsonb_build_object(
        'type', 'schedule', 'cron', cron, 'query', query))
$$;
COMMENT ON FUNCTION activation.on_schedule(text, text) IS
'Makes a trigger of a loop: at certain times, everybody whom a query returns is enrolled, as the
loop''s reentry allows.
cron: minute, hour, day, month and weekday, on the clock of the setting timezone, such as ''0 9 *
  * Mon''.
query: one SELECT of one column, the users'' keys.
Returns the trigger, for define_loop(trigger => …).
Raises 22023 for a cron expression that is none, or that never comes.';

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
'Makes a condition of a loop: one SELECT with $1 for the user''s key. It is true when it returns a
row.
sql: the SELECT. It runs read-only, with the rights and the search_path of the loop''s owner.
timeout: how long the step waits for it, from the step''s begin, over 0 (default: for ever).
every: how often it is asked again where changes cannot be seen, over 0 (default: 1 minute there).
watch: tables that only a function reads, each with its column of the user''s key,
  {"public.projects": "owner_id"}. A table with null gets no trigger for this condition.
Returns the condition, for define_loop() and step(), or as goal.
Raises 22023 for a duration of 0 or less. What is wrong with the SELECT is told by define_loop().';

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
'Makes an action of a step: an email from a template.
template: the template''s name, one of your own or a built-in one.
personalization: {"variable": "Liquid text"}. Each value is rendered first, with the user''s row
  as user, and is then a variable of the template.
subject: instead of the template''s subject (default: that).
sender: instead of the setting sender (default: that).
reply_to: instead of the setting reply_to (default: that).
Returns the action, for define_loop() and step().
Raises 22023 for a text, a key or a mailbox that is none. What is wrong with the template or its
  variables is told by define_loop().';

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
'Makes the recovery of a loop: what follows when Resend answers a request with an error. Its rate
limit, a pause and a lost connection spend no try. Waits are spread by a fifth either way.
retries: how many tries may follow the first one, 0 to 20.
backoff: exponential (each wait is twice the last one) or fixed.
initial: the wait before the first retry, over 0.
max: the longest wait, over 0.
Returns the recovery, for define_loop(recovery => …).
Raises 22023 for a number, word or duration that is none of these.';

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
'Makes a step of a loop, for define_loop(steps => ARRAY[…]). A step begins when the one before it
is decided, or with the enrollment, plus its delay.
name: the step''s name, unlike the others of the loop. Later versions know the step by it.
delay: how long to wait before the step begins, 0 or more (default: none).
condition: what the step waits for, activation.query(…) (default: nothing).
action: what is mailed when the condition is true, or at once without one: activation.email(…).
otherwise: what is mailed when the condition is still false at its timeout: activation.email(…).
on_timeout: what follows when the condition is still false at its timeout: continue with the next
  step, or exit from the loop.
Returns the step.
Raises 22023 for a delay under 0. What else is wrong with a step is told by define_loop().';

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
'Says when a loop may mail, on the user''s own clock. That is the time zone of the users table''s
timezone column, else of the setting timezone.
days: days of the week, such as Mon-Fri or Mon,Wed,Sat.
opens: the time of day from which the window is open.
closes: the time of day at which it closes. Earlier than opens: it goes over midnight.
otherwise: what happens to a mail that is due outside of it: next (it waits for the next window)
  or skip (it is dropped).
Returns the send window, for define_loop(send_window => …).
Raises 22023 for a window that is none, or never comes.';

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
