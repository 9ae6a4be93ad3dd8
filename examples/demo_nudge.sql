SELECT activation.define_loop('first_project_nudge',
  trigger   => activation.on_insert('users'),
  condition => activation.query($$SELECT * FROM user_actions WHERE user_id = $1 AND action_type = 'first_project_created'$$,
                                timeout => '15s'),
  otherwise => activation.email('activation_nudge',
                 personalization => '{"name": "{{user.name}}", "activationLink": "{{user.activation_link}}"}'));
