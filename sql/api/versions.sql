-- What a new version of a loop means for those who are on their way.

-- A definition taken apart: one row for each value in it, under its path. Steps stand under their
-- names.
CREATE FUNCTION activation._flatten_definition(definition jsonb)
RETURNS TABLE (part text, value text)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE walk(path, value) AS (
        SELECT k.key,
               CASE k.key WHEN 'steps' THEN (SELECT jsonb_object_agg(s ->> 'name', s - 'name')
                                               FROM jsonb_array_elements(k.value) AS s)
                          ELSE k.value END
          FROM jsonb_each(definition) AS k
        UNION ALL
        SELECT w.path || '.' || k.key, k.value
          FROM walk w,
               jsonb_each(CASE jsonb_typeof(w.value) WHEN 'object' THEN w.value END) AS k
    )
    SELECT w.path, w.value #>> '{}'
      FROM walk w
     WHERE jsonb_typeof(w.value) NOT IN ('object', 'null')
    UNION ALL
    SELECT 'order of steps',
           (SELECT string_agg(s ->> 'name', ', ' ORDER BY n)
              FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS u(s, n))
$$;

-- How many mails a person may still get from a definition, at most one a step. Counted from the
-- step named, or from the first one without a name.
CREATE FUNCTION activation._count_mails_from(definition jsonb, step_name text DEFAULT NULL)
RETURNS bigint
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*)
      FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS u(s, n)
     WHERE u.n >= coalesce(
               (SELECT min(x.n)
                  FROM jsonb_array_elements(definition -> 'steps') WITH ORDINALITY AS x(s, n)
                 WHERE x.s ->> 'name' = step_name), 1)
$$;

-- What diff_loop() answers, for the loop's owner.
-- Long because each kind of row, from the parts of the definition to the mails that it means, has a
-- query of its own.
CREATE FUNCTION activation._diff_loop(caller oid, loop_name text, document jsonb, names text)
RETURNS TABLE (change text, part text, before text, after text)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._require_loop_owner(caller, loop_name);
    old jsonb;
    answer jsonb := activation._normalise(loop_name, document);
    new jsonb := answer -> 'definition';
    trigger_table regclass;
    days numeric;
    recent bigint;
BEGIN
    PERFORM activation._raise(answer -> 'error');
    SELECT v.definition INTO old
      FROM activation.loop_version v
     WHERE v.loop_id = l.loop_id AND v.version = l.version;
    new := activation._durations(new, format('loop "%s"', loop_name));
    -- What define_loop() would fill in.
    IF new #>> '{trigger,type}' = 'database' THEN
        trigger_table := activation._find_table(new #>> '{trigger,table}', names,
                                                format('loop "%s"', loop_name));
        new := jsonb_set(new, '{trigger,table}', to_jsonb(activation._table_name(trigger_table)));
        IF new #>> '{trigger,user_key}' IS NULL
           AND new #>> '{trigger,table}' = old #>> '{trigger,table}' THEN
            new := jsonb_set(new, '{trigger,user_key}', old #> '{trigger,user_key}');
        END IF;
    END IF;
    IF new ->> 'users' IS NULL THEN
        new := jsonb_set(new, '{users}', old -> 'users');
    END IF;

    RETURN QUERY
    SELECT CASE WHEN o.value IS NULL THEN 'added' WHEN n.value IS NULL THEN 'removed'
                ELSE 'changed' END,
           coalesce(o.part, n.part), o.value, n.value
      FROM activation._flatten_definition(old) o
      FULL JOIN activation._flatten_definition(new) n USING (part)
     WHERE o.value IS DISTINCT FROM n.value
     ORDER BY 2;

    change := 'in flight';
    FOR part, before IN
        SELECT format('version %s, step %s', e.version, s.name), count(*)::text
          FROM activation.enrollment e JOIN activation.step s USING (loop_id, version, step)
         WHERE e.loop_id = l.loop_id AND e.state = 'waiting'
         GROUP BY e.version, s.position, s.name
         ORDER BY e.version, s.position
    LOOP
        after := NULL;
        RETURN NEXT;
    END LOOP;

    change := 'mails';
    part := 'at most, of those in flight, once migrate_loop() has moved them';
    SELECT coalesce(sum(activation._count_mails_from(v.definition, s.name)), 0)::text,
           coalesce(sum(CASE WHEN EXISTS (SELECT FROM jsonb_array_elements(new -> 'steps') AS x
                                           WHERE x ->> 'name' = s.name)
                             THEN activation._count_mails_from(new, s.name)
                             ELSE activation._count_mails_from(v.definition, s.name) END), 0)::text
      INTO before, after
      FROM activation.enrollment e
      JOIN activation.step s USING (loop_id, version, step)
      JOIN activation.loop_version v USING (loop_id, version)
     WHERE e.loop_id = l.loop_id AND e.state = 'waiting';
    RETURN NEXT;
    SELECT count(*),
           greatest(least(extract(epoch FROM activation._now() - min(l.created_at)) / 86400, 30), 1)
      INTO recent, days
      FROM activation.enrollment e
     WHERE e.loop_id = l.loop_id AND e.enrolled_at > activation._now() - interval '30 days';
    part := format('at most, of those who enroll in 30 days, at the pace of the last %s',
                   CASE WHEN days < 30 THEN round(days) || ' days' ELSE '30' END);
    before := round(recent * 30 / days * activation._count_mails_from(old))::text;
    after := round(recent * 30 / days * activation._count_mails_from(new))::text;
    RETURN NEXT;
    IF new #>> '{enroll}' <> 'new' AND old #>> '{enroll}' = 'new' THEN
        part := 'besides, of existing users, up to';
        before := '0';
        after := (SELECT round(greatest(c.reltuples, 0)::numeric
                               * activation._count_mails_from(new))::text
                    FROM pg_class c
                   WHERE c.oid = trigger_table);
        RETURN NEXT;
    END IF;
END
$$;

CREATE FUNCTION activation.diff_loop(
    name text, definition jsonb, names text DEFAULT current_setting('search_path')
) RETURNS TABLE (change text, part text, before text, after text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH call AS (
        INSERT INTO activation.call (verb, arguments)
        VALUES ('diff_loop', jsonb_build_object('name', $1, 'definition', $2, 'names', $3))
        RETURNING answer
    )
    SELECT d.*
      FROM call,
           jsonb_to_recordset(call.answer) AS d(change text, part text, before text, after text)
$$;
COMMENT ON FUNCTION activation.diff_loop(text, jsonb, text) IS
'What defining a loop anew would change. Changes nothing.
name: the loop''s name.
definition: the new document, as for import_loop().
names: as in define_loop().
Returns a row for each difference, one for each step at which people are, and some for how many
  mails it means at most.
change: added, removed or changed (a part of the definition), in flight (people, who keep their
  version) or mails.
part: the part, the version and step, or which mails are counted.
before: the part as it is, or a number as text.
after: the part as it would be, or a number as text.
Raises what define_loop() does for a document that is none, 42704 for an unknown loop, 42501 for
  another role''s.';

-- Moves the people in flight to the loop's current version, for the loop's owner; returns how many.
CREATE FUNCTION activation._migrate_loop(caller oid, name text) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    l activation.loop := activation._require_loop_owner(caller, name);
    moved integer;
    staying bigint;
BEGIN
    -- No lock but those of these people: an open transaction of an author's stops nobody else.
    -- A step that has begun goes on from when it began: its new deadline counts from there.
    UPDATE activation.enrollment e
       SET version = l.version,
           retry_at = activation._now(),
           starts_at = e.starts_at - old.delay + new.delay,
           deadline = coalesce(e.starts_at - old.delay + new.delay,
                               e.deadline - old.timeout,
                               coalesce((e.history -> -1 ->> 2)::timestamptz, e.enrolled_at)
                               + old.delay)
                      + new.timeout
      FROM activation.step old, activation.step new
     WHERE e.loop_id = l.loop_id AND e.version <> l.version AND e.state = 'waiting'
       AND old.loop_id = e.loop_id AND old.version = e.version AND old.step = e.step
       AND new.loop_id = e.loop_id AND new.version = l.version AND new.step = e.step;
    GET DIAGNOSTICS moved = ROW_COUNT;
    SELECT count(*) INTO staying
      FROM activation.enrollment e
     WHERE e.loop_id = l.loop_id AND e.version <> l.version AND e.state = 'waiting';
    IF staying > 0 THEN
        RAISE NOTICE 'loop "%": % people stay in their version', name, staying
            USING DETAIL = 'They are at a step that version ' || l.version || ' does not have.',
                  HINT = 'activation.cancel(user_id, loop, reason) lets one out.';
    END IF;
    RETURN moved;
END
$$;

CREATE FUNCTION activation.migrate_loop(name text) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('migrate_loop', jsonb_build_object('name', name))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.migrate_loop(text) IS
'Moves the people in flight to the loop''s current version, to the step of the same name. Their
clocks go on: a new timeout counts from when their step began. Nobody gets a step''s mail twice.
Who is at a step that the current version lacks stays, with a NOTICE.
name: the loop''s name.
Returns how many people were moved.
Raises 42704 for an unknown loop, 42501 for another role''s.';
