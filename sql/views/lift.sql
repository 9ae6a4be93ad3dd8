-- What a loop changed: the difference between those who were mailed and those who were held out,
-- and how many people it takes to see it.

-- Both tails of the standard normal distribution beyond z: erfc(|z| / sqrt(2)) by formula 7.1.26 of
-- Abramowitz and Stegun, Handbook of Mathematical Functions, whose error is under 1.5e-7.
CREATE FUNCTION activation._two_tails(z double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (SELECT t * (0.254829592
                    + t * (-0.284496736
                           + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
               * exp(-least(z * z / 2, 700))
          FROM (SELECT 1 / (1 + 0.3275911 * abs(z) / sqrt(2::double precision)) AS t) x);

-- One bound of Wilson's interval at 95 % for a proportion; side is -1 for the lower and 1 for the
-- upper one.
CREATE FUNCTION activation._wilson(acted bigint, people bigint, side integer)
RETURNS double precision
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (SELECT (2 * acted + z * z
                + side * z * sqrt(z * z + 4 * acted * (1 - acted::double precision / people)))
               / (2 * (people + z * z))
          FROM (SELECT 1.959963984540054::double precision AS z) x
         WHERE people > 0);

-- A share for people to read: 0.125 as 12.5 %.
CREATE FUNCTION activation._percent(share double precision) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT trim_scale(round(share::numeric * 100, 1)) || ' %' $$;

CREATE VIEW activation.lift AS
WITH side AS (
    -- Only versions with today's share: people of versions with another one came at another time as
    -- well.
    SELECT e.loop_id, count(*) FILTER (WHERE NOT e.holdout) AS treated,
           count(*) FILTER (WHERE NOT e.holdout AND a.in_time) AS treated_activated,
           count(*) FILTER (WHERE e.holdout) AS holdout,
           count(*) FILTER (WHERE e.holdout AND a.in_time) AS holdout_activated
      FROM activation.enrollment e
      JOIN (SELECT x.*, activation._now() - x.span AS mature_since
              FROM activation._span x) s USING (loop_id, version)
      JOIN activation.loop_version v USING (loop_id, version)
      JOIN activation."loop" l USING (loop_id)
      JOIN activation.loop_version today
        ON today.loop_id = l.loop_id AND today.version = l.version AND today.holdout = v.holdout
      CROSS JOIN LATERAL (SELECT coalesce(e.activated_at - e.enrolled_at <= s.span, false)
                                     AS in_time) a
     WHERE e.pass = 1 AND v.holdout > 0 AND e.enrolled_at <= s.mature_since
     GROUP BY 1
), rate AS (
    SELECT l.name AS loop, l.loop_id, v.holdout AS share, v.goal_step, p.span,
           coalesce(x.treated, 0) AS treated,
           coalesce(x.treated_activated, 0) AS treated_activated,
           x.treated_activated / nullif(x.treated, 0)::double precision AS treated_rate,
           coalesce(x.holdout, 0) AS holdout,
           coalesce(x.holdout_activated, 0) AS holdout_activated,
           x.holdout_activated / nullif(x.holdout, 0)::double precision AS holdout_rate,
           (x.treated_activated + x.holdout_activated)
               / nullif(x.treated + x.holdout, 0)::double precision AS pooled
      FROM activation."loop" l
      JOIN activation.loop_version v USING (loop_id, version)
      JOIN activation._span p USING (loop_id, version)
      LEFT JOIN side x USING (loop_id)
     WHERE l.state <> 'archived' OR x.loop_id IS NOT NULL
), bound AS (
    SELECT r.*, r.treated_rate - r.holdout_rate AS difference,
           r.treated_rate - r.holdout_rate
             - sqrt((r.treated_rate - activation._wilson(r.treated_activated, r.treated, -1)) ^ 2
                    + (activation._wilson(r.holdout_activated, r.holdout, 1) - r.holdout_rate) ^ 2)
               AS low,
           r.treated_rate - r.holdout_rate
             + sqrt((activation._wilson(r.treated_activated, r.treated, 1) - r.treated_rate) ^ 2
                    + (r.holdout_rate - activation._wilson(r.holdout_activated, r.holdout, -1)) ^ 2)
               AS high,
           activation._two_tails(
               (r.treated_rate - r.holdout_rate)
               / nullif(sqrt(r.pooled * (1 - r.pooled)
                             * (1 / nullif(r.treated, 0)::double precision
                                + 1 / nullif(r.holdout, 0)::double precision)), 0)) AS p
      FROM rate r
)
SELECT b.loop, b.share, b.treated, b.treated_activated,
       round(b.treated_rate::numeric, 4) AS treated_rate,
       b.holdout, b.holdout_activated, round(b.holdout_rate::numeric, 4) AS holdout_rate,
       round(b.difference::numeric, 4) AS difference, round(b.low::numeric, 4) AS low,
       round(b.high::numeric, 4) AS high, round(b.p::numeric, 6) AS p,
       CASE WHEN b.goal_step IS NULL THEN
                'no lift: the loop has neither a goal nor a condition that says who is activated'
            WHEN b.share = 0 THEN 'no lift: nobody is held out; define it with holdout => 0.5'
            WHEN b.treated + b.holdout = 0 THEN
                format('no lift yet: nobody has been in it for %s, which is how long it gives them',
                       b.span)
            WHEN b.treated = 0 OR b.holdout = 0 THEN
                format('no lift yet: of %s mature people %s are held out',
                       b.treated + b.holdout, b.holdout)
            WHEN b.low > 0 OR b.high < 0 THEN
                format('those who were written to act %s often: %s against %s, '
                       'a difference of %s points (95 %% interval %s to %s)',
                       CASE WHEN b.low > 0 THEN 'more' ELSE 'less' END,
                       activation._percent(b.treated_rate), activation._percent(b.holdout_rate),
                       round(b.difference::numeric * 100, 1),
                       round(b.low::numeric * 100, 1), round(b.high::numeric * 100, 1))
            ELSE format('no difference can be seen yet: %s against %s; the truth lies between '
                        '%s and %s points (95 %% interval), see activation.power(%L)',
                        activation._percent(b.treated_rate), activation._percent(b.holdout_rate),
                        round(b.low::numeric * 100, 1), round(b.high::numeric * 100, 1), b.loop)
       END AS summary
  FROM bound b
 ORDER BY b.loop;
COMMENT ON VIEW activation.lift IS
    'What writing to people changes: activation of those assigned to be written to against those '
    'held out, whatever became of the mails (intention to treat), mature people only, of all '
    'versions with today''s holdout.';
COMMENT ON COLUMN activation.lift.loop IS
    'The loop''s name.';
COMMENT ON COLUMN activation.lift.share IS
    'The share of users who are held out, from 0 to 1.';
COMMENT ON COLUMN activation.lift.treated IS
    'How many mature people were assigned to be written to.';
COMMENT ON COLUMN activation.lift.treated_activated IS
    'How many of them were activated in time.';
COMMENT ON COLUMN activation.lift.treated_rate IS
    'Their share, from 0 to 1.';
COMMENT ON COLUMN activation.lift.holdout IS
    'How many mature people were held out.';
COMMENT ON COLUMN activation.lift.holdout_activated IS
    'How many of them were activated in time.';
COMMENT ON COLUMN activation.lift.holdout_rate IS
    'Their share, from 0 to 1.';
COMMENT ON COLUMN activation.lift.difference IS
    'treated_rate less holdout_rate. 0.05 is five points.';
COMMENT ON COLUMN activation.lift.low IS
    'The lower end of its 95 % interval (Newcombe 1998, method 10).';
COMMENT ON COLUMN activation.lift.high IS
    'The upper end.';
COMMENT ON COLUMN activation.lift.p IS
    'Two-sided, of the z test of two proportions with pooled variance. NULL where everybody or '
    'nobody acted.';
COMMENT ON COLUMN activation.lift.summary IS
    'The same in one sentence, or why there is nothing to say yet.';

-- Long because each figure rests on those before it, and some of them may refuse.
CREATE FUNCTION activation.power(loop text)
RETURNS TABLE (
    holdout numeric, people_a_month numeric, base_rate numeric, in_3_months numeric,
    in_12_months numeric, months_for_5_points numeric, people_for_5_points bigint, known_by date,
    summary text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    -- What a two-sided test at 5 % needs to find it in four of five cases: (1.960 + 0.842) squared.
    needed_z CONSTANT double precision := (1.959963984540054 + 0.8416212335729143) ^ 2;
    now timestamptz := activation._now();
    l activation."loop";
    v activation.loop_version;
    volume record;
    months double precision;
    horizon double precision;
    p double precision;
    k double precision;
    b double precision;
    a double precision;
    detectable double precision[];
    higher double precision;
BEGIN
    SELECT x.* INTO l FROM activation."loop" x WHERE x.name = power.loop;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'loop "%" does not exist', power.loop
            USING ERRCODE = '42704', HINT = 'SELECT component FROM activation.status lists them.';
    END IF;
    SELECT x.* INTO v
      FROM activation.loop_version x
     WHERE x.loop_id = l.loop_id AND x.version = l.version;
    IF v.goal_step IS NULL THEN
        RAISE EXCEPTION 'loop "%" has neither a goal nor a condition', power.loop
            USING ERRCODE = '55000', DETAIL = 'Nothing says who is activated.',
                  HINT = 'Define it with goal => activation.query(…).';
    END IF;
    SELECT count(*) AS people, min(e.enrolled_at) AS since INTO volume
      FROM activation.enrollment e
     WHERE e.loop_id = l.loop_id AND e.pass = 1 AND e.enrolled_at > now - interval '90 days';
    IF volume.people = 0 THEN
        RAISE EXCEPTION 'loop "%" has enrolled nobody in the last 90 days', power.loop
            USING ERRCODE = '55000',
                  DETAIL = 'What a test can show depends on how many people come.',
                  HINT = format('Run it first, or rehearse it: SELECT * FROM activation.simulate('
                                '%L, since => now() - interval ''90 days'')', power.loop);
    END IF;
    -- Of at least a day, so that the first hour of a loop is not taken for its volume.
    months := greatest(extract(epoch FROM now - volume.since) / 86400, 1) / 30.4375;
    people_a_month := round((volume.people / months)::numeric, 1);
    SELECT coalesce(f.holdout_rate, c.rate) INTO base_rate
      FROM (SELECT sum(x.activated) / nullif(sum(x.mature), 0) AS rate
              FROM activation.cohort x
             WHERE x.loop = power.loop) c
      LEFT JOIN activation.lift f ON f.loop = power.loop;
    IF base_rate IS NULL THEN
        RAISE EXCEPTION 'nobody in loop "%" is mature yet', power.loop
            USING ERRCODE = '55000',
                  DETAIL = format('It gives people %s to act.',
                                  (SELECT s.span
                                     FROM activation._span s
                                    WHERE s.loop_id = l.loop_id AND s.version = l.version)),
                  HINT = 'Ask again then.';
    END IF;
    base_rate := round(base_rate, 4);
    p := base_rate;
    -- Five points more, or five less where there is no more room.
    higher := CASE WHEN p <= 0.95 THEN p + 0.05 ELSE p - 0.05 END;
    FOREACH holdout IN ARRAY ARRAY(
        SELECT DISTINCT h
          FROM unnest(ARRAY[CASE WHEN v.holdout > 0 THEN v.holdout ELSE 0.1 END, 0.5]) AS h
         ORDER BY h)
    LOOP
        -- Unpooled variances, sides of different size; Fleiss, Statistical Methods for Rates and
        -- Proportions, chapter 4.
        people_for_5_points := ceil(
            needed_z * (p * (1 - p) / holdout + higher * (1 - higher) / (1 - holdout)) / 0.05 ^ 2);
        months_for_5_points := round(ceil(people_for_5_points / people_a_month * 10) / 10, 1);
        known_by := (
            now
            + make_interval(days => least(ceil(greatest(
                  people_for_5_points
                  - CASE WHEN v.holdout = holdout
                         THEN (SELECT count(*)
                                 FROM activation.enrollment e
                                 JOIN activation.loop_version x USING (loop_id, version)
                                WHERE e.loop_id = l.loop_id AND e.pass = 1
                                  AND x.holdout = v.holdout)
                         ELSE 0 END, 0)
                  / people_a_month * 30.4375), 36500)::integer)
            + (SELECT s.span
                 FROM activation._span s
                WHERE s.loop_id = l.loop_id AND s.version = l.version))::date;
        detectable := '{}';
        FOREACH horizon IN ARRAY ARRAY[3, 12] LOOP
            -- The same formula, solved for the difference d:
            -- (k + b) d² - b (1 - 2 p) d - (p (1 - p) / holdout + b p (1 - p)) = 0.
            k := people_a_month * horizon / needed_z;
            b := 1 / (1 - holdout);
            a := p * (1 - p) / holdout + b * p * (1 - p);
            detectable := detectable
                || (b * (1 - 2 * p) + sqrt((b * (1 - 2 * p)) ^ 2 + 4 * (k + b) * a))
                   / (2 * (k + b));
        END LOOP;
        in_3_months := round(detectable[1]::numeric, 4);
        in_12_months := round(detectable[2]::numeric, 4);
        summary := format(
            'at %s signups a month a %s holdout needs %s to see 5 points (%s against %s)%s',
            trim_scale(round(people_a_month)), activation._percent(holdout),
            CASE WHEN months_for_5_points < 1 THEN 'less than a month'
                 ELSE round(months_for_5_points)
                      || CASE WHEN round(months_for_5_points) = 1 THEN ' month' ELSE ' months' END
            END,
            activation._percent(p), activation._percent(higher),
            CASE WHEN holdout < 0.5 THEN ': use 50/50' ELSE '' END);
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION activation.power(text) IS
'What difference a loop''s volume can show: a row for its holdout (10 % where it has none) and one
for half and half.
loop: the loop''s name.
Returns one or two rows.
holdout: the share of users who are held out.
people_a_month: how many are enrolled in a month, by the last 90 days.
base_rate: the share that is activated without mail: of those held out, else of all who are
  mature.
in_3_months: the difference in activation that 3 months of people show with 80 % power, two-sided
at 5 %. 0.05 is five points.
in_12_months: the same for 12 months.
months_for_5_points: how many months a difference of five points takes, in all.
people_for_5_points: how many people it takes, in all.
known_by: when it can be known.
summary: the same in one sentence.
Raises 42704 for an unknown loop, 55000 for one without a goal, or where nobody, or nobody mature,
  is in it.';
