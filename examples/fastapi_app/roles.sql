-- The role the app logs in as: it may read and insert, and nothing else. It reads none of activation's tables; the triggers
-- on the app's own do the rest, and activation.sql lets it call the four functions that its pages need.
CREATE ROLE example_app LOGIN;
GRANT USAGE ON SCHEMA public TO example_app;
GRANT SELECT, INSERT ON users, sessions, projects, user_actions TO example_app;
