-- An answer becomes a consequence: a message, the next step, or the end of the enrollment.

-- Locks people's enrollments one by one, by their own key, and says where they are (places). The
-- statement that follows finds them there, so that no plan of it can read all who wait for each of
-- these people; and it sees what others did meanwhile. It raises where an author holds them in an
-- open transaction (migrate_loop, archive_loop): the loop is put off, and the others go on.
CREATE FUNCTION activation._lock_enrollments(
    wanted activation.decided[], OUT places tid[], OUT people activation.decided[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
SET lock_timeout = '100ms'
AS $$
BEGIN
    SELECT array_agg(e.ctid), array_agg((p.id, p.branch, p.at, p.is_new)::activation.decided)
      INTO places, people
      FROM unnest(wanted) AS p(id, branch, at, is_new)
      CROSS JOIN LATERAL (
          SELECT x.ctid
            FROM activation.enrollment x
           WHERE x.enrollment_id = p.id
             FOR NO KEY UPDATE OFFSET 0) e;
END
$$;

-- Writes down what an answer to a step's condition changed, and touches nobody else. of_step: the
-- step whose condition was asked. true_keys: whose answer was true; NULL for a step without a
-- condition, which is decided by its own start. True at the goal is activation. True at the step
-- that somebody is at is the action's message, and still false at the deadline the otherwise
-- message; either way the next step follows, if there is one, unless on_timeout is exit.
-- Long because it says for one group of people after the other who is in it and what follows.
CREATE FUNCTION activation._detect_decide(
    of_step integer, ids bigint[], woken_at timestamptz[], is_new boolean[], true_keys text[]
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := activation._now();
    acted activation.decided[];
    late activation.decided[];
    reached activation.decided[];
    evaluated activation.decided[];
    places tid[];
BEGIN
    IF true_keys IS NULL THEN
        acted := ARRAY(
            SELECT (a.id, 'action', NULL, NULL)::activation.decided FROM unnest(ids) AS a(id));
    ELSE
        IF true_keys <> '{}' THEN
            acted := ARRAY(
                SELECT (a.id, 'action', a.at, a.is_new)::activation.decided
                  FROM unnest(ids, woken_at, is_new) AS a(id, at, is_new)
                  CROSS JOIN LATERAL (
                      SELECT x.user_id
                        FROM activation.enrollment x
                       WHERE x.enrollment_id = a.id
                      OFFSET 0) e
                 WHERE e.user_id = ANY (true_keys));
            -- For people who are at the goal's own step, _advance() writes the activation.
            SELECT array_agg((a.id, a.branch, a.at, a.is_new)::activation.decided) INTO reached
              FROM unnest(acted) AS a(id, branch, at, is_new)
              CROSS JOIN LATERAL (
                  SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = a.id OFFSET 0) e
             WHERE e.activated_at IS NULL
               AND NOT (e.step = of_step AND e.state = 'waiting'
                        AND coalesce(e.starts_at <= now, true))
               AND EXISTS (SELECT FROM activation.loop_version v
                            WHERE v.loop_id = e.loop_id
                              AND v.version = e.version
                              AND v.goal_step = of_step);
            IF reached IS NOT NULL THEN
                SELECT l.places, l.people INTO places, reached
                  FROM activation._lock_enrollments(reached) l;
                UPDATE activation.enrollment e
                   SET activated_at = CASE WHEN a.is_new THEN e.enrolled_at
                                           ELSE coalesce(a.at, now) END
                  FROM unnest(places, reached) AS a(place, id, branch, at, is_new)
                 WHERE e.ctid = a.place
                   AND e.activated_at IS NULL;
            END IF;
        END IF;
        late := ARRAY(
            SELECT (a.id, 'otherwise', NULL, NULL)::activation.decided
              FROM unnest(ids) AS a(id)
              CROSS JOIN LATERAL (
                  SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = a.id OFFSET 0) e
             WHERE e.step = of_step
               AND e.state = 'waiting'
               AND e.deadline <= now
               AND coalesce(e.starts_at <= now, true)
               AND NOT e.user_id = ANY (true_keys));
    END IF;
    IF acted <> '{}' OR late <> '{}' THEN
        PERFORM activation._advance(of_step, acted || late, now);
    END IF;
    IF true_keys IS NOT NULL THEN
        -- People whose step has begun and who go on waiting; and people who could not be
        -- evaluated before and now were: they have no error any more.
        SELECT array_agg((a.id, NULL, NULL, NULL)::activation.decided) INTO evaluated
          FROM unnest(ids) AS a(id)
          CROSS JOIN LATERAL (
              SELECT x.* FROM activation.enrollment x WHERE x.enrollment_id = a.id OFFSET 0) e
         WHERE e.retry_at <= now
            OR e.step = of_step AND e.state = 'waiting' AND e.starts_at <= now;
        IF evaluated IS NOT NULL THEN
            SELECT l.places INTO places FROM activation._lock_enrollments(evaluated) l;
            UPDATE activation.enrollment e
               SET starts_at = CASE WHEN e.step = of_step AND e.starts_at <= now THEN NULL
                                    ELSE e.starts_at END,
                   retry_at = NULL,
                   deferred_wake = NULL,
                   deferred_new = NULL,
                   last_error = NULL
             WHERE e.ctid = ANY (places)
               AND (e.retry_at <= now
                    OR e.step = of_step AND e.state = 'waiting' AND e.starts_at <= now);
        END IF;
    END IF;
END
$$;

-- Whether a branch of a step only nudges towards the goal, so that whoever has reached that gets
-- none: the otherwise of any step, and the action of a step without a condition that waits before
-- it acts. Without SET clauses, so that it and _has_nudge() become parts of statements.
CREATE FUNCTION activation._is_nudge(s activation.step, branch text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN branch = 'otherwise' OR s.evaluate_function IS NULL AND s.delay > interval '0';

-- Whether a step sends any nudge at all, see _is_nudge().
CREATE FUNCTION activation._has_nudge(s activation.step) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN s.otherwise IS NOT NULL
    OR s.action IS NOT NULL AND s.evaluate_function IS NULL AND s.delay > interval '0';

-- Carries out how a step was decided for these people: its message, and the next step. Only those
-- move who are at the step and for whom it has begun. A nudge towards a goal that is reached is
-- cancelled as it is made, so that why() can tell.
-- Long because people move and their messages are made in one statement, for the sake of speed.
CREATE FUNCTION activation._advance(
    of_step integer, people activation.decided[], now timestamptz
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
#variable_conflict use_variable
DECLARE
    places tid[];
BEGIN
    SELECT l.places, l.people INTO places, people FROM activation._lock_enrollments(people) l;
    WITH moved AS (
        UPDATE activation.enrollment e
           SET activated_at = CASE WHEN d.branch = 'action' AND v.goal_step = of_step
                                        AND e.activated_at IS NULL
                                   THEN CASE WHEN d.is_new THEN e.enrolled_at
                                             ELSE coalesce(d.at, now) END
                                   ELSE e.activated_at END,
               state = CASE WHEN f.exits THEN 'exited'
                            WHEN n.step IS NOT NULL THEN 'waiting'
                            WHEN d.branch = 'action' THEN 'completed'
                            ELSE 'timed_out' END,
               exit_cause = CASE WHEN f.exits THEN 'step_timed_out' END,
               exit_note = CASE WHEN f.exits THEN s.name END,
               decided_at = CASE WHEN f.exits OR n.step IS NULL THEN now END,
               history = CASE WHEN s.position = 1 AND n.step IS NULL THEN NULL
                              ELSE coalesce(e.history, '[]') || jsonb_build_array(
                                       jsonb_build_array(s.step, d.branch, now)) END,
               step = CASE WHEN f.exits OR n.step IS NULL THEN e.step ELSE n.step END,
               starts_at = CASE WHEN NOT f.exits AND n.step IS NOT NULL THEN now + n.delay END,
               deadline = CASE WHEN f.exits OR n.step IS NULL THEN e.deadline
                               ELSE now + n.delay + n.timeout END,
               retry_at = NULL,
               deferred_wake = NULL,
               deferred_new = NULL,
               last_error = NULL
          FROM unnest(places, people) AS d(place, id, branch, at, is_new)
          CROSS JOIN LATERAL (
              SELECT x.* FROM activation.enrollment x WHERE x.ctid = d.place OFFSET 0) was
          JOIN activation.step s
            ON s.loop_id = was.loop_id AND s.version = was.version AND s.step = of_step
          JOIN activation.loop_version v ON v.loop_id = s.loop_id AND v.version = s.version
          LEFT JOIN LATERAL (
              SELECT x.step, x.delay, x.timeout
                FROM activation.step x
               WHERE x.loop_id = s.loop_id
                 AND x.version = s.version
                 AND x.position = s.position + 1) n ON true,
               LATERAL (SELECT d.branch = 'otherwise' AND s.on_timeout = 'exit' AS exits) f
         -- Nothing else is asked of e: there may be an index for it, and statistics from when
         -- hardly anybody waited.
         WHERE e.ctid = d.place
           AND was.step = of_step
           AND was.state = 'waiting'
           AND coalesce(was.starts_at <= now, true)
        RETURNING e.enrollment_id, e.loop_id, e.version, e.user_id, e.activated_at, e.holdout,
                  d.branch,
                  coalesce(was.starts_at,
                           CASE d.branch WHEN 'otherwise' THEN was.deadline END,
                           now) AS due_at,
                  CASE d.branch WHEN 'action' THEN s.action ELSE s.otherwise END AS email,
                  activation._is_nudge(s, d.branch) AS nudge
    )
    INSERT INTO activation.message (
        message_id, enrollment_id, loop_id, version, user_id, step, branch,
        state, created_at, next_attempt_at, finished_at, cause)
    SELECT gen_random_uuid(), m.enrollment_id, m.loop_id, m.version, m.user_id, of_step, m.branch,
           o.state, now, now,
           CASE WHEN o.state <> 'queued' THEN now END,
           CASE WHEN m.holdout THEN 'held_out'
                WHEN m.nudge AND m.activated_at IS NOT NULL THEN 'goal_reached'
                WHEN o.state <> 'queued' THEN 'due_in_pause' END
      FROM moved m
      JOIN activation."loop" l USING (loop_id)
      CROSS JOIN LATERAL (
          SELECT CASE WHEN m.holdout THEN 'held_out'
                      WHEN m.nudge AND m.activated_at IS NOT NULL OR m.due_at < l.drop_before
                      THEN 'cancelled'
                      ELSE 'queued' END AS state) o
     WHERE m.email IS NOT NULL
    ON CONFLICT DO NOTHING;
END
$$;
