-- The claim: due messages are locked, checked, and handed to the deliverer with all that rendering
-- needs. The deliverer stores their requests in the same transaction, which makes them sending.

-- Whose code took long in the claims of this session: {loop: when its next turn comes}. It stands
-- in a setting of the session, so that a claim where nothing is slow pays nothing for it; what an
-- author's code sets is undone with the call.
CREATE FUNCTION activation._slow_claims() RETURNS jsonb
LANGUAGE sql STABLE
RETURN coalesce(nullif(current_setting('activation.slow_claims', true), ''), '{}')::jsonb;

-- Notes how long a loop's code took in a claim. A slow one's next turn before others comes after
-- ten times as long.
CREATE FUNCTION activation._note_claim_time(of_loop integer, seconds double precision)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    slow jsonb := activation._slow_claims();
BEGIN
    IF seconds > 1 THEN
        PERFORM set_config(
            'activation.slow_claims',
            (slow || jsonb_build_object(
                         of_loop, extract(epoch FROM clock_timestamp()) + 10 * seconds))::text,
            false);
    ELSIF seconds < 0.5 AND slow ? of_loop::text THEN
        PERFORM set_config('activation.slow_claims', (slow - of_loop::text)::text, false);
    END IF;
END
$$;

-- When a loop is claimed: 1 for most; 2 where another loop of its owner is slow, and 3 where it is
-- slow itself, or 0 when its turn has come. A claim takes loops of one rank, and of the slow ones a
-- single one, so that slow code, of however many loops, holds up others by one claim in a while.
CREATE FUNCTION activation._claim_rank(of_loop integer, slow jsonb) RETURNS integer
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN (slow ->> of_loop::text)::double precision < extract(epoch FROM clock_timestamp())
        THEN 0
        WHEN slow ? of_loop::text THEN 3
        WHEN EXISTS (SELECT
                       FROM activation."loop" l
                       JOIN activation.loop_version v USING (loop_id, version)
                       JOIN activation.loop_version o ON o.owner = v.owner
                      WHERE l.loop_id = of_loop AND slow ? o.loop_id::text)
        THEN 2
        ELSE 1 END
$$;

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
    slow jsonb := activation._slow_claims();
    first_rank integer;
    claim_began timestamptz := clock_timestamp();
    began timestamptz;
BEGIN
    IF leaves AND s.max_per_user IS NOT NULL THEN
        -- Two deliverers must not both find room for a user's last mail.
        PERFORM activation._lock('cap');
    END IF;
    FOR queue IN
        SELECT q.*, r.rank
          FROM activation._due_loops(now, cursor_loops, cursor_times, cursor_ids)
               WITH ORDINALITY q(loop_id, after_at, after_id, place)
          CROSS JOIN LATERAL (
              SELECT CASE WHEN slow = '{}' THEN 1
                          ELSE activation._claim_rank(q.loop_id, slow) END AS rank) r
         ORDER BY r.rank, q.place
    LOOP
        take := wanted - cardinality(claimed);
        EXIT WHEN take = 0;
        EXIT WHEN claimed <> '{}' AND (queue.rank <> first_rank OR queue.rank IN (0, 3));
        first_rank := queue.rank;
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
        began := clock_timestamp();
        -- Others go in a claim of their own: what is left here stays queued.
        EXIT WHEN began > claim_began + interval '1 second';
        SELECT c.made, c.counted INTO checked, counts
          FROM activation._claim_of_loop(batch.loop_id, batch.version, batch.ids, counts, now) c;
        RETURN QUERY SELECT u.* FROM unnest(checked) u;
        returned := returned + cardinality(checked);
        IF slow <> '{}' OR clock_timestamp() > began + interval '1 second' THEN
            PERFORM activation._note_claim_time(
                batch.loop_id, extract(epoch FROM clock_timestamp() - began)::double precision);
        END IF;
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
