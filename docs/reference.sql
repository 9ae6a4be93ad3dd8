-- The order and the examples of docs/reference.md, which `make reference` writes. A line "-- # …" begins a topic, and
-- "-- ## …" a routine or a view. test/docs/test_reference.py runs each example; "raises …" says which error it ends with.

-- # Loops
-- ## define_loop
SELECT activation.define_loop('first_project',
  trigger   => activation.on_insert('users'),
  condition => activation.query('SELECT 1 FROM projects WHERE owner_id = $1', timeout => '3 days'),
  action    => activation.email('activation_welcome', personalization => '{"name": "{{user.name}}"}'),
  otherwise => activation.email('activation_nudge'),
  holdout   => 0.1);
-- ## on_insert
SELECT activation.on_insert('users', filter => 'NEW.plan = ''free''');
SELECT activation.on_insert('projects', user_key => 'owner_id');
-- ## on_update
SELECT activation.on_update('users', columns => '{plan}', filter => 'OLD.plan = ''free'' AND NEW.plan = ''pro''');
-- ## on_delete
SELECT activation.on_delete('projects');
-- ## on_event
SELECT activation.on_event('first_api_call');
-- ## on_schedule
SELECT activation.on_schedule('0 9 * * Mon', $$SELECT id FROM users WHERE created_at < now() - interval '60 days'$$);
-- ## query
SELECT activation.query('SELECT 1 FROM projects WHERE owner_id = $1 HAVING count(*) >= 10', timeout => '30 days');
SELECT activation.query($$SELECT 1 FROM users WHERE id = $1 AND created_at < now() - interval '1 day'$$, every => '15 minutes');
-- ## email
SELECT activation.email('milestone', personalization => '{"count": "10"}', subject => 'Ten projects');
-- ## step
SELECT activation.step('first_project', delay => '1 hour',
  condition => activation.query('SELECT 1 FROM projects WHERE owner_id = $1', timeout => '3 days'),
  otherwise => activation.email('activation_nudge'), on_timeout => 'exit');
-- ## send_window
SELECT activation.send_window('Mon-Fri', '09:00', '17:30');
-- ## retry
SELECT activation.retry(3, 'exponential', initial => '30 seconds', max => '1 hour');
-- ## import_loop
SELECT activation.import_loop('onboarding_too', activation.export_loop('onboarding'));
-- ## export_loop
SELECT jsonb_pretty(activation.export_loop('onboarding'));
-- ## diff_loop
SELECT * FROM activation.diff_loop('onboarding', jsonb_set(activation.export_loop('onboarding'), '{holdout}', '0.5'));
-- ## migrate_loop
SELECT activation.import_loop('onboarding', jsonb_set(activation.export_loop('onboarding'), '{steps,0,delay}', '"2 hours"'));
SELECT activation.migrate_loop('onboarding');
-- ## pause_loop
SELECT activation.pause_loop('onboarding', cancel => true);
-- ## resume_loop
SELECT activation.pause_loop('onboarding');
SELECT activation.resume_loop('onboarding', drop_older_than => '1 day');
-- ## archive_loop
SELECT activation.archive_loop('onboarding');
-- ## unbind
SELECT activation.unbind('projects');
ALTER TABLE projects ALTER COLUMN owner_id TYPE integer;
ALTER TABLE projects ALTER COLUMN owner_id TYPE bigint;
SELECT activation.bind();
-- ## bind
SELECT activation.bind(or_fail => true);
-- ## skene_definition
SELECT activation.skene_definition($config$
export default defineLoop({
  type: 'activation',
  steps: [{
    trigger: { type: 'database', table: 'users', event: 'insert' },
    condition: { type: 'query', query: 'SELECT 1 FROM projects WHERE owner_id = $1', timeout: '3 days' },
    action: { type: 'email', provider: 'resend', template: 'activation_welcome' },
  }],
});
$config$);
-- ## import_skene
SELECT activation.import_skene('from_skene', $config$
export default defineLoop({
  type: 'activation',
  steps: [{
    trigger: { type: 'database', table: 'users', event: 'insert' },
    condition: { type: 'query', query: 'SELECT 1 FROM projects WHERE owner_id = $1', timeout: '3 days' },
    action: { type: 'email', provider: 'resend', template: 'activation_welcome' },
  }],
});
$config$);
-- ## journey_definition
SELECT activation.journey_definition($journey$
stages:
- id: activation
  order: 1
  name: Activation
  milestones:
  - {id: first_project, order: 1, name: A project, description: one, evidence: [{source: db, reason: owner, table: public.projects}]}
$journey$, users => 'users');
-- ## import_journey
SELECT activation.import_journey('from_journey', $journey$
stages:
- id: activation
  order: 1
  name: Activation
  milestones:
  - {id: first_project, order: 1, name: A project, description: one, evidence: [{source: db, reason: owner, table: public.projects}]}
$journey$, milestones => '{activation.first_project}', timeout => '14 days');
-- ## loop_definition
SELECT loop, version, owner, users FROM activation.loop_definition;

-- # Templates
-- ## set_template
SELECT activation.set_template('first_invoice', subject => 'Your first invoice is out',
  html => $$<p>Hi {{ name | default: 'there' }},</p><p>your first invoice is on its way.</p>$$);
-- ## preview
SELECT step, branch, recipient, subject, body_text, problem FROM activation.preview('42', 'onboarding');

-- # Settings
-- ## configure
SELECT activation.configure(sender => 'Acme <hello@acme.dev>', api_key => 'env:RESEND_API_KEY',
                            public_url => 'https://acme.dev/activation');
SELECT activation.configure(max_per_user => 3, per => '1 day', timezone => 'Europe/Berlin');
SELECT activation.configure(reply_to => '');
-- ## set_secret
SELECT activation.set_secret('resend', 're_…');
-- ## set_retention
SELECT activation.set_retention('bodies', '30 days');
SELECT activation.set_retention('bodies', NULL);
-- ## set_topic
SELECT activation.set_topic('onboarding', 'Getting started', 'A few mails in your first weeks');

-- # Users
-- ## set_users
SELECT activation.set_users('users', key => 'id', email => 'email', timezone => 'timezone');

-- # People
-- ## enroll
SELECT activation.enroll('42', 'onboarding', '{"coupon": "WELCOME10"}');
-- ## cancel
SELECT activation.cancel('42', 'onboarding', 'asked by phone');
-- ## track
SELECT activation.track('42', 'first_api_call', '{"path": "/v1/projects"}');
-- ## track_all
SELECT * FROM activation.track_all('[{"user_id": "42", "event": "first_api_call", "once": true}, {"user_id": "none", "event": "login"}]');
-- ## why
SELECT at, event, detail FROM activation.why('42', 'onboarding');
-- ## journey
SELECT user_id, state, step, activated_at FROM activation.journey WHERE loop = 'onboarding' AND state = 'waiting';
-- ## message_log
SELECT user_id, subject, status, last_error FROM activation.message_log ORDER BY created_at DESC LIMIT 20;
-- ## resolve
SELECT activation.resolve(message_id, 'sent') FROM activation.message_log WHERE status = 'unknown';

-- # Consent
-- ## preferences
SELECT topic, name, subscribed FROM activation.preferences('42');
-- ## unsubscribe
SELECT activation.unsubscribe('token-of-a-link', everything => true);
-- ## resubscribe
SELECT activation.resubscribe('token-of-a-link');
-- ## suppress
SELECT activation.suppress('Ada <ADA@acme.dev>', 'asked by phone');
-- ## unsuppress
SELECT activation.unsuppress('ada@acme.dev');
-- ## export_user
SELECT jsonb_pretty(activation.export_user('42'));
-- ## erase
DELETE FROM users WHERE id = 42;
SELECT activation.erase('42');

-- # Feedback
-- ## receive_webhook
SELECT activation.receive_webhook('{"type": "email.delivered"}',
  '{"svix-id": "msg_1", "svix-timestamp": "1785000000", "svix-signature": "v1,…"}');   -- raises HT503: no secret is configured
-- ## pull_webhooks
CALL activation.pull_webhooks();
-- ## sync_suppressions
CALL activation.sync_suppressions();

-- # Insight
-- ## suggest
SELECT rank, action, rate_with, rate_without, summary, loop FROM activation.suggest(within => '7 days');
-- ## milestone
SELECT * FROM activation.milestone(activation.query('SELECT 1 FROM projects WHERE owner_id = $1'), since => now() - interval '30 days');
-- ## simulate
SELECT part, step, branch, status, people, detail FROM activation.simulate('onboarding', since => now() - interval '90 days');
-- ## power
SELECT * FROM activation.power('onboarding');
-- ## funnel
SELECT stage, step, people, share FROM activation.funnel WHERE loop = 'onboarding';
-- ## cohort
SELECT week, enrolled, mature, rate FROM activation.cohort WHERE loop = 'onboarding';
-- ## time_to_activate
SELECT people, activated, median, p90 FROM activation.time_to_activate WHERE loop = 'onboarding';
-- ## lift
SELECT difference, low, high, p, summary FROM activation.lift WHERE loop = 'onboarding';
-- ## mail_numbers
SELECT template, version, sent, delivered, activated_in_7_days FROM activation.mail_numbers;
-- ## overview
SELECT jsonb_pretty(activation.overview(max_age => '1 minute'));
-- ## report
SELECT activation.report();

-- # Operating
-- ## set_mode
SELECT activation.set_mode('redirect', redirect_to => 'you@acme.dev', backlog => 'cancel');
SELECT activation.set_mode('live', hosts => ARRAY['%:%'], backlog => 'send');
-- ## resume
SELECT activation.resume();
-- ## start
SELECT activation.start(detectors => 1, deliverers => 2);
-- ## stop
SELECT activation.stop();
-- ## status
SELECT component, state, detail FROM activation.status;
-- ## doctor
SELECT "check", state, detail, cure FROM activation.doctor() WHERE state <> 'ok';
-- ## grant_role
CREATE ROLE support;
SELECT activation.grant_role('operator', 'support');
SELECT activation.grant_role('viewer', 'support');
-- ## revoke_role
CREATE ROLE support;
SELECT activation.grant_role('operator', 'support');
SELECT activation.revoke_role('operator', 'support');
-- ## tick
CALL activation.tick();
-- ## detect
CALL activation.detect();
-- ## deliver
CALL activation.deliver();
