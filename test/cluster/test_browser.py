# ruff: noqa: E501
"""The pages in a real browser: what people click in a mail, and the dashboard on a phone and on a desk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from playwright.sync_api import Browser, Page, expect, sync_playwright

from activation.sandbox import Sandbox
from harness import Database
from loops import tick
from test_fastapi import Site, make_app, prepare
from web import address, app_role, serving

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's own; it is the server that these tests do not trust, not the pages."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def site(db: Database, sandbox: Sandbox) -> Iterator[Site]:
    prepare(db, sandbox)
    with app_role(db) as role:
        app = make_app(db, role)
        with serving(app) as url:
            db.sql("SELECT activation.configure(public_url => %s)", f"{url}/activation")
            yield Site(url, db, sandbox, app)


def look(page: Page, name: str) -> None:
    """Keep a picture for whoever asks: SCREENSHOTS=folder make test T=test/cluster/test_browser.py."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_unsubscribing_from_a_mail_as_the_inbox_shows_it(site: Site, browser: Browser, sandbox: Sandbox) -> None:
    site.nudge("ada")
    page = browser.new_page()
    page.goto(sandbox.url)
    page.get_by_text("ada@acme.dev").first.click()
    with page.expect_popup() as popup:
        page.frame_locator("iframe").first.get_by_role("link", name=re.compile("nsubscribe")).click()
    opened = popup.value
    expect(opened.get_by_role("heading", name="Mail from Acme")).to_be_visible()
    assert site.db.value("SELECT count(*) FROM activation.consent") == 0
    look(opened, "unsubscribe")
    opened.get_by_role("button", name="mails like this one").click()
    expect(opened.get_by_role("heading", name="You are unsubscribed")).to_be_visible()
    assert site.db.sql("SELECT user_id, topic, subscribed FROM activation.consent") == [("ada", "onboarding", False)]
    # And back: it was a mistake.
    opened.get_by_role("link", name="Choose which mails you get").click()
    box = opened.get_by_role("checkbox", name="onboarding")
    expect(box).not_to_be_checked()
    box.focus()
    opened.keyboard.press("Space")
    look(opened, "preferences")
    opened.keyboard.press("Tab")
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    expect(opened.get_by_text("Saved")).to_be_visible()
    expect(opened.get_by_role("checkbox", name="onboarding")).to_be_checked()
    assert site.db.sql("SELECT topic, subscribed FROM activation.consent") == [("onboarding", True)]
    page.close()


def fill(site: Site) -> None:
    """A loop with a past: weeks of people, of whom some have acted, a holdout, and mails that went wrong."""
    site.db.sql(
        "SELECT activation.define_loop('onboarding', opinion => 'Whoever has a project in the first days stays',"
        " trigger => activation.on_insert('users'), holdout => 0.3,"
        " goal => activation.query('SELECT FROM actions WHERE user_id = $1'), steps => ARRAY["
        " activation.step('welcome', action => activation.email('activation_welcome')),"
        " activation.step('first_project', delay => '1 hour', action => activation.email('milestone'), otherwise => activation.email('activation_nudge'),"
        "   condition => activation.query('SELECT FROM actions WHERE user_id = $1', timeout => '3 days'))])"
    )
    site.db.sql(
        "INSERT INTO activation.enrollment (loop_id, version, user_id, state, step, enrolled_at, created_at, activated_at, decided_at, holdout, newest_template_id)"
        " SELECT l.loop_id, 1, 'old' || g, 'completed', 2, e.at, e.at, CASE WHEN g % 5 < 2 OR g % 5 = 2 AND g % 10 < 7 THEN e.at + g * interval '10 minutes' END, e.at, g % 10 >= 7, 0"
        " FROM activation.loop l, generate_series(1, 300) g, LATERAL (SELECT now() - g * interval '6 hours') e(at) WHERE l.name = 'onboarding'"
    )
    site.sandbox.fail("status", status=422, name="validation_error", message=HOSTILE, times=1)
    site.sign_up("x" * 60, HOSTILE)
    tick(site.db)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("state", ["empty", "filled"])
def test_the_dashboard(site: Site, browser: Browser, state: str, theme: str, width: int) -> None:
    if state == "filled":
        fill(site)
    else:
        site.db.sql("SELECT activation.archive_loop('first')")
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=theme, extra_http_headers={"x-token": "right"}
    )  # type: ignore[arg-type]
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"{site.url}/activation/")
    look(page, f"dashboard-{state}-{theme}-{width}")
    assert not [url for url in asked if not url.startswith((site.url, "data:"))]
    assert not said
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.get_by_text("Live: mail goes to real people")).to_be_in_viewport()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (theme == "light")
    if state == "empty":
        expect(page.get_by_role("heading", name="There is no loop yet")).to_be_visible()
        expect(page.get_by_role("heading", name="Activation flow")).to_be_visible()
    else:
        expect(page.get_by_role("row", name=re.compile("^Enrolled 302 "))).to_be_visible()
        assert page.title() != "owned"
        # By keyboard alone, from the top to somebody's timeline.
        page.get_by_role("link", name="x" * 60).or_(page.get_by_role("link", name="<script>")).first.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="User")).to_be_visible()
        assert page.title() != "owned"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        look(page, f"person-{theme}-{width}")
        page.get_by_role("link", name="Dashboard").click()
        page.get_by_label("User").fill("old7")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="User old7")).to_be_visible()
        page.get_by_role("link", name="Dashboard").click()
        expect(page.get_by_role("heading", name="onboarding")).to_be_visible()
    context.close()


def test_the_report_is_one_file(site: Site, browser: Browser, tmp_path: Path, live_report: str) -> None:
    """As psql writes it; opened from the disk it asks for nothing, and shows the same."""
    file = tmp_path / "report.html"
    file.write_text(live_report)
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    expect(page.get_by_role("heading", name="onboarding")).to_be_visible()
    expect(page.get_by_role("table").first).to_be_visible()
    expect(page.get_by_role("link", name="x" * 60)).to_have_count(0)
    look(page, "report")
    page.close()


@pytest.fixture
def live_report(site: Site) -> str:
    fill(site)
    return site.db.psql("SELECT activation.report()")


def test_a_mode_that_is_not_live_is_unmissable(browser: Browser, site: Site) -> None:
    for call, heading in (
        ("set_mode('capture')", "Capture: nothing leaves"),
        ("set_mode('redirect', redirect_to => 'me@acme.dev')", "Redirect: mail goes to one address"),
    ):
        site.db.sql(f"SELECT activation.{call}")
        context = browser.new_context(viewport={"width": 360, "height": 640}, extra_http_headers={"x-token": "right"})
        page = context.new_page()
        page.goto(f"{site.url}/activation/")
        expect(page.get_by_text(heading)).to_be_in_viewport()
        context.close()


def test_the_whole_circle(db: Database, sandbox: Sandbox, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example app: sign up, act, the mail in the inbox, its link, unsubscribe, and the dashboard has moved."""
    from fastapi_app.main import app

    migrations = Config(Path(__file__).parents[2] / "examples" / "fastapi_app" / "alembic.ini")
    monkeypatch.setenv("DATABASE_URL", address(db))
    command.upgrade(migrations, "head")
    monkeypatch.setenv("DATABASE_URL", address(db, "example_app"))
    monkeypatch.setenv("OPERATOR_PASSWORD", "secret")
    with serving(app) as url:
        monkeypatch.setenv("APP_URL", url)
        db.sql("SELECT activation.configure(public_url => %s, resend_url => %s)", f"{url}/activation", sandbox.url)
        db.sql("SELECT activation.set_mode('live')")
        context = browser.new_context(http_credentials={"username": "me", "password": "secret"})
        page = context.new_page()
        page.goto(f"{url}/start")
        page.get_by_label("Name", exact=True).fill("Ada")
        page.get_by_label("Email").fill("ada@acme.dev")
        page.get_by_label("Password").fill("correct horse battery")
        page.get_by_role("button", name="Sign up").click()
        expect(page.get_by_text("Welcome.")).to_be_visible()
        tick(db)
        assert sandbox.emails == []
        dashboard = context.new_page()
        dashboard.goto(f"{url}/activation/")
        expect(dashboard.get_by_role("row", name="Activated 0 0 %")).to_be_visible()

        page.get_by_label("Name of a project").fill("Engine")
        page.get_by_role("button", name="Create project").click()
        expect(page.get_by_text("Created.")).to_be_visible()
        tick(db)
        inbox = context.new_page()
        inbox.goto(sandbox.url)
        inbox.get_by_text("ada@acme.dev").first.click()
        mail = inbox.frame_locator("iframe").first
        look(inbox, "mail")
        with inbox.expect_popup() as popup:
            mail.get_by_role("link").first.click()
        expect(popup.value.get_by_role("heading", name="Example app")).to_be_visible()
        with inbox.expect_popup() as popup:
            mail.get_by_role("link", name=re.compile("nsubscribe")).click()
        popup.value.get_by_role("button", name="mails like this one").click()
        expect(popup.value.get_by_role("heading", name="You are unsubscribed")).to_be_visible()
        dashboard.reload()
        expect(dashboard.get_by_role("row", name="Activated 1 100 %")).to_be_visible()
        expect(dashboard.get_by_role("row", name=re.compile("^activation_welcome 1"))).to_be_visible()
        assert db.value("SELECT bool_or(subscribed) FROM activation.preferences('1')") is False
        context.close()
    db.sql("DROP OWNED BY example_app; DROP ROLE example_app")
