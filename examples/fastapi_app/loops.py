"""Who gets which mail, and when. A migration installs it; `alembic check` fails when the two differ."""

from __future__ import annotations

from activation.loops import Loop, Template, email, on_event, on_insert, query, retry

# Five minutes for a first project; who creates one gets a welcome.
FIRST_PROJECT = Loop(
    "first_project",
    trigger=on_insert("users"),
    condition=query(
        "SELECT * FROM user_actions WHERE user_id = $1 AND action_type = 'first_project_created'", timeout="5m"
    ),
    action=email("activation_welcome", {"name": "{{user.name}}", "activationLink": "{{user.activation_link}}"}),
    recovery=retry(3, "exponential"),
)

# No table tells of a call of the API, so the app does. Nobody is in a loop twice: only the first call counts.
FIRST_API_CALL = Loop("first_api_call", trigger=on_event("first_api_call"), action=email("first_api_call"))
FIRST_API_CALL_MAIL = Template(
    "first_api_call",
    subject="Your API key works",
    body_text="""\
Hi {{ user.name | greeting | default: 'there' }},

your first call of our API has just come in. The reference of all of it: {{ user.activation_link }}
{% if unsubscribe_url %}
Unsubscribe: {{ unsubscribe_url }}{% endif %}
""",
)

ALL = [FIRST_PROJECT, FIRST_API_CALL_MAIL, FIRST_API_CALL]
