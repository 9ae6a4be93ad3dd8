-- What is said and not refused. Only a client sees notices: a second psql, in a transaction of its own that nobody commits.
\ir setup.sql
SELECT no_plan();

\setenv TABLES 'CREATE TABLE users (id bigint PRIMARY KEY, email text); CREATE TABLE actions (user_id bigint, what text); CREATE TABLE plain (id text, email text); CREATE INDEX ON plain (id)'
\setenv SAID 'printf "BEGIN;\n%s;\n%s;\n" "$TABLES" "$DONE" | "${ACTIVATION_PG_BIN:+$ACTIVATION_PG_BIN/}psql" -Xqt -v VERBOSITY=default -f - 2>&1'

\setenv DONE 'SELECT activation.set_users(''plain'', key => ''id'')'
\set said `eval "$SAID"`
SELECT matches(:'said'::text, 'NOTICE:  column id of public.plain is not provably unique\nHINT: ', 'set_users: a key that is not provably unique');

\setenv DONE 'SELECT activation.set_users(''users'')'
\set said `eval "$SAID"`
SELECT unalike(:'said'::text, '%NOTICE%', 'and a primary key is');

\setenv DONE 'SELECT activation.define_loop(''timed'', activation.on_insert(''users''), activation.query($$SELECT FROM users WHERE id = $1 AND now() > ''2030-01-01''$$), activation.email(''milestone''))'
\set said `eval "$SAID"`
SELECT matches(:'said'::text, 'NOTICE:  loop "timed": its condition is asked again every minute.*DETAIL: .*time.*HINT: .*every =>', 'define_loop: a condition that is asked again at intervals');

\setenv DONE 'SELECT activation.define_loop(''or'', activation.on_insert(''users''), activation.query($$SELECT FROM actions WHERE user_id = $1 OR what = ''all''$$), activation.email(''milestone''))'
\set said `eval "$SAID"`
SELECT matches(:'said'::text, 'NOTICE:  loop "or": its condition is asked again.*public.actions.*HINT: .*watch', 'or that reads a table without regard to the user');

\setenv DONE 'SELECT activation.define_loop(''seen'', activation.on_insert(''users''), activation.query($$SELECT FROM actions WHERE user_id = $1$$), activation.email(''milestone''))'
\set said `eval "$SAID"`
SELECT unalike(:'said'::text, '%NOTICE%', 'not one that is watched');

\setenv DONE 'SELECT activation.define_loop(''always'', activation.on_insert(''users''), activation.query($$SELECT count(*) FROM actions WHERE user_id = $1$$), activation.email(''milestone''))'
\set said `eval "$SAID"`
SELECT matches(:'said'::text, 'WARNING:  loop "always": the condition is true for a user who does not exist\nHINT: .*HAVING', 'a condition that is always true');

\setenv DONE 'SELECT activation.define_loop(''raises'', activation.on_insert(''users''), activation.query($$SELECT FROM actions WHERE user_id = $1 HAVING 1 / count(*) > 0$$), activation.email(''milestone''))'
\set said `eval "$SAID"`
SELECT matches(:'said'::text, 'WARNING:  loop "raises": the condition raised when it was tried without a user: division by zero\nHINT: ', 'one that raises');

\setenv DONE 'SELECT activation.configure(public_url => ''https://acme.dev''); SELECT activation.define_loop(''midway'', activation.on_insert(''users''), activation.query($$SELECT FROM actions WHERE user_id = $1$$), activation.email(''milestone'')); INSERT INTO activation.enrollment (loop_id, version, user_id, state, enrolled_at, created_at, newest_template_id) SELECT loop_id, 1, 1, ''waiting'', now(), now(), 0 FROM activation.loop; SELECT activation.set_mode(''live'')'
\set said `eval "$SAID"`
SELECT matches(:'said'::text, 'NOTICE:  1 people are in the middle of a loop and may now be mailed\nHINT: ', 'set_mode: how many may now be mailed');

\setenv DONE 'SELECT activation.resume()'
\set said `eval "$SAID"`
SELECT matches(:'said'::text, 'NOTICE:  the provider was not paused', 'resume: nothing was paused');

SELECT * FROM finish();
ROLLBACK;
