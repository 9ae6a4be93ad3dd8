-- Templates: those that people store in this database, and the checks of emails made from them.

-- A template by name: the newest of this database, else the built-in.
CREATE FUNCTION activation._find_template(template text) RETURNS jsonb
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        (SELECT jsonb_build_object('subject', t.subject, 'html', t.html, 'body_text', t.body_text)
           FROM activation._template(template, 2147483647) t),
        activation._built_in_template(template))
$$;

-- Refuses an email that could not be rendered: one without its template, or with a variable that
-- neither the personalization nor a column of the users table provides.
CREATE FUNCTION activation._check_email(
    context text, email jsonb, users regclass, template_text jsonb
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer jsonb;
BEGIN
    IF template_text IS NULL THEN
        RAISE EXCEPTION '%: template "%" does not exist', context, email ->> 'template'
            USING ERRCODE = '42704',
                  DETAIL = format('There are %s.', (
                      SELECT string_agg(DISTINCT n.name, ', ')
                        FROM (SELECT t.name FROM activation.template t
                              UNION
                              SELECT unnest(ARRAY['activation_welcome', 'activation_nudge',
                                                  'milestone'])) n)),
                  HINT = format('Make it first: '
                                'SELECT activation.set_template(%L, subject => …, html => …);',
                                email ->> 'template');
    END IF;
    answer := activation._check_template(
        format('%s: template "%s"', context, email ->> 'template'),
        coalesce(email ->> 'subject', template_text ->> 'subject'),
        template_text ->> 'html', template_text ->> 'body_text',
        email -> 'personalization', activation._user_columns(users));
    PERFORM activation._raise(answer -> 'error');
END
$$;

-- What set_template() does. A version that a loop in use could not render is refused.
CREATE FUNCTION activation._set_template(
    caller oid, name text, subject text, html text, body_text text
) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    used record;
    new_version integer;
    answer jsonb;
    template_text jsonb := jsonb_build_object(
        'subject', subject, 'html', html, 'body_text', body_text);
BEGIN
    IF coalesce(name, '') !~ '^[A-Za-z0-9_.-]{1,63}$' THEN
        RAISE EXCEPTION 'a template needs a name'
            USING ERRCODE = '22023', HINT = 'Use letters, digits, _, . and -, at most 63.';
    END IF;
    IF coalesce(btrim(subject), '') = '' OR subject ~ '[\n-\r\u0085\u2028\u2029]' THEN
        RAISE EXCEPTION 'template "%" needs a subject of one line', name
            USING ERRCODE = '22023',
                  HINT = 'set_template(name, subject => ''Welcome'', html => …)';
    END IF;
    IF coalesce(html, body_text) IS NULL THEN
        RAISE EXCEPTION 'template "%" has no body', name
            USING ERRCODE = '22023', HINT = 'Give html, body_text, or both.';
    END IF;
    answer := activation._check_template(
        format('template "%s"', name), subject, html, body_text, NULL, NULL);
    PERFORM activation._raise(answer -> 'error');
    PERFORM activation._lock_define();
    FOR used IN
        SELECT l.name AS loop_name, v.owner, v.users, b.email
          FROM activation."loop" l
          JOIN activation.loop_version v USING (loop_id, version)
          JOIN activation.step s USING (loop_id, version),
               unnest(ARRAY[s.action, s.otherwise]) AS b(email)
         WHERE l.state <> 'archived' AND b.email ->> 'template' = _set_template.name
    LOOP
        IF NOT pg_has_role(caller, used.owner, 'MEMBER') THEN
            RAISE EXCEPTION 'template "%" is used by loop "%", which belongs to %',
                name, used.loop_name, activation._role_name(used.owner)
                USING ERRCODE = '42501',
                      HINT = 'Store yours under another name, or ask a member of that role.';
        END IF;
        PERFORM activation._check_email(
            format('loop "%s"', used.loop_name), used.email, used.users, template_text);
    END LOOP;
    INSERT INTO activation.template (name, version, subject, html, body_text, created_at)
    SELECT _set_template.name, coalesce(max(t.version), 0) + 1, _set_template.subject,
           _set_template.html, _set_template.body_text, activation._now()
      FROM activation.template t WHERE t.name = _set_template.name
    RETURNING template.version INTO new_version;
    RETURN new_version;
END
$$;

CREATE FUNCTION activation.set_template(
    name text, subject text, html text DEFAULT NULL, body_text text DEFAULT NULL
) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO activation.call (verb, arguments)
    VALUES ('set_template', jsonb_build_object(
        'name', name, 'subject', subject, 'html', html, 'body_text', body_text))
    RETURNING (answer #>> '{}')::integer
$$;
COMMENT ON FUNCTION activation.set_template(text, text, text, text) IS
'Stores a new version of a template, in Liquid. Enrollments made from then on use it, earlier ones
keep theirs. A template of a built-in one''s name takes its place.
name: the template''s name, of letters, digits, _, . and -, at most 63.
subject: the subject, one line.
html: the html body (default: none).
body_text: the text body (default: derived from html).
Returns the number of the version.
Raises 22023 for a name, subject or body that is none, 42601 for broken Liquid, 42703 where a loop
  in use lacks a variable of it.';
