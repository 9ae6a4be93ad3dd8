"""Workers that post a request for each job, 64 at a time: worker.py KIND DSN URL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import aiohttp
import psycopg

IN_FLIGHT = 64
Post = Callable[[], Awaitable[None]]


async def pgq(dsn: str, post: Post) -> None:
    """Ticks and batches; the ticker is a part of this process, as pgqd would be a process of its own."""
    ticker = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    consumer = await psycopg.AsyncConnection.connect(dsn, autocommit=True)

    async def tick() -> None:
        while True:
            await ticker.execute("SELECT pgq.ticker()")
            await asyncio.sleep(0.1)

    ticking = asyncio.create_task(tick())
    while not ticking.done():
        batch = (await (await consumer.execute("SELECT pgq.next_batch('bench', 'mail')")).fetchone() or (None,))[0]
        if batch is None:
            await asyncio.sleep(0.02)
            continue
        events = await (await consumer.execute("SELECT ev_id FROM pgq.get_batch_events(%s)", [batch])).fetchall()
        await asyncio.gather(*(post() for _ in events))
        await consumer.execute("SELECT pgq.finish_batch(%s)", [batch])


async def pgmq(dsn: str, post: Post) -> None:
    db = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    while True:
        rows = await (await db.execute("SELECT msg_id FROM pgmq.read('bench', 30, 500)")).fetchall()
        if not rows:
            await asyncio.sleep(0.1)
            continue
        await asyncio.gather(*(post() for _ in rows))
        await db.execute("SELECT pgmq.delete('bench', %s::bigint[])", [[row[0] for row in rows]])


async def procrastinate(dsn: str, post: Post) -> None:
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=dsn))

    @app.task(name="mail", pass_context=False)
    async def mail(user: int) -> None:
        await post()

    async with app.open_async():
        await app.run_worker_async(concurrency=IN_FLIGHT, install_signal_handlers=False)


async def main(kind: str, dsn: str, url: str) -> None:
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector) as session:
        mail = {"from": "hello@acme.dev", "to": ["ada@acme.dev"], "subject": "Hello", "html": "<p>" + "x" * 5000}

        async def post() -> None:
            async with session.post(f"{url}/emails", json=mail) as answer:
                await answer.read()

        print("ready", flush=True)
        await {"pgq": pgq, "pgmq": pgmq, "procrastinate": procrastinate}[kind](dsn, post)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
