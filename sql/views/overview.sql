-- What a founder looks at in the morning: overview() is all of it as one document, report() the
-- same as a page.

-- The numbers of overview(), counted now: funnels, cohorts, lift and the rest by loop, and those of
-- mails.
CREATE FUNCTION activation._overview_numbers() RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH funnel AS MATERIALIZED (
        SELECT f.loop, f.version,
               jsonb_agg(to_jsonb(f) - 'loop' - 'version' ORDER BY f.position) AS stages,
               max(f.people) FILTER (WHERE f.stage = 'enrolled') AS people
          FROM activation.funnel f
         GROUP BY 1, 2
    ), newest AS (
        SELECT DISTINCT ON (f.loop) f.loop, f.version, f.stages,
               sum(f.people) OVER (PARTITION BY f.loop) - f.people AS in_other_versions
          FROM funnel f
         ORDER BY f.loop, f.version DESC
    ), cohort AS MATERIALIZED (
        SELECT c.loop, jsonb_agg(to_jsonb(c) - 'loop' - 'back' ORDER BY c.week) AS weeks
          FROM (SELECT x.*, row_number() OVER (PARTITION BY x.loop ORDER BY x.week DESC) AS back
                  FROM activation.cohort x) c
         WHERE c.back <= 12
         GROUP BY 1
    ), waiting AS MATERIALIZED (
        SELECT w.loop,
               jsonb_agg(jsonb_build_object('step', w.step, 'people', w.people, 'next', w.next)
                         ORDER BY w.position, w.step) AS steps
          FROM (SELECT l.name AS loop, s.name AS step, min(s.position) AS position,
                       sum(e.people) AS people, min(e.next) AS next
                  FROM (SELECT x.loop_id, x.version, x.step, count(*) AS people,
                               min(coalesce(x.starts_at, x.deadline)) AS next
                          FROM activation.enrollment x
                         WHERE x.state = 'waiting'
                         GROUP BY 1, 2, 3) e
                  JOIN activation.step s USING (loop_id, version, step)
                  JOIN activation."loop" l USING (loop_id)
                 GROUP BY 1, 2) w
         GROUP BY 1
    ), acted AS MATERIALIZED (
        SELECT * FROM activation.time_to_activate
    ), changed AS MATERIALIZED (
        SELECT * FROM activation.lift
    )
    SELECT jsonb_build_object(
        'loops', coalesce(
            (SELECT jsonb_object_agg(l.name, jsonb_build_object(
                        'funnel', n.stages,
                        'funnel_version', n.version,
                        'in_other_versions', n.in_other_versions,
                        'cohorts', coalesce(c.weeks, '[]'),
                        'waiting', coalesce(w.steps, '[]'),
                        'lift', to_jsonb(f) - 'loop',
                        'time_to_activate',
                            CASE WHEN t.loop IS NOT NULL
                                 THEN to_jsonb(t) - 'loop'
                                      || jsonb_build_object('median', extract(epoch FROM t.median),
                                                            'p90', extract(epoch FROM t.p90)) END))
               FROM activation."loop" l
               LEFT JOIN newest n ON n.loop = l.name
               LEFT JOIN cohort c ON c.loop = l.name
               LEFT JOIN waiting w ON w.loop = l.name
               LEFT JOIN acted t ON t.loop = l.name
               LEFT JOIN changed f ON f.loop = l.name), '{}'),
        'mail', coalesce(
            (SELECT jsonb_agg(to_jsonb(m) ORDER BY m.template, m.version)
               FROM activation.mail_numbers m), '[]'))
$$;

-- The numbers: counted now where that is quick, or where the kept ones are older than max_age.
-- Where it takes long, one session at a time counts, and the others take what is kept. In a
-- read-only transaction and on a standby nothing is written down.
CREATE FUNCTION activation._kept_numbers(
    max_age interval, OUT numbers jsonb, OUT taken_at timestamptz, OUT took interval
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := activation._now();
    kept activation.overview_numbers;
    began timestamptz;
    -- A lock is a row, and a transaction that only reads cannot lock one: it counts for itself.
    read_only boolean := current_setting('transaction_read_only')::boolean;
BEGIN
    SELECT * INTO kept FROM activation.overview_numbers;
    IF kept.took > interval '150 ms'
       AND (now - kept.taken_at <= max_age
            OR NOT read_only AND NOT activation._try_lock('overview')) THEN
        numbers := kept.numbers;
        taken_at := kept.taken_at;
        took := kept.took;
        RETURN;
    END IF;
    began := clock_timestamp();
    numbers := activation._overview_numbers();
    taken_at := now;
    took := clock_timestamp() - began;
    IF NOT read_only AND activation._try_lock('overview') THEN
        INSERT INTO activation.overview_numbers AS x (taken_at, took, numbers)
        VALUES (now, _kept_numbers.took, _kept_numbers.numbers)
        ON CONFLICT ON CONSTRAINT overview_numbers_pkey
        DO UPDATE SET taken_at = excluded.taken_at, took = excluded.took,
                      numbers = excluded.numbers;
    END IF;
END
$$;

-- The last twenty things that went wrong. Each kind is looked for by an index, and only among so
-- many of the newest: mails that were asked of Resend, mails that did not get as far, what Resend
-- told later, and people who could not be enrolled.
CREATE FUNCTION activation._trouble() RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH mail AS (
        (SELECT m.message_id, m.finished_at AS at
           FROM activation.message m
          WHERE m.finished_at IS NOT NULL AND m.request_id IS NOT NULL
            AND m.state IN ('failed', 'unknown')
          ORDER BY m.finished_at DESC LIMIT 20)
        UNION
        (SELECT x.message_id, x.at
           FROM (SELECT m.message_id, m.finished_at AS at, m.state
                   FROM activation.message m
                  WHERE m.finished_at IS NOT NULL
                  ORDER BY m.finished_at DESC LIMIT 2000) x
          WHERE x.state IN ('failed', 'unknown')
          ORDER BY x.at DESC LIMIT 20)
        UNION
        (SELECT x.message_id, max(x.at)
           FROM (SELECT w.message_id, w.at, w.type
                   FROM activation.webhook_event w
                  ORDER BY w.received_at DESC LIMIT 5000) x
          WHERE x.message_id IS NOT NULL
            AND x.type IN ('email.bounced', 'email.complained', 'email.failed')
          GROUP BY 1
          ORDER BY 2 DESC LIMIT 20)
    )
    SELECT coalesce(jsonb_agg(t ORDER BY t.at DESC), '[]') FROM (
        SELECT f.at, l.name AS loop, s.name AS step, m.user_id, m.state AS status,
               coalesce(activation._cause_text(m.cause, m.last_error), '') AS error
          FROM mail f
          JOIN activation.message m USING (message_id)
          JOIN activation.step s USING (loop_id, version, step)
          JOIN activation."loop" l USING (loop_id)
        UNION ALL
        (SELECT c.at, l.name, NULL, left(c.user_id, 200),
                CASE c.code WHEN 'not_captured' THEN 'not enrolled' ELSE 'deletion unclear' END,
                c.error
           FROM activation.capture_failure c JOIN activation."loop" l USING (loop_id)
          ORDER BY c.at DESC LIMIT 20)
        ORDER BY at DESC LIMIT 20) t
$$;

CREATE FUNCTION activation.overview(max_age interval DEFAULT '1 hour') RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept record;
BEGIN
    SELECT * INTO kept
      FROM activation._kept_numbers(coalesce(overview.max_age, interval '1 hour'));
    RETURN jsonb_build_object(
        'at', activation._now(),
        'numbers_at', kept.taken_at,
        'numbers_took', round(extract(epoch FROM kept.took), 3),
        'database', current_database(),
        'version', (SELECT x.extversion FROM pg_extension x WHERE x.extname = 'activation'),
        'timezone', (activation._setting()).timezone,
        'status', (SELECT jsonb_agg(s) FROM activation._status() s),
        'loops', coalesce(
            (SELECT jsonb_agg(jsonb_build_object('name', l.name, 'state', l.state,
                                                 'version', l.version, 'definition', v.definition)
                              || coalesce(kept.numbers #> ARRAY['loops', l.name], '{}')
                              ORDER BY l.name)
               FROM activation."loop" l JOIN activation.loop_version v USING (loop_id, version)
              WHERE l.state <> 'archived'), '[]'),
        'mail', kept.numbers -> 'mail',
        'trouble', activation._trouble());
END
$$;
COMMENT ON FUNCTION activation.overview(interval) IS
'All that the dashboard shows, as one document: status, the loops with their definitions, funnels,
weekly cohorts of twelve weeks, time to activate (median and p90 in seconds) and lift, the numbers
of mails, and the last twenty things that went wrong.
max_age: how old numbers may be that take long to count.
Returns an object. numbers_at says from when its numbers are, numbers_took how many seconds they
  took. More keys may follow.';

CREATE FUNCTION activation.report() RETURNS text
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT activation._report(activation.overview()) $$;
COMMENT ON FUNCTION activation.report() IS
'The dashboard as one self-contained HTML page, of what overview() returns: psql -XAtc ''SELECT
activation.report()'' > report.html.
Returns the page.';
