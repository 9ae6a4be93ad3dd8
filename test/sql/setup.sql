-- What every file begins with: \ir setup.sql. It ends with: SELECT * FROM finish(); ROLLBACK;
\set QUIET 1
\set ON_ERROR_STOP 1
\set ON_ERROR_ROLLBACK 0

BEGIN;
SET LOCAL search_path = public, tap;
SET LOCAL client_min_messages = warning;
