-- What the provider allows, and what its answers teach. A permit is the right to make one request.
-- Shared by all deliverers.

-- How many requests may be made in a second: what the provider names or configure() set, the lower
-- of both; NULL without a limit. Before the first answer, one at most, whatever configure() set.
CREATE FUNCTION activation._rate() RETURNS numeric
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p activation.provider;
BEGIN
    SELECT * INTO p FROM activation.provider;
    RETURN CASE WHEN p.answers > 0 THEN least((activation._setting()).rate, p.learnt_rate)
                ELSE least((activation._setting()).rate, 1) END;
END
$$;

-- How long after a request the next one with the same permit may leave: a second where the rate is
-- a whole number, otherwise what keeps that rate with so many permits; and 20 ms more, because
-- latency varies.
CREATE FUNCTION activation._permit_period() RETURNS interval
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT make_interval(secs => coalesce(greatest(floor(r), 1) / r, 1))
           + interval '20 milliseconds'
      FROM activation._rate() r
$$;

-- Locks up to `wanted` permits that are free now or within `ahead`: n, and the time before which
-- the request must not leave. They are taken by _take_permits() in the same transaction, or stay as
-- they are. Without a known rate there is no limit (n is 0), but until the first answer has come,
-- one request at a time. A permit whose holder is gone is free a second later: its request may have
-- been sent up to the last moment.
CREATE FUNCTION activation._lock_permits(wanted integer, ahead interval)
RETURNS TABLE (n integer, free_at timestamptz)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    now timestamptz := clock_timestamp();
    allowed numeric := activation._rate();
    size integer;
BEGIN
    IF allowed IS NULL THEN
        RETURN QUERY SELECT 0, now FROM generate_series(1, wanted);
        RETURN;
    END IF;
    size := greatest(floor(allowed), 1);
    IF (SELECT count(*) FROM activation.rate_permit t) <> size THEN
        INSERT INTO activation.rate_permit (n, free_at)
        SELECT g, now FROM generate_series(1, size) g
        ON CONFLICT DO NOTHING;
        DELETE FROM activation.rate_permit t WHERE t.n > size;
    END IF;
    UPDATE activation.rate_permit t
       SET free_at = now + interval '1 second', holder_pid = NULL, holder_start = NULL
     WHERE t.holder_pid IS NOT NULL
       AND NOT activation._is_alive(t.holder_pid, t.holder_start);
    RETURN QUERY
    SELECT t.n, t.free_at
      FROM activation.rate_permit t
     WHERE t.free_at <= now + ahead
     ORDER BY t.free_at
     LIMIT wanted
       FOR UPDATE SKIP LOCKED;
END
$$;

-- Takes permits for this session. They are held until they are given back, for as long as `lease`
-- at most. If their holder is gone, see _lock_permits().
CREATE FUNCTION activation._take_permits(permits integer[], lease interval) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.rate_permit t
       SET free_at = clock_timestamp() + lease,
           holder_pid = pg_backend_pid(),
           holder_start = activation._backend_start(pg_backend_pid())
     WHERE t.n = ANY (permits)
$$;

-- Whether the provider always takes its time, so that a permit that waits for the answer comes back
-- too late.
CREATE FUNCTION activation._slow_provider() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM activation.provider p
                    WHERE p.min_rtt > 0.5
                      AND p.answers >= 10
                      AND coalesce(p.cautious_until < clock_timestamp(), true))
$$;

-- Gives a permit back after its request was answered, or, with finished_at NULL, when it has left,
-- and says when it is free, so that no second of the provider's sees one request too many.
--
-- A provider counts a request when it arrives, and most of a round trip is what it does afterwards:
-- a second after this request left, the next one may leave. A 429 shows that this does not hold for
-- every provider. Then a request counts as having arrived at the last moment possible, the shortest
-- way back before its answer came, and the next one as arriving the shortest way there after it
-- leaves. Together that is the shortest round trip. Half of it is believed: a shorter one may still
-- come. Among the first ten answers there may have been no short one, so it is taken to be up to
-- 100 ms shorter. Of the 20 ms that a period has more than a second (_permit_period()) 18 are not
-- waited for then: the moments counted are the worst possible.
CREATE FUNCTION activation._free_permit(
    permit integer, left_at timestamptz, finished_at timestamptz
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p activation.provider;
    period interval := activation._permit_period();
    believed double precision;
BEGIN
    SELECT * INTO p FROM activation.provider;
    -- Half of the shortest round trip, see above.
    believed := greatest(
        coalesce(least(extract(epoch FROM finished_at - left_at), p.min_rtt), 0)
            - 0.01 * (10 - p.answers),
        0) / 2;
    UPDATE activation.rate_permit t
       SET holder_pid = NULL,
           holder_start = NULL,
           free_at = CASE WHEN finished_at IS NOT NULL AND p.cautious_until > clock_timestamp()
                          THEN finished_at + greatest(
                                   period - interval '18 milliseconds'
                                   - make_interval(secs => believed),
                                   interval '0')
                          ELSE left_at + period END
     WHERE t.n = permit;
END
$$;

-- Learns from an answer about the provider: the rate it names, the shortest round trip, and whether
-- to pause, for how long. too_many: the provider counted more requests than it allows, so permits
-- return more carefully for an hour. A latency that has grown is noticed, but slowly (by a quarter
-- and 10 ms each 10 seconds): a network that held everything up for a moment has not become slower.
-- A pause without an end ends with resume(), with a change of the settings it came from, or when
-- the key is another (key_fingerprint tells keys apart and is no key).
CREATE FUNCTION activation._learn_from_answer(
    rate numeric, rtt double precision, pause_reason text, pause_until timestamptz,
    key_fingerprint text, too_many boolean
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    window_start timestamptz := date_bin('10 seconds', clock_timestamp(), 'epoch');
BEGIN
    INSERT INTO activation.provider AS p (
        paused_until, pause_reason, paused_key,
        learnt_rate, min_rtt, window_min_rtt,
        rtt_since,
        cautious_until,
        answers)
    VALUES (
        _learn_from_answer.pause_until, _learn_from_answer.pause_reason,
        CASE WHEN pause_until IS NOT NULL THEN key_fingerprint END,
        _learn_from_answer.rate, _learn_from_answer.rtt, _learn_from_answer.rtt,
        CASE WHEN _learn_from_answer.rtt IS NOT NULL THEN window_start END,
        CASE WHEN too_many THEN clock_timestamp() + interval '1 hour' END,
        (_learn_from_answer.rtt IS NOT NULL)::integer)
    ON CONFLICT (singleton) DO UPDATE
       SET (paused_until, pause_reason, paused_key) = (
               SELECT x.until, x.reason, x.key
                 FROM (VALUES (excluded.paused_until, excluded.pause_reason, excluded.paused_key),
                              (p.paused_until, p.pause_reason, p.paused_key)
                      ) AS x(until, reason, key)
                ORDER BY x.until DESC NULLS LAST
                LIMIT 1),
           learnt_rate = coalesce(excluded.learnt_rate, p.learnt_rate),
           min_rtt = CASE WHEN p.rtt_since = window_start OR excluded.min_rtt IS NULL
                          THEN least(excluded.min_rtt, p.min_rtt)
                          ELSE least(excluded.min_rtt, p.window_min_rtt,
                                     p.min_rtt * 1.25 + 0.01) END,
           window_min_rtt = CASE WHEN p.rtt_since = window_start OR excluded.min_rtt IS NULL
                                 THEN least(excluded.min_rtt, p.window_min_rtt)
                                 ELSE excluded.min_rtt END,
           rtt_since = coalesce(excluded.rtt_since, p.rtt_since),
           cautious_until = coalesce(excluded.cautious_until, p.cautious_until),
           answers = least(p.answers + excluded.answers, 10)
     WHERE p.answers < 10
        OR excluded.pause_reason IS NOT NULL
        OR excluded.learnt_rate IS DISTINCT FROM coalesce(p.learnt_rate, excluded.learnt_rate)
        OR (p.learnt_rate IS NULL AND excluded.learnt_rate IS NOT NULL)
        OR excluded.min_rtt < p.window_min_rtt
        OR p.min_rtt IS NULL
        OR p.rtt_since IS DISTINCT FROM excluded.rtt_since;
END
$$;

-- Ends a pause that came from another key than the present one.
CREATE FUNCTION activation._end_pause() RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ UPDATE activation.provider SET paused_until = NULL, pause_reason = NULL, paused_key = NULL $$;
