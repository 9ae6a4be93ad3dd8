"""`activation sandbox`."""

from __future__ import annotations

import errno
import signal
import threading

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8025, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--rate", type=click.IntRange(1), help="Requests allowed per second.  [default: no limit]")
@click.option("--latency", default=0.0, type=click.FloatRange(0), metavar="MS", help="How long each request takes.")
@click.option("--jitter", default=0.0, type=click.FloatRange(0), metavar="MS", help="Up to so much longer, at random.")
def sandbox(host: str, port: int, rate: int | None, latency: float, jitter: float) -> None:
    """Run a local server that speaks Resend's API, sends nothing, and shows the mail in the browser.

    Whoever reaches the address can read the mail: keep it on loopback. Ctrl-C ends it, and the mail is gone.
    """
    from ..sandbox import Sandbox

    stop = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stop.set())
    server = Sandbox(host, port, rate=rate, latency_ms=latency, jitter_ms=jitter)
    try:
        server.start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise click.ClickException(f"port {port} of {host} is taken; choose another one with --port") from None
        raise click.ClickException(f"cannot listen on {host} port {port}: {error}") from None
    with server:
        click.echo(f"Resend's API  {server.url}")
        click.echo(f"Inbox         {server.url}/")
        click.echo("Ctrl-C ends it.")
        stop.wait()
