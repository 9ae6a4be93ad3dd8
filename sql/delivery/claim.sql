-- The claim: due messages are locked, checked, and handed to the deliverer with all that rendering
-- needs. The deliverer stores their requests in the same transaction, which makes them sending.

-- Locks due messages, oldest first, of loops that the brake lets send, and puts off those that wait
-- for an earlier one of their enrollment; for that it writes message itself. What else may have
-- changed since they were promised is checked by _claim_checked(): that the user still exists,
-- wants mail, and has not done what a nudge would ask for, that the window is open and the cap not
-- reached. What fails a check ends there or is put back. The rest is returned with the user's row
-- as it is now, to be rendered and stored in this same transaction. Those that ended or were put
-- back come without a user_row, so that the caller knows a claim without mail from an empty queue.
-- cursor_…: how far the queue of each loop was walked, so that dead entries before that are not
-- walked again.
-- Long because brake, queue and order within an enrollment together decide what to take.
CREATE FUNCTION activation._claim_messages(
    wanted integer, cursor_loops integer[], cursor_times timestamptz[], cursor_ids uuid[]
) RETURNS SETOF activation.claimed
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    s activation.setting := activation._setting();
    leaves boolean := s.mode <> 'capture';
    queue record;
    take integer;
    hourly bigint;
    sent bigint;
    found uuid[];
    early uuid[];
    claimed uuid[] := '{}'::uuid[];
    batch record;
    checked activation.claimed[];
    counts jsonb := '{}'::jsonb;
    returned integer := 0;
BEGIN
    IF leaves AND s.max_per_user IS NOT NULL THEN
        -- Two deliverers must not both find room for a user's last mail.
        PERFORM activation._lock('cap');
    END IF;
    FOR queue IN
        SELECT q.* FROM activation._due_loops(now, cursor_loops, cursor_times, cursor_ids) q
    LOOP
        take := wanted - cardinality(claimed);
        EXIT WHEN take = 0;
        IF leaves THEN
            hourly := activation._hourly_limit(queue.loop_id, now);
            sent := activation._sent_within_the_hour(queue.loop_id, now);
            IF sent + 10000 > hourly THEN
                -- So near to the limit, what others have claimed and not yet committed matters: who
                -- comes second leaves this loop's mail to them for now.
                CONTINUE WHEN NOT activation._try_brake(queue.loop_id);
                sent := activation._sent_within_the_hour(queue.loop_id, now);
            END IF;
            IF sent >= hourly THEN
                PERFORM activation._try_loop_state(
                    queue.loop_id, 'stopped',
                    format('%s emails within an hour, and the limit is %s', sent, hourly),
                    '{active}');
                CONTINUE;
            END IF;
            take := least(take, hourly - sent);
        END IF;
        found := ARRAY(
            SELECT m.message_id
              FROM activation.message m
             WHERE m.request_id IS NULL
               AND m.finished_at IS NULL
               AND m.loop_id = queue.loop_id
               AND m.next_attempt_at <= now
               AND (m.next_attempt_at, m.message_id) > (queue.after_at, queue.after_id)
             ORDER BY m.next_attempt_at, m.message_id
             LIMIT take
               FOR UPDATE SKIP LOCKED);
        IF EXISTS (SELECT FROM activation.step x
                    WHERE x.loop_id = queue.loop_id AND x.position > 1) THEN
            WITH early AS (
                SELECT t.* FROM activation._out_of_turn(found, now) t
            ), put_back AS (
                UPDATE activation.message m
                   SET next_attempt_at = t.again
                  FROM early t
                 WHERE m.message_id = t.message_id
                   AND t.again IS NOT NULL
            )
            SELECT array_agg(t.message_id) INTO early FROM early t;
            found := ARRAY(
                SELECT f.id FROM unnest(found) AS f(id) WHERE f.id = ANY (early) IS NOT TRUE);
        END IF;
        claimed := claimed || found;
    END LOOP;
    IF claimed = '{}' THEN
        RETURN;
    END IF;
    FOR batch IN
        SELECT m.loop_id, m.version, v.priority, array_agg(m.message_id) AS ids
          FROM unnest(claimed) AS u(id)
          CROSS JOIN LATERAL (
              SELECT x.loop_id, x.version, x.message_id, x.next_attempt_at
                FROM activation.message x
               WHERE x.message_id = u.id
              OFFSET 0) m
          JOIN activation.loop_version v USING (loop_id, version)
         GROUP BY m.loop_id, m.version, v.priority
         ORDER BY v.priority DESC, min(m.next_attempt_at)
    LOOP
        SELECT c.made, c.counted INTO checked, counts
          FROM activation._claim_of_loop(batch.loop_id, batch.version, batch.ids, counts, now) c;
        RETURN QUERY SELECT u.* FROM unnest(checked) u;
        returned := returned + cardinality(checked);
    END LOOP;
    IF returned < cardinality(claimed) THEN
        RETURN QUERY
        SELECT m.message_id, m.loop_id, m.version, m.step, m.branch,
               m.next_attempt_at, m.batch_limit, m.user_id, NULL::text, NULL::text,
               NULL::integer, NULL::text, NULL::bigint
          FROM unnest(claimed) AS u(id)
          CROSS JOIN LATERAL (
              SELECT x.* FROM activation.message x WHERE x.message_id = u.id OFFSET 0) m
         WHERE m.state <> 'queued'
            OR m.next_attempt_at > now;
    END IF;
END
$$;
