"""Mail: the extension, its settings, and two loops. What it says is what was true then; now is in loops.py."""

from __future__ import annotations

from alembic import op

from activation.loops import Loop, email, on_event, on_insert, query, retry

revision = "0003"
down_revision = "0002"

# What the app itself calls: telling of events, webhooks, the pages behind the mails' links, the dashboard.
FUNCTIONS = """
    activation.track_all, activation.receive_webhook, activation.unsubscribe, activation.resubscribe,
    activation.preferences, activation.overview, activation.why
"""


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS activation CASCADE")
    op.execute("SELECT activation.set_users('users', email => 'email')")
    op.execute(
        "SELECT activation.configure(sender => 'Acme <hello@acme.dev>', api_key => 'env:RESEND_API_KEY',"
        " public_url => 'https://acme.dev/activation')"
    )
    op.define_loop(
        Loop(
            "first_project",
            trigger=on_insert("users"),
            condition=query(
                "SELECT * FROM user_actions WHERE user_id = $1 AND action_type = 'first_project_created'", timeout="5m"
            ),
            action=email("activation_welcome", {"name": "{{user.name}}", "activationLink": "{{user.activation_link}}"}),
            recovery=retry(3, "exponential"),
        )
    )
    op.set_template(
        "first_api_call",
        subject="Your API key works",
        body_text="""\
Hi {{ user.name | greeting | default: 'there' }},

your first call of our API has just come in. The reference of all of it: {{ user.activation_link }}
{% if unsubscribe_url %}
Unsubscribe: {{ unsubscribe_url }}{% endif %}
""",
    )
    op.define_loop(Loop("first_api_call", trigger=on_event("first_api_call"), action=email("first_api_call")))
    op.execute("GRANT USAGE ON SCHEMA activation TO example_app")
    op.execute(f"GRANT EXECUTE ON FUNCTION {FUNCTIONS} TO example_app")


def downgrade() -> None:
    op.execute(f"REVOKE EXECUTE ON FUNCTION {FUNCTIONS} FROM example_app")
    op.execute("REVOKE USAGE ON SCHEMA activation FROM example_app")
    # The extension stays: it knows who has unsubscribed.
    op.archive_loop("first_api_call")
    op.archive_loop("first_project")
