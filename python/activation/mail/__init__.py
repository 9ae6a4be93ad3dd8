"""From a template and a user's row to a mail: Liquid, html and text, mailboxes, links to unsubscribe. No database."""
