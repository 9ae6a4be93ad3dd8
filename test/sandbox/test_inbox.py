"""The inbox page: it shows every part of a mail, and nothing in a mail becomes part of the page."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
import requests

from activation.sandbox import Sandbox

HEADERS = {"Authorization": "Bearer re_123", "User-Agent": "test", "Idempotency-Key": "welcome/1"}
EVIL = "<script>alert(1)</script>\"'></iframe></pre><img src=x onerror=alert(2)>"
MAIL = {
    "from": "Acme <hello@acme.dev>",
    "to": ["ada@lovelace.dev"],
    "cc": "cc@acme.dev",
    "subject": "Welcome to Acme",
    "html": "<h1>Hello Ada</h1>",
    "text": "Hello in text",
    "headers": {"List-Unsubscribe": "<https://acme.dev/u>"},
    "tags": [{"name": "loop", "value": "first_project"}],
    "topic_id": "topic-7",
}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as server:
        yield server


class Page(HTMLParser):
    """The text and the elements of a page."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(response.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def send(sandbox: Sandbox, **changes: Any) -> str:
    headers = HEADERS if not changes else {**HEADERS, "Idempotency-Key": str(changes)[:200]}
    answer = requests.post(sandbox.url + "/emails", json={**MAIL, **changes}, headers=headers, timeout=10)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def get(sandbox: Sandbox, path: str) -> requests.Response:
    return requests.get(sandbox.url + path, timeout=10)


def policy(response: requests.Response) -> dict[str, str]:
    rules = (rule.strip().partition(" ") for rule in response.headers["content-security-policy"].split(";"))
    return {name: value for name, _, value in rules}


def test_empty(sandbox: Sandbox) -> None:
    assert "No mail yet." in Page(get(sandbox, "/")).text
    send(sandbox)
    assert "No mail to nobody@" in Page(get(sandbox, "/?to=nobody@")).text


def test_list_has_the_newest_first(sandbox: Sandbox) -> None:
    first, second = send(sandbox), send(sandbox, subject="Second", to=["grace@hopper.dev", "b@acme.dev"])
    page = Page(get(sandbox, "/"))
    links = [link["href"] for link in page.all("a")]
    assert links == ["/", f"/inbox/{second}", f"/inbox/{first}"]
    for part in ("Second", "grace@hopper.dev, b@acme.dev", "Welcome to Acme", "Acme <hello@acme.dev>"):
        assert part in page.text
    assert [link["href"] for link in Page(get(sandbox, "/?to=HOPPER")).all("a")] == ["/", f"/inbox/{second}"]


def test_older_mail_is_a_page_away(sandbox: Sandbox) -> None:
    batch = [{**MAIL, "to": f"u{n}@acme.dev"} for n in range(100)]
    oldest = send(sandbox)
    assert requests.post(sandbox.url + "/emails/batch", json=batch, headers=HEADERS, timeout=10).status_code == 200
    page = Page(get(sandbox, "/"))
    older = page.all("a")[-1]["href"]
    assert oldest not in str(page.elements) and older == f"/?before={sandbox.emails[1].id}"
    assert [link["href"] for link in Page(get(sandbox, older)).all("a")] == ["/", f"/inbox/{oldest}"]


def test_mail_shows_all_its_parts(sandbox: Sandbox) -> None:
    page = Page(get(sandbox, f"/inbox/{send(sandbox)}"))
    for part in (
        "Welcome to Acme",
        "Acme <hello@acme.dev>",
        "ada@lovelace.dev",
        "cc@acme.dev",
        "Hello in text",
        "List-Unsubscribe",
        "<https://acme.dev/u>",
        "first_project",
        "welcome/1",
        "topic-7",
    ):
        assert part in page.text
    [frame] = page.all("iframe")
    assert str(frame["srcdoc"]).endswith("<h1>Hello Ada</h1>")


def test_mail_without_parts(sandbox: Sandbox) -> None:
    page = Page(get(sandbox, f"/inbox/{send(sandbox, html=None, headers=None, tags=None, subject='')}"))
    assert page.all("iframe") == []
    for part in ("No HTML part.", "No custom headers.", "No tags.", "(no subject)"):
        assert part in page.text
    assert "derive one from the HTML" in Page(get(sandbox, f"/inbox/{send(sandbox, text=None)}")).text


def test_no_such_mail(sandbox: Sandbox) -> None:
    answer = get(sandbox, "/inbox/nothing")
    assert answer.status_code == 404 and "no such mail" in Page(answer).text
    assert requests.post(sandbox.url + "/", timeout=10).status_code == 405


def test_nothing_in_a_mail_becomes_part_of_the_page(sandbox: Sandbox) -> None:
    mail = send(
        sandbox,
        subject=EVIL,
        html=EVIL,
        text=EVIL,
        headers={"X-A": EVIL},
        topic_id=EVIL,
        **{"from": "<script>alert(3)</script>".replace("<", "").replace(">", "") + " & <a@acme.dev>"},
    )
    listing, detail, search = get(sandbox, "/"), get(sandbox, f"/inbox/{mail}"), get(sandbox, f"/?to={EVIL}")
    for page in (Page(listing), Page(detail), Page(search)):
        assert page.all("img") == []
        assert all("onerror" not in attributes for _, attributes in page.elements)
    assert len(Page(listing).all("script")) == len(Page(search).all("script")) == 1, "only the page's own"
    assert Page(detail).all("script") == []
    assert EVIL in Page(listing).text and EVIL in Page(detail).text and EVIL in Page(search).text
    [frame] = Page(detail).all("iframe")
    assert str(frame["srcdoc"]).endswith(EVIL)
    assert frame["sandbox"] == "allow-popups allow-popups-to-escape-sandbox", "scripts are not among what is allowed"


def test_policies(sandbox: Sandbox) -> None:
    listing, detail = get(sandbox, "/"), get(sandbox, f"/inbox/{send(sandbox)}")
    for response in (listing, detail, get(sandbox, "/inbox/nothing")):
        rules = policy(response)
        assert (rules["default-src"], rules["base-uri"], rules["frame-ancestors"]) == ("'none'",) * 3
        assert rules["img-src"] == "data:" and response.headers["x-content-type-options"] == "nosniff"
    [script] = Page(listing).all("script")
    assert policy(listing)["script-src"] == f"'nonce-{script['nonce']}'"
    assert policy(listing)["script-src"] != policy(get(sandbox, "/"))["script-src"], "a nonce is used once"
    assert "script-src" not in policy(detail), "no script at all beside a mail"


def test_style_sheet(sandbox: Sandbox) -> None:
    [sheet] = [link["href"] for link in Page(get(sandbox, "/")).all("link") if link["rel"] == "stylesheet"]
    answer = get(sandbox, str(sheet))
    assert answer.headers["content-type"].startswith("text/css") and "prefers-color-scheme: dark" in answer.text
