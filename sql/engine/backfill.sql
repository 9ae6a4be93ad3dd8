-- Backfills: walks over users that enroll them in chunks. They are those whom a schedule's query
-- returns, or those who were there before a loop.

-- Begins the backfill that a version starts with: over existing users now, unless the version
-- before did that too (it goes on where it is), or over a schedule's users whenever that is due.
CREATE FUNCTION activation._begin_backfill(loop_id integer, version integer, was_existing boolean)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    v activation.loop_version;
    s activation.source;
    order_column text;
    answer jsonb;
BEGIN
    SELECT x.* INTO STRICT v
      FROM activation.loop_version x
     WHERE x.loop_id = _begin_backfill.loop_id
       AND x.version = _begin_backfill.version;
    IF v.event = 'schedule' THEN
        DELETE FROM activation.backfill r WHERE r.loop_id = _begin_backfill.loop_id;
        INSERT INTO activation.backfill (loop_id, due_at, began_at)
        VALUES (_begin_backfill.loop_id,
                activation._next_run(v.definition #>> '{trigger,cron}',
                                     (activation._setting()).timezone, now),
                now);
    ELSIF v.definition ->> 'enroll' = 'new' THEN
        DELETE FROM activation.backfill r WHERE r.loop_id = _begin_backfill.loop_id;
    ELSIF NOT coalesce(was_existing, false) THEN
        -- Who comes from now on is not existing: where keys or times tell, the walk ends with who
        -- is here now.
        SELECT x.* INTO s FROM activation.source x WHERE x.source_id = v.source_id;
        order_column := CASE
            WHEN activation._key_type(s.table_name, s.key_column)
                 = ANY (ARRAY['int2', 'int4', 'int8']::regtype[]::oid[])
            THEN s.key_column
            ELSE activation._users_since_column(s.table_name, s.key_column) END;
        IF order_column IS NOT NULL THEN
            answer := activation._as_author(v.owner, v.names, format(
                'DECLARE m pg_catalog.text; '
                'BEGIN SELECT pg_catalog.max(n.%I)::pg_catalog.text INTO m FROM %s AS n; '
                'RETURN m; END',
                order_column, activation._table_name(s.table_name)));
            PERFORM activation._raise(answer -> 'error');
        END IF;
        DELETE FROM activation.backfill r WHERE r.loop_id = _begin_backfill.loop_id;
        INSERT INTO activation.backfill (loop_id, due_at, began_at, until)
        VALUES (_begin_backfill.loop_id, now, now, answer ->> 'value');
    END IF;
END
$$;

-- The loop whose backfill goes on next, for this worker alone until its transaction ends.
CREATE FUNCTION activation._next_backfill() RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT r.loop_id
      FROM activation.backfill r
      JOIN activation._detect_loops(activation._now()) l(loop_id) USING (loop_id)
     WHERE r.due_at <= activation._now()
     ORDER BY r.due_at
     LIMIT 1
       FOR UPDATE OF r SKIP LOCKED
$$;

-- Takes the next chunk of users of a loop's backfill, at most `batch`: they become signals, which a
-- round takes like any others. Runs an author's code. Returns how many there were.
CREATE FUNCTION activation._backfill_chunk(loop_id integer, batch integer) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    r activation.backfill;
    v activation.loop_version;
    wanted integer := batch;
    cursors text[] := '{}'::text[];
    ended boolean;
    per_hour integer;
BEGIN
    SELECT x.* INTO STRICT r
      FROM activation.backfill x
     WHERE x.loop_id = _backfill_chunk.loop_id;
    SELECT x.* INTO STRICT v
      FROM activation.loop_version x
      JOIN activation."loop" l USING (loop_id, version)
     WHERE l.loop_id = _backfill_chunk.loop_id;
    per_hour := (v.definition ->> 'per_hour')::integer;
    IF per_hour IS NOT NULL THEN
        -- As many as the time since it began allows, those of the first moment included.
        wanted := greatest(
            least(batch,
                  1 + floor(per_hour * extract(epoch FROM now - r.began_at) / 3600) - r.enrolled),
            0);
    END IF;
    IF wanted > 0 THEN
        PERFORM activation._evaluating(_backfill_chunk.loop_id);
        -- Of each user the place in the walk, which begins with their key.
        cursors := activation._safe_eval(
            v.backfill_function, v.owner,
            ARRAY[wanted::text, r.cursor ->> 0, r.cursor ->> 1, r.until]);
        PERFORM activation._evaluating(NULL);
        INSERT INTO activation.signal (at, source_id, generation, loop_id, user_id, enrolled_by)
        SELECT now, 0, 0, _backfill_chunk.loop_id, c.place::jsonb ->> 0,
               CASE WHEN v.event <> 'schedule' THEN 'as an existing user' END
          FROM unnest(cursors) AS c(place);
    END IF;
    ended := cardinality(cursors) < wanted;
    IF ended AND v.event <> 'schedule' THEN
        DELETE FROM activation.backfill x WHERE x.loop_id = _backfill_chunk.loop_id;
    ELSE
        UPDATE activation.backfill x
           SET cursor = CASE WHEN ended THEN NULL
                           ELSE coalesce(cursors[cardinality(cursors)]::jsonb, x.cursor) END,
               enrolled = x.enrolled + cardinality(cursors),
               due_at = CASE WHEN ended
                             THEN activation._next_run(v.definition #>> '{trigger,cron}',
                                                       (activation._setting()).timezone, now)
                             WHEN per_hour IS NOT NULL
                             THEN now + greatest(interval '1 hour' / per_hour, interval '1 second')
                             ELSE now END
         WHERE x.loop_id = _backfill_chunk.loop_id;
    END IF;
    RETURN cardinality(cursors);
END
$$;
