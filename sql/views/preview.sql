-- preview(): the mails of a loop as one user would get them.

-- The rows of preview(), for the loop's owner.
CREATE FUNCTION activation._preview(caller oid, wanted_user text, loop_name text)
RETURNS TABLE (
    step text, branch text, purpose text, recipient text, subject text, html text, body_text text,
    problem text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    l activation.loop := activation._require_loop_owner(caller, loop_name);
    v activation.loop_version;
    evaluation record;
    user_rows activation.users_row[];
    mail record;
    template jsonb;
    rendered jsonb;
BEGIN
    SELECT x.* INTO v
      FROM activation.loop_version x
     WHERE x.loop_id = l.loop_id AND x.version = l.version;
    SELECT * INTO evaluation
      FROM activation._safe_eval_each(v.users_function, v.owner, ARRAY[wanted_user]);
    user_rows := activation._read_rows(evaluation.answers);
    IF cardinality(user_rows) = 0
       AND activation._user_exists(v.users, wanted_user) IS NOT TRUE THEN
        RAISE EXCEPTION 'user % does not exist in %', wanted_user, activation._table_name(v.users)
            USING ERRCODE = '02000',
                  HINT = 'Give the user''s key as text, as it stands in the users table.';
    END IF;
    FOR mail IN
        SELECT s.name, b.branch, b.email
          FROM activation.step s,
               LATERAL (VALUES ('action', s.action), ('otherwise', s.otherwise)) AS b(branch, email)
         WHERE s.loop_id = l.loop_id AND s.version = l.version AND b.email IS NOT NULL
         ORDER BY s.position, b.branch
    LOOP
        template := activation._find_template(mail.email ->> 'template');
        rendered := CASE WHEN cardinality(user_rows) = 0
                         THEN jsonb_build_object('problem', 'the user''s row cannot be read: '
                                                            || evaluation.errors[1])
                         ELSE activation._rendered(
                                  mail.email, l.name, user_rows[1].body, template ->> 'subject',
                                  template ->> 'html', template ->> 'body_text') END;
        RETURN QUERY
        SELECT mail.name, mail.branch, v.definition ->> 'opinion', user_rows[1].email,
               rendered ->> 'subject', rendered ->> 'html', rendered ->> 'body_text',
               rendered ->> 'problem';
    END LOOP;
END
$$;

CREATE FUNCTION activation.preview(user_id text, loop text)
RETURNS TABLE (
    step text, branch text, purpose text, recipient text, subject text, html text, body_text text,
    problem text
)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH call AS (
        INSERT INTO activation.call (verb, arguments)
        VALUES ('preview', jsonb_build_object('user_id', $1, 'loop', $2))
        RETURNING answer
    )
    SELECT p.*
      FROM call,
           jsonb_to_recordset(call.answer)
           AS p(step text, branch text, purpose text, recipient text, subject text, html text,
                body_text text, problem text)
$$;
COMMENT ON FUNCTION activation.preview(text, text) IS
'The mails of a loop as one user would get them now. Sends nothing.
user_id: the user''s key as text.
loop: the loop''s name.
Returns a row for each step and branch.
step: the step''s name.
branch: action or otherwise.
purpose: the loop''s opinion.
recipient: the address of the user''s row.
subject: the subject as rendered.
html: the html body as rendered.
body_text: the text body as rendered.
problem: why it could not be rendered, NULL where it was.
Raises 42704 for an unknown loop, 42501 for another role''s, 02000 for a user who does not exist.';
