-- simulate(): what a rehearsal comes to, in counts.

-- Long because one statement counts it all, from rows that exist only while it runs.
CREATE FUNCTION activation.simulate(
    loop text DEFAULT NULL, definition jsonb DEFAULT NULL,
    since timestamptz DEFAULT now() - interval '90 days', until timestamptz DEFAULT now(),
    timestamps jsonb DEFAULT NULL, names text DEFAULT current_setting('search_path')
) RETURNS TABLE (
    part text, step text, branch text, status text, people bigint, share numeric,
    first_at timestamptz, median_after interval, already_acted bigint, detail text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
-- Compiling its statements would take longer than running them; sorts of everybody's days fit into
-- this.
SET jit = off
SET work_mem = '64MB'
AS $$
#variable_conflict use_column
BEGIN
    IF (simulate.loop IS NULL) = (simulate.definition IS NULL) AND simulate.definition IS NULL THEN
        RAISE EXCEPTION 'there is nothing to rehearse'
            USING ERRCODE = '22023',
                  HINT = 'Name a loop, or give a definition: simulate(definition => …).';
    END IF;
    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT *
          FROM activation._simulate(simulate.loop, simulate.definition, simulate.since,
                                    simulate.until, simulate.timestamps, simulate.names)
    ), about AS (
        SELECT f.notes -> 'notes' AS notes, (f.notes ->> 'rate')::numeric AS rate,
               (f.notes ->> 'goal')::boolean AS goal
          FROM found f
         WHERE f.notes IS NOT NULL
    ), person AS (
        SELECT f.user_id, f.at AS enrolled_at, f.goal_at, f.held_out
          FROM found f
         WHERE f.step IS NULL AND f.notes IS NULL
    ), mail AS (
        SELECT f.* FROM found f WHERE f.step IS NOT NULL
    ), total AS (
        SELECT count(*) AS people, count(p.goal_at) AS activated, min(p.enrolled_at) AS first_at
          FROM person p
    ), place AS (
        -- As in time_to_activate: of n who still wait, one fewer does.
        SELECT s.seconds, s.acted,
               t.people + 1 - row_number() OVER (ORDER BY s.seconds, s.acted DESC) AS n
          FROM (SELECT p.goal_at IS NOT NULL AS acted,
                       date_part('epoch', coalesce(p.goal_at, simulate.until)
                                          - p.enrolled_at)::bigint AS seconds
                  FROM person p) s, total t
    ), curve AS (
        SELECT p.seconds,
               exp(sum(CASE WHEN NOT p.acted THEN 0
                            WHEN p.n = 1 THEN '-Infinity'
                            ELSE ln((p.n - 1) / p.n::double precision) END)
                   OVER (ORDER BY p.seconds, p.acted DESC ROWS UNBOUNDED PRECEDING))
               AS still_waiting
          FROM place p
    ), time AS (
        SELECT make_interval(secs => min(c.seconds) FILTER (WHERE c.still_waiting <= 0.5 + 1e-9))
               AS median,
               make_interval(secs => min(c.seconds) FILTER (WHERE c.still_waiting <= 0.1 + 1e-9))
               AS p90
          FROM curve c
    ), busiest AS (
        SELECT m.at::date AS day, count(*) AS emails
          FROM mail m
         WHERE m.status = 'sent'
         GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1
    ), line AS (
        SELECT 1 AS place, 0 AS sub, 'enrolled' AS part,
               NULL::text AS step, NULL::text AS branch, NULL::text AS status,
               t.people, 1.0 AS share, t.first_at,
               NULL::interval AS median_after, NULL::bigint AS already_acted, NULL::text AS detail
          FROM total t
        UNION ALL
        SELECT 2,
               row_number() OVER (ORDER BY min(m.at - m.enrolled_at),
                                           m.step, m.branch, m.status)::integer,
               'mail', m.step, m.branch, m.status, count(*),
               round(count(*)::numeric / nullif((SELECT t.people FROM total t), 0), 4),
               min(m.at),
               make_interval(secs => percentile_disc(0.5) WITHIN GROUP (
                   ORDER BY date_part('epoch', m.at - m.enrolled_at))),
               count(*) FILTER (WHERE m.goal_at <= m.at),
               CASE m.status
                   WHEN 'sent' THEN 'would have been sent'
                   WHEN 'held_out' THEN 'would have been held back, to measure'
                   WHEN 'queued' THEN 'would still wait for the send window'
                   ELSE 'would not have been sent: the goal was reached, '
                        'or it was outside the send window' END
          FROM mail m
         GROUP BY m.step, m.branch, m.status
        UNION ALL
        SELECT 3, 0, 'activated', NULL, NULL, NULL, t.activated,
               round(t.activated::numeric / nullif(t.people, 0), 4), NULL, time.median, NULL,
               concat_ws(', ',
                   CASE WHEN time.median IS NULL THEN 'fewer than half so far'
                        ELSE format('half within %s', time.median) END,
                   CASE WHEN time.median IS NULL THEN NULL
                        WHEN time.p90 IS NULL THEN 'fewer than nine in ten so far'
                        ELSE format('nine in ten within %s', time.p90) END)
          FROM total t, time, about a
         WHERE a.goal
        UNION ALL
        SELECT 4, 0, 'emails', NULL, NULL, NULL, count(*), NULL, min(m.at), NULL, NULL,
               format('%s people, %s; most on %s: %s, in %s or more requests%s',
                   count(DISTINCT m.user_id),
                   CASE WHEN count(*) = 0 THEN 'no day'
                        ELSE format('%s days', count(DISTINCT m.at::date)) END,
                   coalesce((SELECT b.day::text FROM busiest b), 'none'),
                   coalesce((SELECT b.emails FROM busiest b), 0),
                   ceil(coalesce((SELECT b.emails FROM busiest b), 0) / 100.0),
                   (SELECT CASE WHEN a.rate IS NULL
                                THEN '; the provider''s rate is not known yet'
                                ELSE format(', %s s at %s a second',
                                            ceil(ceil(coalesce((SELECT b.emails FROM busiest b), 0)
                                                      / 100.0) / a.rate),
                                            a.rate) END
                      FROM about a))
          FROM mail m
         WHERE m.status = 'sent'
        UNION ALL
        SELECT 5, row_number() OVER (ORDER BY p.enrolled_at, p.user_id)::integer,
               'person ' || p.user_id, NULL, NULL, NULL, NULL, NULL,
               p.enrolled_at, p.goal_at - p.enrolled_at, NULL,
               concat_ws('; ',
                   (SELECT string_agg(format('%s: %s %s, %s', to_char(m.at, 'YYYY-MM-DD HH24:MI'),
                                             m.step, m.branch, m.status), '; ' ORDER BY m.at)
                      FROM mail m WHERE m.user_id = p.user_id),
                   'goal ' || to_char(p.goal_at, 'YYYY-MM-DD HH24:MI'))
          FROM (SELECT * FROM person p ORDER BY p.enrolled_at, p.user_id LIMIT 10) p
        UNION ALL
        SELECT 6, n.number::integer, 'note', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, n.note
          FROM about a,
               jsonb_array_elements_text(coalesce(nullif(a.notes, 'null'), '[]'))
               WITH ORDINALITY AS n(note, number)
    )
    SELECT l.part, l.step, l.branch, l.status, l.people, l.share, l.first_at, l.median_after,
           l.already_acted, l.detail
      FROM line l
     ORDER BY l.place, l.sub;
END
$$;
COMMENT ON FUNCTION activation.simulate(text, jsonb, timestamptz, timestamptz, jsonb, text) IS
'Rehearses a loop, or a definition, over what the app''s tables say happened. A condition is asked
as of each moment at which a row of the user''s came, with the rows that had come by then. Deleted
and updated rows, caps and other loops are not known to it. It writes nothing. It reads with the
caller''s rights, and refuses what would run code of a role that has not got them.
loop: the name of a loop (default: none, then definition counts).
definition: a document, as for import_loop().
since: from when.
until: to when, not in the future.
timestamps: columns that tell when a row was inserted, where they are not found,
  {"public.projects": "made_on"}.
names: as in define_loop(), for a definition.
Returns rows of several parts.
part: enrolled, mail, activated, emails (a summary of all mail), person (the first ten, with their
  timelines) or note (what cannot be replayed, and why).
step: the step of the mail.
branch: action or otherwise.
status: what would have become of the mail: sent, queued, cancelled or held_out.
people: how many people.
share: of the enrolled.
first_at: the first time.
median_after: how long after the enrollment, in the median.
already_acted: how many of them had reached the goal by then.
detail: more, in words.
Raises 22023 for an argument that is none, 42704 for an unknown loop, 42501 for code of others'',
  55000 where no column tells when a row was inserted, 0A000 for a trigger that cannot be
  replayed, 55006 where tables change all the while.';
