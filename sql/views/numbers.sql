-- What came of it, in numbers. In all of these somebody counts once a loop, by their first
-- enrollment in it. They count on the side of the holdout that they were assigned to, whatever they
-- were sent (intention to treat). Rates are of the mature only: who signed up yesterday has not
-- failed to act yet.

-- How long a version gives somebody to act: the delays and timeouts of its steps. A step that waits
-- for ever counts as two weeks. So does at least a goal of the loop's own, which has no timeout.
CREATE VIEW activation._span AS
SELECT s.loop_id, s.version,
       greatest(sum(s.delay + coalesce(s.timeout, CASE WHEN s.evaluate_function IS NOT NULL
                                                       THEN interval '14 days'
                                                       ELSE interval '0' END))
                    FILTER (WHERE s.step > 0),
                CASE WHEN v.goal_step = 0 THEN interval '14 days' END) AS span
  FROM activation.step s JOIN activation.loop_version v USING (loop_id, version)
 GROUP BY s.loop_id, s.version, v.goal_step;
COMMENT ON VIEW activation._span IS
'How long each version of a loop gives somebody to act, until they are mature.';

CREATE VIEW activation.funnel AS
WITH place AS (
    SELECT e.loop_id, e.version, e.step, e.starts_at IS NULL AS begun, count(*) AS people,
           count(e.activated_at) AS activated
      FROM activation.enrollment e
     WHERE e.pass = 1
     GROUP BY 1, 2, 3, 4
), mail AS (
    SELECT m.loop_id, m.version, m.step, count(*) AS promised,
           count(*) FILTER (WHERE m.state IN ('sent', 'delivered', 'bounced', 'complained')) AS sent
      FROM activation.message m
     GROUP BY 1, 2, 3
), total AS (
    SELECT p.loop_id, p.version, sum(p.people) AS people, sum(p.activated) AS activated
      FROM place p
     GROUP BY 1, 2
), stage AS (
    SELECT t.loop_id, t.version, 0 AS position, 'enrolled' AS stage, NULL::text AS step, t.people,
           NULL::bigint AS promised, NULL::bigint AS sent
      FROM total t
    UNION ALL
    SELECT s.loop_id, s.version, s.position, 'step', s.name,
           coalesce((SELECT sum(p.people)
                       FROM place p JOIN activation.step x USING (loop_id, version, step)
                      WHERE p.loop_id = s.loop_id AND p.version = s.version
                        AND (x.position > s.position OR x.position = s.position AND p.begun)), 0),
           coalesce(m.promised, 0), coalesce(m.sent, 0)
      FROM total t
      JOIN activation.step s USING (loop_id, version)
      LEFT JOIN mail m USING (loop_id, version, step)
     WHERE s.step > 0
    UNION ALL
    SELECT t.loop_id, t.version,
           1 + (SELECT max(s.position)
                  FROM activation.step s
                 WHERE s.loop_id = t.loop_id AND s.version = t.version),
           'activated', NULL, t.activated, NULL, NULL
      FROM total t JOIN activation.loop_version v USING (loop_id, version)
     WHERE v.goal_step IS NOT NULL
)
SELECT l.name AS loop, g.version, g.position, g.stage, g.step, g.people::bigint,
       round(g.people / t.people, 4) AS share, g.promised, g.sent
  FROM stage g
  JOIN total t USING (loop_id, version)
  JOIN activation."loop" l USING (loop_id)
 ORDER BY l.name, g.version, g.position;
COMMENT ON VIEW activation.funnel IS
    'How far people came, by loop and version: a row for those enrolled, one for each step with '
    'those for whom it began, one for those activated. Somebody enrolled several times counts '
    'once, by the first time. Mails count as far back as retention keeps them.';
COMMENT ON COLUMN activation.funnel.loop IS
    'The loop''s name.';
COMMENT ON COLUMN activation.funnel.version IS
    'The version of the loop.';
COMMENT ON COLUMN activation.funnel.position IS
    'The order of the stages, from 0.';
COMMENT ON COLUMN activation.funnel.stage IS
    'enrolled, step or activated.';
COMMENT ON COLUMN activation.funnel.step IS
    'The step''s name. NULL for the other stages.';
COMMENT ON COLUMN activation.funnel.people IS
    'How many were enrolled, came to the step, or were activated.';
COMMENT ON COLUMN activation.funnel.share IS
    'Their share of the enrolled, from 0 to 1.';
COMMENT ON COLUMN activation.funnel.promised IS
    'How many messages the step promised, also to people who are held out.';
COMMENT ON COLUMN activation.funnel.sent IS
    'How many of these Resend accepted.';

CREATE VIEW activation.cohort AS
-- The weeks are computed once and then looked up for each person: the week of a time depends on the
-- time zone, which takes long to ask.
WITH zone AS (
    SELECT coalesce((SELECT x.timezone FROM activation.setting x), 'UTC') AS timezone,
           activation._now() AS now
), week AS MATERIALIZED (
    SELECT array_agg(w.monday AT TIME ZONE z.timezone ORDER BY w.monday) AS starts,
           array_agg(w.monday::date ORDER BY w.monday) AS mondays
      FROM zone z,
           generate_series(
               date_trunc('week', (SELECT min(e.enrolled_at) FROM activation.enrollment e)
                                  AT TIME ZONE z.timezone),
               z.now AT TIME ZONE z.timezone, '7 days') AS w(monday)
), span AS MATERIALIZED (
    SELECT s.loop_id, s.version, s.span, z.now - s.span AS mature_since
      FROM activation._span s, zone z
)
SELECT l.name AS loop, (SELECT w.mondays FROM week w)[p.week] AS week,
       sum(p.enrolled)::bigint AS enrolled, sum(p.mature)::bigint AS mature,
       sum(p.activated)::bigint AS activated,
       round(sum(p.activated) / nullif(sum(p.mature), 0), 4) AS rate,
       sum(p.enrolled - p.mature)::bigint AS not_mature
  FROM (SELECT e.loop_id, width_bucket(e.enrolled_at, (SELECT w.starts FROM week w)) AS week,
               count(*) AS enrolled,
               count(*) FILTER (WHERE e.enrolled_at <= s.mature_since) AS mature,
               count(*) FILTER (WHERE e.enrolled_at <= s.mature_since
                                  AND e.activated_at - e.enrolled_at <= s.span) AS activated
          FROM activation.enrollment e JOIN span s USING (loop_id, version)
         WHERE e.pass = 1
         GROUP BY 1, 2) p
  JOIN activation."loop" l USING (loop_id)
 GROUP BY 1, 2
 ORDER BY 1, 2;
COMMENT ON VIEW activation.cohort IS
    'Activation by the week of enrollment, in the time zone of configure(). Mature are those who '
    'were enrolled as long ago as the delays and timeouts of the loop''s steps add up to (a step '
    'or a goal without a timeout counts two weeks).';
COMMENT ON COLUMN activation.cohort.loop IS
    'The loop''s name.';
COMMENT ON COLUMN activation.cohort.week IS
    'The Monday of the week of enrollment.';
COMMENT ON COLUMN activation.cohort.enrolled IS
    'How many were enrolled in that week.';
COMMENT ON COLUMN activation.cohort.mature IS
    'How many of them have had their time.';
COMMENT ON COLUMN activation.cohort.activated IS
    'How many of the mature were activated within it.';
COMMENT ON COLUMN activation.cohort.rate IS
    'Their share of the mature, from 0 to 1. NULL while nobody is mature.';
COMMENT ON COLUMN activation.cohort.not_mature IS
    'How many still have time.';

CREATE VIEW activation.time_to_activate AS
WITH place AS (
    -- Somebody who has not acted is censored: now, or when their row was deleted. n is how many
    -- still wait, in the order of time; at equal times those who acted come before the censored.
    SELECT p.*, t.people + 1 - row_number() OVER (PARTITION BY p.loop_id
                                                  ORDER BY p.seconds, p.acted DESC) AS n
      FROM (SELECT e.loop_id, e.activated_at IS NOT NULL AS acted,
                   greatest(date_part('epoch', coalesce(
                       e.activated_at,
                       CASE WHEN e.exit_cause = 'user_deleted'
                            THEN e.decided_at END,
                       c.now) - e.enrolled_at), 0)::bigint AS seconds
              FROM activation.enrollment e CROSS JOIN (SELECT activation._now() AS now) c
             WHERE e.pass = 1) p
      JOIN (SELECT e.loop_id, count(*) AS people
              FROM activation.enrollment e
             WHERE e.pass = 1
             GROUP BY 1) t USING (loop_id)
), curve AS (
    SELECT p.loop_id, p.acted, p.seconds,
           exp(sum(CASE WHEN NOT p.acted THEN 0
                        WHEN p.n = 1 THEN '-Infinity'
                        ELSE ln((p.n - 1) / p.n::double precision) END)
                   OVER (PARTITION BY p.loop_id ORDER BY p.seconds, p.acted DESC
                         ROWS UNBOUNDED PRECEDING)) AS still_waiting
      FROM place p
)
SELECT l.name AS loop, q.people, q.activated, q.people - q.activated AS censored, q.median, q.p90
  -- The 1e-9 is for rounding: exp(ln(1/2)) may come out a little above 0.5.
  FROM (SELECT c.loop_id, count(*) AS people, count(*) FILTER (WHERE c.acted) AS activated,
               make_interval(secs => min(c.seconds)
                                     FILTER (WHERE c.still_waiting <= 0.5 + 1e-9)) AS median,
               make_interval(secs => min(c.seconds)
                                     FILTER (WHERE c.still_waiting <= 0.1 + 1e-9)) AS p90
          FROM curve c
         GROUP BY 1) q
  JOIN activation."loop" l USING (loop_id)
  JOIN activation.loop_version v USING (loop_id, version)
 WHERE v.goal_step IS NOT NULL
 ORDER BY 1;
COMMENT ON VIEW activation.time_to_activate IS
    'How long people take from enrollment to activation, by the estimate of Kaplan and Meier '
    '(1958), in which those who have not acted yet count for as long as they were seen (censored).';
COMMENT ON COLUMN activation.time_to_activate.loop IS
    'The loop''s name.';
COMMENT ON COLUMN activation.time_to_activate.people IS
    'How many were ever enrolled.';
COMMENT ON COLUMN activation.time_to_activate.activated IS
    'How many of them were activated.';
COMMENT ON COLUMN activation.time_to_activate.censored IS
    'How many were not, so far or until their row was deleted.';
COMMENT ON COLUMN activation.time_to_activate.median IS
    'The time by which half have acted. NULL: fewer have so far.';
COMMENT ON COLUMN activation.time_to_activate.p90 IS
    'The time by which nine in ten have acted. NULL: fewer have so far.';

CREATE VIEW activation.mail_numbers AS
SELECT g.template, coalesce(t.version, 0) AS version, sum(g.sent)::bigint AS sent,
       sum(g.delivered)::bigint AS delivered, sum(g.bounced)::bigint AS bounced,
       sum(g.complained)::bigint AS complained, sum(g.opened)::bigint AS opened,
       sum(g.clicked)::bigint AS clicked, sum(g.activated)::bigint AS activated_in_7_days,
       round(sum(g.activated) / sum(g.sent), 4) AS rate
  FROM (SELECT CASE m.branch WHEN 'action' THEN s.action ELSE s.otherwise END ->> 'template'
                   AS template,
               m.newest_template_id, m.sent, m.delivered, m.bounced, m.complained, m.opened,
               m.clicked, m.activated
          FROM (SELECT x.loop_id, x.version, x.step, x.branch, e.newest_template_id,
                       count(*) AS sent,
                       count(*) FILTER (WHERE x.state IN ('delivered', 'complained')) AS delivered,
                       count(*) FILTER (WHERE x.state = 'bounced') AS bounced,
                       count(*) FILTER (WHERE x.state = 'complained') AS complained,
                       count(*) FILTER (WHERE w.opened) AS opened,
                       count(*) FILTER (WHERE w.clicked) AS clicked,
                       count(*) FILTER (WHERE e.activated_at >= x.sent_at
                                          AND e.activated_at <= x.sent_at + interval '7 days')
                           AS activated
                  FROM activation.message x
                  JOIN activation.enrollment e USING (enrollment_id)
                  LEFT JOIN (SELECT y.message_id, bool_or(y.type = 'email.opened') AS opened,
                                    bool_or(y.type = 'email.clicked') AS clicked
                               FROM activation.webhook_event y
                              WHERE y.type IN ('email.opened', 'email.clicked')
                              GROUP BY 1) w USING (message_id)
                 WHERE x.state IN ('sent', 'delivered', 'bounced', 'complained')
                 GROUP BY 1, 2, 3, 4, 5) m
          JOIN activation.step s USING (loop_id, version, step)) g
  LEFT JOIN LATERAL (SELECT x.version
                       FROM activation.template x
                      WHERE x.name = g.template AND x.template_id <= g.newest_template_id
                      ORDER BY x.version DESC LIMIT 1) t ON true
 GROUP BY 1, 2
 ORDER BY 1, 2;
COMMENT ON VIEW activation.mail_numbers IS
    'What became of the mails of each template and version of it, as far back as retention keeps '
    'them.';
COMMENT ON COLUMN activation.mail_numbers.template IS
    'The template''s name.';
COMMENT ON COLUMN activation.mail_numbers.version IS
    'Its version. 0: the built-in one.';
COMMENT ON COLUMN activation.mail_numbers.sent IS
    'How many mails of it Resend accepted.';
COMMENT ON COLUMN activation.mail_numbers.delivered IS
    'How many of them were delivered, as far as webhooks have told.';
COMMENT ON COLUMN activation.mail_numbers.bounced IS
    'How many bounced.';
COMMENT ON COLUMN activation.mail_numbers.complained IS
    'How many were marked as spam.';
COMMENT ON COLUMN activation.mail_numbers.opened IS
    'How many were opened, where Resend tracks that.';
COMMENT ON COLUMN activation.mail_numbers.clicked IS
    'In how many a link was clicked, where Resend tracks that.';
COMMENT ON COLUMN activation.mail_numbers.activated_in_7_days IS
    'How many went to people who were activated within 7 days afterwards. It need not be the '
    'mail''s doing.';
COMMENT ON COLUMN activation.mail_numbers.rate IS
    'Their share of the sent, from 0 to 1.';
