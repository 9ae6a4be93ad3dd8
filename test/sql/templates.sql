-- Templates: the built-in ones, those of set_template, what a definition checks of them, and what preview shows.
\ir setup.sql
SELECT no_plan();

CREATE TABLE lean (id bigint PRIMARY KEY, email text);
CREATE TABLE users (id bigint PRIMARY KEY, email text, name text, plan text, born date, "Full Name" text);
INSERT INTO lean VALUES (1, 'one@example.net');
INSERT INTO users VALUES (1, 'one@example.net', 'Åse <b>', 'free', '2000-01-01', 'Åse B'), (2, 'two@example.net', NULL, NULL, NULL, NULL);

CREATE FUNCTION pg_temp.defined(name text, action text, users text DEFAULT 'users') RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SELECT activation.define_loop(%L, trigger => activation.on_insert(%L), action => %s)', name, users, action);
    RETURN name;
END
$$;

-- Built in.

SELECT is(pg_temp.defined('lean ' || t, format('activation.email(%L)', t), 'lean'), 'lean ' || t, t || ' is valid on a table with a key and an address only')
  FROM unnest(ARRAY['activation_welcome', 'activation_nudge', 'milestone']) AS t;
CREATE TEMP VIEW lean_mail AS
SELECT t, p.* FROM unnest(ARRAY['activation_welcome', 'activation_nudge', 'milestone']) AS t, activation.preview('1', 'lean ' || t) AS p;
SELECT is_empty('SELECT t, problem FROM lean_mail WHERE problem IS NOT NULL', 'they render without a name and a link');
SELECT is_empty($$SELECT t FROM lean_mail WHERE subject = '' OR subject ~ '[\r\n]' OR length(subject) > 78$$, 'with subjects of one short line');
SELECT is(count(DISTINCT subject)::integer, 3, 'that differ') FROM lean_mail;
SELECT is_empty($$SELECT t FROM lean_mail WHERE html !~ '^<!doctype html>' OR html ~ '\{\{|\{%' OR body_text ~ '<|\{\{|\{%' OR body_text !~ 'Hi there,'$$,
                'with html, and text of its own, and a greeting for somebody without a name');
SELECT is_empty($$SELECT t FROM lean_mail WHERE html ~ '<a ' OR body_text ~ 'http'$$, 'without a link where none is given');

SELECT pg_temp.defined('named ' || t, format($q$activation.email(%L, personalization => '{"name": "{{user.name}}", "activationLink": "https://example.net/?a=1&b={{user.id}}"}')$q$, t))
  FROM unnest(ARRAY['activation_welcome', 'activation_nudge', 'milestone']) AS t;
CREATE TEMP VIEW named_mail AS
SELECT u, t, p.* FROM unnest(ARRAY['activation_welcome', 'activation_nudge', 'milestone']) AS t, unnest(ARRAY['1', '2']) AS u, activation.preview(u, 'named ' || t) AS p;
SELECT is_empty('SELECT u, t, problem FROM named_mail WHERE problem IS NOT NULL', 'they render with both');
SELECT is_empty($$SELECT t FROM named_mail WHERE html !~ 'href="https://example.net/\?a=1&amp;b=[12]"' OR body_text !~ 'https://example.net/\?a=1&b=[12]'$$, 'the link stands in html, escaped, and in text');
SELECT is_empty($$SELECT t FROM named_mail WHERE u = '1' AND (html !~ 'Hi Åse &lt;b&gt;,' OR html ~ 'Åse <b>' OR body_text !~ 'Hi Åse <b>,')$$, 'a name is escaped in html, and not in text');
SELECT is_empty($$SELECT t FROM named_mail WHERE u = '2' AND (html !~ 'Hi there,' OR body_text !~ 'Hi there,')$$, 'a NULL name is no name');

-- set_template.

SELECT is(activation.set_template('own', 'Hello {{ user.name | default: "you" }}', html => '<p>{{ text }}</p><p><a href="https://example.net/">Go</a></p>'), 1, 'a template');
SELECT is(activation.set_template('own', 'Hello {{ name }}', body_text => 'Dear {{ name }}'), 2, 'a new version each time');
SELECT is(activation.set_template('own', 'Hello {{ name }}', body_text => 'Dear {{ name }}'), 3, 'also for the same text');
SELECT is(activation.set_template('other', 'Hi', html => 'Hi'), 1, 'by name');
SELECT pg_temp.defined('own', $$activation.email('own', personalization => '{"name": "{{user.name | upcase}}"}')$$);
SELECT results_eq($$SELECT step, branch, recipient, subject, html, body_text, problem FROM activation.preview('1', 'own')$$,
    $$VALUES ('step1', 'action', 'one@example.net', 'Hello ÅSE <B>', NULL::text, 'Dear ÅSE <B>', NULL::text)$$, 'text alone is no html');
SELECT is(subject, 'Hello', 'NULL renders as nothing') FROM activation.preview('2', 'own');
SELECT is(activation.set_template('own', 'New {{ name }}', html => '<p>{{ name }}</p><p><a href="https://example.net/">Go</a> on</p>'), 4, 'a loop in use does not hold back a version that it can fill');
SELECT results_eq($$SELECT subject, html, body_text FROM activation.preview('1', 'own')$$,
    $$VALUES ('New ÅSE <B>', '<p>ÅSE &lt;B&gt;</p><p><a href="https://example.net/">Go</a> on</p>', E'ÅSE <B>\n\nGo (https://example.net/) on')$$,
    'text is derived from html where there is none');
SELECT is(activation.export_loop('own') #>> '{steps,0,action,template}', 'own', 'the loop names it');
SELECT results_eq($$SELECT count(*)::integer FROM activation.loop_version v JOIN activation.loop l USING (loop_id) WHERE l.name = 'own'$$, 'VALUES (1)',
                  'and gets no new version by its change');

SELECT is(activation.set_template('milestone', 'Mine', body_text => 'Mine'), 1, 'a template of a built-in''s name');
SELECT is(subject, 'Mine', 'goes before it') FROM activation.preview('1', 'named milestone');

-- An enrollment keeps the templates of its time.

SELECT activation.set_template('old', 'Old', body_text => 'Old');
SELECT pg_temp.defined('keeps', $$activation.email('old')$$);
INSERT INTO users (id, email) VALUES (3, 'three@example.net');
SELECT pg_temp.round();
SELECT activation.set_template('old', 'New', body_text => 'New');
INSERT INTO users (id, email) VALUES (4, 'four@example.net');
SELECT pg_temp.round();
SELECT results_eq($$SELECT e.user_id, t.subject FROM activation.enrollment e JOIN activation.loop l USING (loop_id), activation._template('old', e.newest_template_id) t
                     WHERE l.name = 'keeps' ORDER BY 1$$, $$VALUES ('3', 'Old'), ('4', 'New')$$, 'an enrollment keeps the template of its time');

-- What may be named.

SELECT is(pg_temp.defined('names ' || n, format('activation.email(%L, personalization => %L)', 'naming', json_build_object('x', text))), 'names ' || n, 'accepted: ' || text)
  FROM unnest(ARRAY[
    '{{ user.name }}', '{{ user["Full Name"] }}', '{{ user.born | date: "%Y" }}', '{{ user.city | default: "nowhere" }}', '{% if user.city %}in {{ user.city }}{% endif %}',
    '{% unless user.city %}x{% endunless %}', '{{ loop.name }}', '{{ enrollment.context.source | default: "" }}', '{% if unsubscribe_url %}{{ unsubscribe_url }}{% endif %}',
    '{% assign a = user.name | default: user.email %}{{ a }}', '{% for l in user.name %}{{ l }}{% endfor %}', '{{ "a" | append: user.plan }}', 'no Liquid at all', '']) WITH ORDINALITY AS t(text, n)
 CROSS JOIN (SELECT activation.set_template('naming', 'Hi', body_text => '{{ x | default: "" }}')) made;

SELECT pg_temp.refused(format('SELECT pg_temp.defined(%L, %L)', 'refused', format('activation.email(%L, personalization => %L)', 'naming', json_build_object('x', c.text))),
                       c.code, ARRAY['loop "refused"', c.named], '', 'refused: ' || c.text)
  FROM (VALUES
    ('{{ user.city }}', '42703', 'user.city'),
    ('{{ User.name }}', '22023', 'User'),
    ('{{ user.Name }}', '42703', 'user.Name'),
    ('{{ plan }}', '22023', 'plan'),
    ('{% if user.name %}{{ user.city }}{% endif %}', '42703', 'user.city'),
    ('{% if user.name %}x{% else %}{{ user.city }}{% endif %}', '42703', 'user.city'),
    ('{{ user.name', '42601', 'Liquid'),
    ('{% if user.name %}', '42601', 'Liquid'),
    ('{% nosuchtag %}', '42601', 'Liquid'),
    ('{{ user.name | nosuchfilter }}', '42601', 'nosuchfilter')
  ) AS c(text, code, named);

-- What cannot be rendered says so in preview.

SELECT activation.set_template('divides', 'Hi', body_text => '{{ 6 | divided_by: user.plan }}');
SELECT pg_temp.defined('divides', $$activation.email('divides')$$);
SELECT ok(subject IS NULL AND problem IS NOT NULL, 'a row that the template cannot take has a problem, and no mail') FROM activation.preview('1', 'divides');
SELECT activation.set_template('headed', 'Hi {{ user.name }}', body_text => 'x');
SELECT pg_temp.defined('headed', $$activation.email('headed')$$);
UPDATE users SET name = E'a\nBcc: b@example.net' WHERE id = 1;
SELECT is(subject, 'Hi a Bcc: b@example.net', 'a name cannot put a header into the mail') FROM activation.preview('1', 'headed');
UPDATE users SET name = E'a\tb\u2028c\u202e' WHERE id = 1;
SELECT is(subject, 'Hi a b c', 'white space in a name is folded, what turns the direction is taken out') FROM activation.preview('1', 'headed');

SELECT * FROM finish();
ROLLBACK;
