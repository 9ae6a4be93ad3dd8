"""Mail: the extension, its settings, and two loops. What it says is what was true then; now is in loops.py."""

from __future__ import annotations

from alembic import op

from activation.loops import Loop, email, on_event, on_insert, query, retry

revision = "0003"
down_revision = "0002"


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
    # The app itself tells events, takes webhooks, and serves the pages behind the mails' links and the dashboard.
    op.execute("SELECT activation.grant_role('app', 'example_app')")


def downgrade() -> None:
    op.execute("SELECT activation.revoke_role('app', 'example_app')")
    # The extension stays: it knows who has unsubscribed.
    op.archive_loop("first_api_call")
    op.archive_loop("first_project")
