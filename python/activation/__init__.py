"""activation: lifecycle email from PostgreSQL through Resend."""

__version__ = "0.1.0"
