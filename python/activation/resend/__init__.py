"""Resend's API: requests, what their answers mean, signatures of webhooks, and where keys come from. No database."""
