-- Five minutes for a first project; who creates one gets a welcome. Run once, by the owner of the tables.
CREATE EXTENSION activation CASCADE;

SELECT activation.set_users('users', email => 'email');
SELECT activation.configure(sender => 'Acme <hello@acme.dev>', api_key => 'env:RESEND_API_KEY', public_url => 'https://acme.dev/activation');

SELECT activation.define_loop('first_project',
  trigger   => activation.on_insert('users'),
  condition => activation.query($$SELECT * FROM user_actions WHERE user_id = $1 AND action_type = 'first_project_created'$$,
                                timeout => '5m'),
  action    => activation.email('activation_welcome',
                 personalization => '{"name": "{{user.name}}", "activationLink": "{{user.activation_link}}"}'),
  recovery  => activation.retry(3, 'exponential'));

-- What the app's own pages call: webhooks, and the link in every mail.
GRANT USAGE ON SCHEMA activation TO example_app;
GRANT EXECUTE ON FUNCTION activation.receive_webhook, activation.unsubscribe, activation.resubscribe, activation.preferences TO example_app;
