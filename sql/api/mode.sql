-- Whether mail may leave.

-- Long because it refuses in order all that makes a mode wrong here, before it changes anything.
CREATE FUNCTION activation.set_mode(
    mode text, redirect_to text DEFAULT NULL, hosts text[] DEFAULT NULL, backlog text DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    host text := activation._host_name();
    s activation.setting := activation._setting();
    here activation.identity := activation._this_server(host);
    was_armed boolean := s.mode <> 'capture' AND activation._disarmed(host) IS NULL;
    waiting bigint;
    midway bigint;
BEGIN
    IF mode IS NULL OR mode NOT IN ('capture', 'redirect', 'live') THEN
        RAISE EXCEPTION 'unknown mode "%"', mode
            USING ERRCODE = '22023', HINT = 'It is one of capture, redirect, live.';
    END IF;
    IF backlog IS NOT NULL AND backlog NOT IN ('send', 'cancel') THEN
        RAISE EXCEPTION 'unknown backlog "%"', backlog
            USING ERRCODE = '22023', HINT = 'It is one of send, cancel.';
    END IF;
    IF (mode = 'redirect') <> (redirect_to IS NOT NULL) THEN
        RAISE EXCEPTION '%', CASE WHEN mode = 'redirect' THEN 'mode redirect needs an address'
                                  ELSE 'redirect_to goes with mode redirect only' END
            USING ERRCODE = '22023',
                  HINT = 'SELECT activation.set_mode(''redirect'', '
                         'redirect_to => ''you@acme.dev'');';
    END IF;
    IF redirect_to !~ '^[^@\s<>]+@[^@\s<>]+$' THEN
        RAISE EXCEPTION 'redirect_to "%" is not an address', redirect_to
            USING ERRCODE = '22023', HINT = 'Write ''you@acme.dev''.';
    END IF;
    IF hosts IS NOT NULL AND mode <> 'capture'
       AND NOT EXISTS (SELECT FROM unnest(hosts) AS h(pattern)
                        WHERE format('%s:%s', here.host, here.port) LIKE h.pattern) THEN
        RAISE EXCEPTION 'hosts matches nothing here: this server is %:%', here.host, here.port
            USING ERRCODE = '22023',
                  HINT = 'Patterns are those of LIKE over host:port, '
                         'such as ''db%.acme.dev:5432''.';
    END IF;
    IF mode = 'live' THEN
        PERFORM activation._check_leavable(s.public_url);
    END IF;
    PERFORM activation._lock('mode');

    IF mode <> 'capture' AND NOT was_armed THEN
        SELECT (SELECT count(*) FROM activation.message m WHERE m.state IN ('queued', 'sending'))
          INTO waiting;
        IF waiting > 0 AND backlog IS NULL THEN
            RAISE EXCEPTION '% messages wait from before', waiting
                USING ERRCODE = '55000',
                      HINT = format('Say what to do with them: SELECT activation.set_mode(%L, …, '
                                    'backlog => ''send''); or backlog => ''cancel''.', mode);
        END IF;
        IF waiting > 0 AND backlog = 'cancel' THEN
            UPDATE activation.message m
               SET state = CASE m.state WHEN 'queued' THEN 'cancelled' ELSE 'unknown' END,
                   finished_at = activation._now(),
                   cause = CASE m.state WHEN 'queued' THEN 'cancelled_by_mode' ELSE 'given_up' END
             WHERE m.state IN ('queued', 'sending');
            UPDATE activation.request r SET state = 'done', lease_id = NULL WHERE r.state = 'open';
        ELSIF waiting > 0 THEN
            -- Requests made in another mode are not repeated in this one.
            UPDATE activation.request r SET mode = set_mode.mode WHERE r.state = 'open';
        END IF;
        SELECT count(*) INTO midway FROM activation.enrollment e WHERE e.state = 'waiting';
        IF midway > 0 THEN
            RAISE NOTICE '% people are in the middle of a loop and may now be mailed', midway
                USING HINT = 'activation.journey shows them; '
                             'activation.archive_loop(name) lets them out.';
        END IF;
    END IF;

    INSERT INTO activation.setting (singleton) VALUES (true) ON CONFLICT DO NOTHING;
    UPDATE activation.setting x
       SET mode = set_mode.mode, redirect_to = set_mode.redirect_to,
           hosts = CASE WHEN set_mode.mode = 'capture' THEN x.hosts ELSE set_mode.hosts END;
    DELETE FROM activation.identity;
    IF mode <> 'capture' THEN
        INSERT INTO activation.identity SELECT (here).*;
    END IF;
END
$$;
COMMENT ON FUNCTION activation.set_mode(text, text, text[], text) IS
'Says where mail goes. Mail leaves only on the server that this was called on: a copy of the
database is disarmed.
mode: capture (nothing leaves, messages end as captured, as before the first call), redirect (all
  mail goes to redirect_to) or live.
redirect_to: the address for mode redirect.
hosts: LIKE patterns over host:port in place of the exact host, port and data directory, for
  standbys and containers.
backlog: what becomes of messages that wait from before: send or cancel. Needed where there are
  any.
Raises 22023 for a word, address or pattern that is none, 55000 where messages wait and backlog is
  not given, or where people could not unsubscribe.';

CREATE FUNCTION activation.resume() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE activation.provider p
       SET paused_until = NULL, pause_reason = NULL, paused_key = NULL
     WHERE p.paused_until > activation._now();
    IF NOT FOUND THEN
        RAISE NOTICE 'the provider was not paused';
    END IF;
END
$$;
COMMENT ON FUNCTION activation.resume() IS
'Ends a pause of the provider (a refused key, an unverified domain, a spent quota), after its cause
was mended.';
