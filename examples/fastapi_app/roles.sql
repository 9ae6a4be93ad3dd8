-- The role the app logs in as: it may read and insert, and nothing else. It has no right on the schema activation and owns
-- none of its objects; the triggers on the app's tables do the rest.
CREATE ROLE example_app LOGIN;
GRANT USAGE ON SCHEMA public TO example_app;
GRANT SELECT, INSERT ON users, sessions, projects, user_actions TO example_app;
