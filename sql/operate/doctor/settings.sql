-- Checks of doctor(): what was configured.

-- Whether mail goes where the mode says. Never proposes to go live: on a copy of production that
-- would mail real users.
CREATE FUNCTION activation._doctor_mode() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    host text := activation._host_name();
    disarmed text := activation._disarmed(host);
    s activation.setting := activation._setting();
    primary_server activation.identity;
BEGIN
    IF disarmed IS NULL THEN
        RETURN NEXT activation._finding(
            'ok',
            CASE s.mode WHEN 'capture' THEN 'capture: nothing leaves this server'
                        WHEN 'redirect' THEN format('redirect: all mail goes to %s', s.redirect_to)
                        ELSE 'live: mail goes to users' END,
            NULL);
    ELSIF pg_is_in_recovery() THEN
        SELECT * INTO primary_server FROM activation.identity;
        RETURN NEXT activation._finding(
            'warning',
            format('once promoted, this standby would send nothing: %s', disarmed),
            format('SELECT activation.set_mode(%L%s, hosts => ARRAY[%L, %L]);  -- on the primary',
                   s.mode, ', redirect_to => ' || quote_literal(s.redirect_to),
                   format('%s:%s', primary_server.host, primary_server.port),
                   format('%s:%s', host, current_setting('port'))));
    ELSE
        RETURN NEXT activation._finding(
            'problem',
            format('disarmed, nothing is sent: %s. The cure is for a copy; if it is this server '
                   'that is to send, set its mode again', disarmed),
            'SELECT activation.set_mode(''capture'');');
    END IF;
END
$$;

-- Whether what a reference names can be read on this server, and used, and what to do if not.
CREATE FUNCTION activation._doctor_secret(setting text, reference text, usual text)
RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    place text := substr(reference, position(':' IN reference) + 1);
    value text := activation._secret(CASE WHEN reference LIKE 'secret:%' THEN place END);
    is_webhook boolean := setting = 'webhook_secret';
    problem text := CASE WHEN is_webhook THEN activation._webhook_secret_problem(reference, value)
                         ELSE activation._key_problem(reference, value) END;
    -- What would be wrong with the usual place: nothing, where the secret is there already.
    usual_problem text := CASE
        WHEN is_webhook THEN activation._webhook_secret_problem('env:' || usual, NULL)
        ELSE activation._key_problem('env:' || usual, NULL) END;
BEGIN
    IF problem IS NULL THEN
        RETURN;
    END IF;
    RETURN NEXT activation._finding('problem', problem, CASE
        WHEN usual_problem IS NULL
        THEN format('SELECT activation.configure(%s => %L);', setting, 'env:' || usual)
        WHEN reference LIKE 'secret:%'
        THEN format('SELECT activation.set_secret(%L, ''…'');  '
                    '-- with logging off, as docs/operations.md shows', place)
        WHEN reference LIKE 'file:%'
        THEN format('-- put it into %s, where the server''s user can read it', place)
        ELSE format('-- set %s in the server''s environment '
                    '(Debian: /etc/postgresql/%s/main/environment) and restart it',
                    coalesce(place, usual),
                    current_setting('server_version_num')::integer / 10000) END);
END
$$;

-- Whether Resend's API key can be read and used, where mail is to leave.
CREATE FUNCTION activation._doctor_key() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.*
      FROM activation._setting() s,
           activation._doctor_secret('api_key', s.api_key, 'RESEND_API_KEY') f
     WHERE s.mode <> 'capture'
$$;

-- Whether somebody calls pull_webhooks() by other means than start().
CREATE FUNCTION activation._pulled_lately() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT p.pulled_at > activation._now() - interval '1 day' FROM activation.pull p $$;

-- Whether bounces and complaints are heard of: by webhooks with a secret that can be used, or by a
-- pull.
CREATE FUNCTION activation._doctor_webhooks() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.*
      FROM activation._setting() s,
           unnest(string_to_array(s.webhook_secret, ' ')) AS w(reference),
           activation._doctor_secret('webhook_secret', w.reference, 'RESEND_WEBHOOK_SECRET') f
    UNION ALL
    SELECT CASE s.mode WHEN 'live' THEN 'warning' ELSE 'ok' END,
           'neither webhooks nor a pull are set up: bounces and complaints are not heard of, '
           'and such people are mailed again',
           CASE WHEN s.mode <> 'live' THEN NULL
                WHEN NOT activation._has_cron()
                THEN 'CALL activation.pull_webhooks();  -- every minute, by what calls tick(); '
                     'or configure(webhook_secret => …), see docs/consent.md'
                ELSE activation._start_call(greatest(c.detectors, 1), greatest(c.deliverers, 1),
                                            true)
                     || '  -- or configure(webhook_secret => …), see docs/consent.md' END
      FROM activation._setting() s LEFT JOIN activation.schedule c ON true
     WHERE s.webhook_secret IS NULL AND NOT coalesce(c.pull, false)
       AND activation._pulled_lately() IS NOT TRUE
$$;

-- Loops that mail goes out for, in the versions that new people get.
CREATE FUNCTION activation._doctor_mails()
RETURNS TABLE (loop text, transactional boolean, sender text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.name, v.transactional,
           coalesce(e.email ->> 'sender', (activation._setting()).sender)
      FROM activation."loop" l
      JOIN activation.loop_version v USING (loop_id, version)
      JOIN activation.step s USING (loop_id, version)
      CROSS JOIN LATERAL (VALUES (s.action), (s.otherwise)) AS e(email)
     WHERE l.state <> 'archived' AND e.email IS NOT NULL
       AND (activation._setting()).mode <> 'capture'
$$;

-- Whether each loop's mail has a sender, of a domain that can be verified at Resend.
CREATE FUNCTION activation._doctor_sender() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT DISTINCT 'problem', 'there is no sender: messages wait',
           'SELECT activation.configure(sender => ''…'');  '
           '-- yours, such as Acme <hello@acme.dev>'
      FROM activation._doctor_mails() m
     WHERE m.sender IS NULL
    UNION ALL
    SELECT DISTINCT 'problem',
           format('mail from %s: that domain cannot be verified as yours at Resend%s', d.domain,
                  CASE d.domain
                      WHEN 'resend.dev' THEN ', which delivers from it to your own address only'
                      ELSE '' END),
           'SELECT activation.configure(sender => ''…'');  '
           '-- of a domain that you have verified at Resend'
      FROM activation._doctor_mails() m,
           lower(substring(m.sender FROM '@([^@>\s]+)>?$')) AS d(domain)
     WHERE d.domain ~ '^(resend\.dev|gmail\.com|googlemail\.com|outlook\.com|hotmail\.com'
                      '|yahoo\.com|icloud\.com|localhost'
                      '|(.*\.)?(example\.(com|net|org)|test|example|invalid|local))$'
$$;

-- Whether the pages that mails link to could be opened from outside. Only the form of the address
-- is looked at: nothing is called.
CREATE FUNCTION activation._doctor_public_url() RETURNS SETOF activation.finding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s activation.setting := activation._setting();
    host text := lower(substring(s.public_url
                                 FROM '^https?://(?:[^/@]*@)?(\[[^]]*\]|[^/:]+)'));
    proposed text := coalesce(
        'SELECT activation.configure(public_url => ''https://'
        || substring(s.sender FROM '@([^@>\s]+)>?$')
        || '/activation'');  -- where your app serves its pages',
        'SELECT activation.configure(public_url => ''…'');  -- where your app serves its pages');
BEGIN
    IF s.mode <> 'live' THEN
        RETURN;
    ELSIF s.public_url IS NULL THEN
        RETURN QUERY
        SELECT 'problem',
               format('nobody could unsubscribe from mail of %s',
                      string_agg(DISTINCT quote_ident(m.loop), ', ')),
               proposed
          FROM activation._doctor_mails() m
         WHERE NOT m.transactional
        HAVING count(*) > 0;
    ELSIF host ~ '^(localhost|127\.|10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.|169\.254\.|0\.|\['
                 '|[^.]+$|.*\.(localhost|local|internal|lan|test|example|invalid)$)' THEN
        RETURN NEXT activation._finding(
            'problem',
            format('%s is no address that people outside can open: links in their mail lead '
                   'nowhere', s.public_url),
            proposed);
    ELSIF s.public_url LIKE 'http:%' THEN
        RETURN NEXT activation._finding(
            'warning',
            format('%s is not https: mail programs do not offer to unsubscribe with one click',
                   s.public_url),
            format('SELECT activation.configure(public_url => %L);',
                   'https' || substr(s.public_url, 5)));
    END IF;
END
$$;

-- Whether users tables still have the columns that were named for the address and the time zone: a
-- column that is renamed is followed only where it is the key.
CREATE FUNCTION activation._doctor_users() RETURNS SETOF activation.finding
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT 'problem',
           format('%s has no column %I, which is to hold the %s',
                  activation._table_name(u.users), c.attname,
                  CASE c.what WHEN 'email' THEN 'address: every mail to its people fails'
                              ELSE 'time zone' END),
           format('SELECT activation.set_users(%L, %s => %L);',
                  activation._table_name(u.users), c.what,
                  coalesce((SELECT a.attname
                              FROM pg_attribute a
                             WHERE a.attrelid = u.users AND a.attnum > 0 AND NOT a.attisdropped
                               AND a.attname ~* CASE c.what WHEN 'email' THEN 'mail'
                                                            ELSE 'time_?zone|^tz$' END
                             ORDER BY a.attnum LIMIT 1), '…'))
      FROM activation.users_table u
      JOIN pg_class t ON t.oid = u.users
      CROSS JOIN LATERAL (VALUES ('email', u.email_column), ('timezone', u.timezone_column))
                         AS c(what, attname)
     WHERE c.attname IS NOT NULL AND activation._key_type(u.users, c.attname) IS NULL
       AND EXISTS (SELECT FROM activation.loop_version v
                     JOIN activation."loop" l USING (loop_id, version)
                    WHERE v.users = u.users AND l.state <> 'archived')
$$;
