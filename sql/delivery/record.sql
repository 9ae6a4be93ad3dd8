-- What came of a request.

-- Ends messages at the claim: captured (nothing leaves in capture mode), or failed because they
-- cannot be rendered or have nowhere to go.
CREATE FUNCTION activation._finish_messages(
    message_ids uuid[], states text[], recipients text[], subjects text[], errors text[]
) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE activation.message m
       SET state = u.state,
           recipient = u.recipient,
           subject = u.subject,
           cause = CASE u.state WHEN 'failed' THEN 'not_rendered' END,
           last_error = u.error,
           finished_at = activation._now()
      FROM unnest(message_ids, states, recipients, subjects, errors)
           AS u(message_id, state, recipient, subject, error)
     WHERE m.message_id = u.message_id
$$;

-- How long to wait before try number n + 1, as the loop's recovery says: fixed or doubling, capped,
-- and spread by a fifth either way so that many who failed together do not come back together.
CREATE FUNCTION activation._backoff(recovery jsonb, n integer) RETURNS interval
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT least((recovery ->> 'max')::interval,
                 (recovery ->> 'initial')::interval
                 * CASE recovery ->> 'backoff' WHEN 'fixed' THEN 1 ELSE 2 ^ least(n - 1, 20) END)
           * (0.8 + 0.4 * random())
$$;

-- Writes down what came of one try of a request. Outcomes:
--   sent        accepted; resend_ids in the order of the members
--   refused     this try was certainly not accepted, and it is nobody's fault (no connection, 429):
--               no try is spent
--   split       a batch refused for its content: back to queued, to be sent in halves
--   terminal    rejected: what it contains would be refused each time; failed
--   erred       answered by an error, perhaps accepted: repeated byte for byte until the tries are
--               spent
--   unanswered  no usable answer, perhaps accepted: repeated byte for byte, no try spent
--   unknowable  the provider says that it has seen this key with another body: never sent again
-- A refusal sends the messages back to the queue, to be made anew under a new key, only if no other
-- try of this request can have been accepted. A refusal by name is an answer about the key: an
-- accepted one would have been told again.
--
-- A worker that has lost its lease (lease_id) records nothing over the one who took over: returns
-- false. Its try is still an attempt, and if it was accepted that is the end of the matter,
-- whatever the other one is still trying.
--
-- Long because request, messages and attempts follow from one decision, which stands in one place.
CREATE FUNCTION activation._record_try(
    request_id uuid, lease_id uuid, outcome text, resend_ids text[], http_status integer,
    error_name text, error text, retry_after double precision,
    started_at timestamptz, finished_at timestamptz
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    now timestamptz := activation._now();
    r activation.request;
    mine boolean;
    retries integer;
    again timestamptz;
    message_state text;
BEGIN
    SELECT * INTO r
      FROM activation.request x
     WHERE x.request_id = _record_try.request_id
       FOR UPDATE;
    IF r.request_id IS NULL THEN
        RETURN false;
    END IF;
    mine := r.state = 'open' AND r.lease_id IS NOT DISTINCT FROM _record_try.lease_id;
    retries := (r.recovery ->> 'retries')::integer;
    r.recorded_tries := r.recorded_tries + 1;
    IF outcome <> 'unanswered' THEN
        r.open_tries := greatest(r.open_tries - 1, 0);
    END IF;
    IF outcome IN ('split', 'terminal') AND error_name IS NULL
       AND r.open_tries + r.error_tries > 0 THEN
        outcome := 'erred';
    END IF;
    IF outcome = 'erred' THEN
        r.error_tries := r.error_tries + 1;
    END IF;

    CASE outcome
        WHEN 'sent' THEN
            message_state := 'sent';
        WHEN 'split' THEN
            message_state := 'queued';
            again := now;
        WHEN 'refused' THEN
            message_state := CASE WHEN r.open_tries + r.error_tries = 0 THEN 'queued'
                                  ELSE 'sending' END;
            again := now + CASE WHEN retry_after IS NOT NULL THEN make_interval(secs => retry_after)
                                ELSE activation._backoff(r.recovery,
                                                         least(r.recorded_tries, 3)) END;
        WHEN 'terminal' THEN
            message_state := 'failed';
        WHEN 'unknowable' THEN
            message_state := 'unknown';
        WHEN 'erred' THEN
            -- Where the tries are spent but one of them may have been accepted, it is not sent
            -- again and ends as unknown.
            message_state := CASE WHEN r.error_tries > retries AND r.open_tries = 0 THEN 'failed'
                                  ELSE 'sending' END;
            again := CASE WHEN r.error_tries <= retries
                          THEN now + activation._backoff(r.recovery, r.error_tries)
                          ELSE 'infinity'::timestamptz END;
        WHEN 'unanswered' THEN
            message_state := 'sending';
            again := now + CASE WHEN retry_after IS NOT NULL THEN make_interval(secs => retry_after)
                                ELSE activation._backoff(r.recovery, r.recorded_tries) END;
    END CASE;

    IF mine OR outcome = 'sent' THEN
        UPDATE activation.request x
           SET recorded_tries = r.recorded_tries,
               error_tries = r.error_tries,
               open_tries = r.open_tries,
               lease_id = NULL,
               lease_until = NULL,
               lease_pid = NULL,
               lease_start = NULL,
               state = CASE message_state WHEN 'sending' THEN 'open' ELSE 'done' END,
               next_try_at = coalesce(again, x.next_try_at)
         WHERE x.request_id = r.request_id;
    ELSE
        UPDATE activation.request x
           SET recorded_tries = r.recorded_tries,
               error_tries = r.error_tries,
               open_tries = r.open_tries
         WHERE x.request_id = r.request_id;
    END IF;
    WITH tried AS (
        UPDATE activation.message m
           SET attempts = m.attempts + 1,
               state = message_state,
               batch_limit = CASE outcome WHEN 'split' THEN (cardinality(r.members) + 1) / 2
                                          ELSE m.batch_limit END,
               next_attempt_at = CASE message_state WHEN 'queued' THEN again
                                                    ELSE m.next_attempt_at END,
               request_id = CASE message_state WHEN 'queued' THEN NULL ELSE r.request_id END,
               sent_at = CASE message_state WHEN 'sent' THEN now END,
               resend_id = resend_ids[array_position(r.members, m.message_id)],
               cause = CASE message_state
                           WHEN 'sent' THEN NULL
                           WHEN 'sending' THEN 'unclear'
                           WHEN 'queued' THEN 'not_accepted'
                           WHEN 'failed' THEN 'rejected'
                           ELSE 'never_known' END,
               last_error = CASE message_state
                            WHEN 'sent' THEN NULL
                            ELSE concat_ws(': ', _record_try.error_name, _record_try.error) END,
               finished_at = CASE WHEN message_state IN ('failed', 'unknown') THEN now END
         WHERE m.message_id = ANY (r.members)
           AND (mine AND m.request_id = r.request_id AND m.state = 'sending'
                OR outcome = 'sent' AND m.state IN ('sending', 'queued', 'failed', 'unknown')
                   AND coalesce(m.request_id, r.request_id) = r.request_id)
        RETURNING m.message_id, m.attempts
    ), late AS (
        UPDATE activation.message m
           SET attempts = m.attempts + 1
         WHERE m.message_id = ANY (r.members)
           AND NOT mine
           AND NOT EXISTS (SELECT FROM tried t WHERE t.message_id = m.message_id)
        RETURNING m.message_id, m.attempts
    )
    INSERT INTO activation.attempt (
        message_id, attempt, request_id, started_at, finished_at,
        outcome, http_status, error_name, error, retry_at)
    SELECT t.message_id, t.attempts, r.request_id, _record_try.started_at, _record_try.finished_at,
           _record_try.outcome, _record_try.http_status, _record_try.error_name, _record_try.error,
           CASE WHEN mine THEN nullif(again, 'infinity') END
      FROM (SELECT * FROM tried UNION ALL SELECT * FROM late) t;
    IF mine AND message_state = 'queued' THEN
        PERFORM activation._count_hourly_sends(array_agg(b.loop_id), array_agg(-b.emails))
           FROM (SELECT m.loop_id, count(*)::integer AS emails
                   FROM activation.message m
                  WHERE m.message_id = ANY (r.members)
                  GROUP BY 1) b;
    END IF;
    RETURN mine;
END
$$;

-- Writes down what a person decided about a message of which nobody could know whether it was sent.
CREATE FUNCTION activation._resolve(id uuid, verdict text, person name) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.attempt (
        message_id, attempt, request_id, started_at, finished_at, outcome, error)
    SELECT m.message_id, m.attempts, m.request_id, activation._now(), activation._now(),
           'resolved', format('%s said %s', person, verdict)
      FROM activation.message m
     WHERE m.message_id = id;
    UPDATE activation.message m
       SET state = CASE verdict WHEN 'sent' THEN 'sent' ELSE 'queued' END,
           sent_at = CASE verdict WHEN 'sent' THEN activation._now() END,
           request_id = CASE verdict WHEN 'sent' THEN m.request_id END,
           next_attempt_at = activation._now(),
           finished_at = NULL,
           cause = NULL,
           last_error = NULL
     WHERE m.message_id = id
$$;
