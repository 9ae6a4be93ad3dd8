"""A mail server that accepts everything at once, or after a delay: what the senders are measured against.

python bench/server.py --delay 0.05 prints its address. POST /emails and /emails/batch as Resend's; GET /count says how
many emails have come. Its faults and limits are none, which is why it is not the sandbox.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json

from aiohttp import web

_numbers = itertools.count(1)
_received = 0


def _ids(count: int) -> list[dict[str, str]]:
    return [{"id": f"00000000-0000-4000-8000-{next(_numbers):012d}"} for _ in range(count)]


def application(delay: float) -> web.Application:
    async def take(request: web.Request) -> web.Response:
        global _received
        body = json.loads(await request.read())
        if delay:
            await asyncio.sleep(delay)
        _received += len(body) if isinstance(body, list) else 1
        return web.json_response({"data": _ids(len(body))} if isinstance(body, list) else _ids(1)[0])

    async def count(_: web.Request) -> web.Response:
        return web.json_response({"count": _received})

    app = web.Application(client_max_size=50_000_000)
    app.add_routes([web.post("/emails", take), web.post("/emails/batch", take), web.get("/count", count)])
    return app


async def serve(delay: float) -> None:
    runner = web.AppRunner(application(delay), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds")
    asyncio.run(serve(parser.parse_args().delay))
