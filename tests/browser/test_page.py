"""What the page shows and how it can be used: plots, tables, dark and light, a phone, a keyboard, a screen reader."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
TABS = ("", "/devices", "/privacy", "/models", "/events", "/settings")


def test_the_list_leads_to_a_run_and_its_figures_are_those_of_the_log(base: str, open_page: Any) -> None:
    page = open_page(base).go("")
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="over", exact=True))
    expect(row).to_contain_text("Finished")
    expect(row).to_contain_text("5 / 20")
    page.get_by_role("link", name="over", exact=True).click()
    expect(page.get_by_role("heading", name=re.compile("^over"), level=1)).to_be_visible()
    facts = page.locator(".run-head dl").inner_text()
    up = sum(40_000 + 900 * (n % 5) for n in range(1, 6))
    assert f"{up / 1000:.0f} kB" in facts
    assert f"{5 * 61_000 / 1000:.0f} kB" in facts


@pytest.mark.usefixtures("plots")
def test_every_plot_of_a_run_is_drawn_in_its_curves_colours(base: str, open_page: Any) -> None:
    opened = open_page(base)
    opened.watch.allowed.append("willReadFrequently")  # this test's own doing
    page = opened.go("#/runs/private")
    expect(page.locator(".plot canvas")).to_have_count(6)
    for plot in page.locator(".plot").all():
        expect(plot.locator("canvas")).to_be_visible()
        for key in plot.locator(".key").all():
            assert pixels(plot, key) > 60, plot.locator("h3").inner_text()


def pixels(plot: Locator, key: Locator) -> int:
    """How many of a canvas have the colour of a curve's key."""
    colour = key.evaluate("node => getComputedStyle(node).color")
    wanted = [int(part) for part in re.findall(r"\d+", colour)[:3]]
    return int(
        plot.locator("canvas").evaluate(
            """(canvas, wanted) => {
              const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
              let found = 0;
              for (let i = 0; i < data.length; i += 4)
                if (data[i + 3] > 200 && wanted.every((part, k) => Math.abs(part - data[i + k]) < 12)) found += 1;
              return found;
            }""",
            wanted,
        )
    )


@pytest.mark.usefixtures("plots")
def test_a_plot_is_read_with_arrow_keys_and_as_a_table(base: str, open_page: Any) -> None:
    page = open_page(base).go("#/runs/over")
    plot = page.locator(".plot").filter(has=page.get_by_role("heading", name="Accuracy"))
    canvas = plot.get_by_role("img")
    expect(canvas).to_have_accessible_name(re.compile(r"Accuracy, 5 points\. Float32 from .* % to .* %"))
    canvas.focus()
    page.keyboard.press("Home")
    expect(plot.locator(".at")).to_have_text("round 1")
    page.keyboard.press("ArrowRight")
    expect(plot.locator(".at")).to_have_text("round 2")
    plot.get_by_role("button").click()
    expect(plot.get_by_role("row")).to_have_count(6)
    shown = plot.get_by_role("row").nth(1).inner_text().split("\t")
    assert shown == ["5", f"{100 * 0.97 - 80 * 2.718281828**-1:.1f} %"]


def test_without_the_library_the_page_shows_tables_and_says_how_to_get_it(base: str, open_page: Any) -> None:
    opened = open_page(base)
    opened.watch.allowed.append("404")
    opened.page.route("**/vendor/**", lambda route: route.fulfill(status=404))
    page = opened.go("#/runs/over")
    expect(page.get_by_text("make charts")).to_be_visible()
    expect(page.get_by_role("table", name="Accuracy").get_by_role("row")).to_have_count(6)
    assert page.locator("canvas").count() == 0


def test_the_round_in_progress_is_told_against_its_goal(base: str, open_page: Any) -> None:
    page = open_page(base).go("#/runs/fleet")
    expect(page.get_by_role("heading", name=re.compile("Round 13 in progress"))).to_be_visible()
    expect(page.get_by_role("img", name="Of 13 asked: 6 received, 1 late, 1 dropped, 5 waiting")).to_be_visible()
    expect(page.locator(".steps")).to_contain_text("6 received of 10 wanted")
    expect(page.get_by_text("until the deadline")).to_be_visible()
    expect(page.get_by_text("a warning to read")).to_be_visible()


def test_devices_are_sorted_filtered_and_paged_by_the_server(base: str, open_page: Any) -> None:
    page = open_page(base).go("#/runs/fleet/devices")
    rows = page.get_by_role("table", name="Devices of this run").locator("tbody tr")
    expect(rows).to_have_count(100)
    expect(rows.first).to_contain_text("pi-00000")
    page.get_by_role("button", name="Last", exact=True).click()
    expect(rows).to_have_count(50)
    page.get_by_role("button", name="Memory").click()
    expect(page.get_by_role("columnheader", name="Memory")).to_have_attribute("aria-sort", "descending")
    expect(rows.first).to_contain_text("pi-00249")
    page.get_by_label("Filter").fill("pi-0001")
    expect(rows).to_have_count(10)
    page.get_by_label("Show").select_option("May not train")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("on battery")


def test_the_budget_is_shown_with_its_limit(base: str, open_page: Any) -> None:
    page = open_page(base).go("#/runs/private/privacy")
    expect(page.locator(".run-body dl")).to_contain_text("7 of 8")
    expect(page.locator(".run-body dl")).to_contain_text("87.5 %")
    page.goto(f"{base}#/runs/over/privacy")
    expect(page.get_by_text("no differential privacy: there is no epsilon")).to_be_visible()


def test_the_log_is_filtered_by_kind_and_by_text(base: str, open_page: Any) -> None:
    page = open_page(base).go("#/runs/fleet/events")
    lines = page.locator(".log li:visible")
    page.get_by_label("Kind").select_option("Round closed")
    expect(lines).to_have_count(12)
    page.get_by_label("Filter").fill("round 12")
    expect(lines).to_have_count(1)
    page.get_by_label("Filter").fill("nothing like it")
    expect(page.get_by_text("No such event.")).to_be_visible()


def test_versions_and_a_roll_out_are_shown_and_a_viewer_gets_no_buttons(base: str, open_page: Any) -> None:
    page = open_page(base).go("#/runs/fleet/models")
    expect(page.get_by_role("table", name="Stages of the roll-out")).to_contain_text("7 of 10")
    expect(page.get_by_role("table", name="Versions of the model")).to_contain_text("current")
    assert page.get_by_role("button", name=re.compile("Halt|Approve|Stop")).count() == 0


def test_two_runs_are_compared_curve_by_curve_and_setting_by_setting(base: str, open_page: Any) -> None:
    page = open_page(base).go("#/compare?a=over&b=private")
    differing = page.get_by_role("table", name="Settings that differ").locator("tbody th")
    expect(differing.first).to_be_visible()
    assert set(differing.all_inner_texts()) == {
        "privacy.delta",
        "privacy.epsilon",
        "secure.enabled",
        "train.optimizer.lr",
    }
    expect(page.get_by_role("heading", name="Accuracy")).to_be_visible()
    page.get_by_label("Second run").select_option("fleet")
    expect(page).to_have_url(re.compile("b=fleet"))


def test_what_clients_say_is_text_and_never_markup(base: str, open_page: Any) -> None:
    opened = open_page(base)
    for place in ("#/", *(f"#/runs/hostile{tab}" for tab in TABS), "#/compare?a=hostile&b=over"):
        page = opened.go(place)
        settled(page)
        expect(page.locator("main").get_by_text("window.pwned").first).to_be_attached()
        assert page.evaluate("window.pwned") is None, place
        assert page.locator("main script, main img").count() == 0, place


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(base: str, open_page: Any, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: contrast of 4.5, or 3 for large text."""
    opened = open_page(base, scheme=scheme)
    for place in ("#/", *(f"#/runs/fleet{tab}" for tab in TABS), "#/runs/hostile", "#/compare?a=over&b=private"):
        page = opened.go(place)
        settled(page)
        found = page.evaluate(CONTRAST)
        assert found["seen"] > 20, place
        assert found["faint"] == [], place


def test_structure_and_names_are_there_for_a_screen_reader(base: str, open_page: Any) -> None:
    opened = open_page(base)
    opened.watch.allowed.append("404")
    for place in ("#/", *(f"#/runs/fleet{tab}" for tab in TABS), "#/compare?a=over&b=private", "#/runs/none"):
        page = opened.go(place)
        settled(page)
        levels = [int(tag[1]) for tag in each(page, "h1, h2, h3, h4, h5, h6", "one.tagName")]
        assert (levels[0], levels.count(1)) == (1, 1), place
        assert all(after <= before + 1 for before, after in pairwise(levels)), (place, levels)
        expect(page.get_by_role("banner")).to_have_count(1)
        expect(page.get_by_role("main")).to_have_count(1)
        assert all(each(page, "table", "Boolean(one.caption?.textContent)")), place
        ids = each(page, "[id]", "one.id")
        assert len(ids) == len(set(ids)), place
        assert [node for node in controls(page) if not node["name"]] == [], place


def each(page: Page, selector: str, told: str) -> list[Any]:
    """Something of every such element, hidden ones left out."""
    visible = f"[...document.querySelectorAll('{selector}')].filter((one) => one.checkVisibility() || one.id)"
    return list(page.evaluate(f"{visible}.map((one) => {told})"))


def controls(page: Page) -> list[dict[str, str]]:
    """Whatever can be operated, and images, by role and name, as Chromium tells assistive technology."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "link",
        "textbox",
        "searchbox",
        "combobox",
        "checkbox",
        "image",
        "img",
        "region",
        "navigation",
        "table",
    }
    found = [
        {"role": node["role"]["value"], "name": str(node.get("name", {}).get("value", "")).strip()}
        for node in tree
        if not node.get("ignored") and node.get("role", {}).get("value") in roles
    ]
    assert len(found) >= 4
    return found


def test_nothing_is_wider_than_a_small_phone(base: str, open_page: Any) -> None:
    opened = open_page(base, width=360, height=740)
    runs = (f"#/runs/{run}{tab}" for run in ("fleet", "hostile") for tab in TABS)
    for place in ("#/", *runs, "#/compare?a=fleet&b=hostile"):
        page = opened.go(place)
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, place


def test_dark_and_light_follow_the_system_and_the_choice_is_remembered(base: str, open_page: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page = open_page(base, scheme="dark").go("")
    dark = page.evaluate(ground)
    toggle = page.get_by_role("button", name=re.compile("Theme"))
    expect(toggle).to_have_accessible_name("Theme: auto. Switch to light")
    toggle.click()
    light = page.evaluate(ground)
    assert brightness(dark) < 60 < 200 < brightness(light)
    page.reload()
    assert page.evaluate(ground) == light
    expect(toggle).to_have_accessible_name("Theme: light. Switch to dark")
    toggle.click()
    assert page.evaluate(ground) == dark


def brightness(colour: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_the_page_is_used_with_a_keyboard_alone(base: str, open_page: Any) -> None:
    page = open_page(base).go("")
    expect(page.get_by_role("link", name="over", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    tab_to(page, page.get_by_role("link", name="over", exact=True))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=re.compile("^over"))).to_be_visible()
    tab_to(page, page.get_by_role("link", name="Devices"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Devices")).to_be_visible()
    page.goto(f"{base}#/runs/fleet/devices")
    button = page.get_by_role("button", name="Rounds")
    expect(button).to_be_visible()
    tab_to(page, button)
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="Rounds")).to_have_attribute("aria-sort", "descending")
    expect(button).to_be_focused()  # though the table was drawn anew


def tab_to(page: Page, wanted: Locator) -> None:
    """Press Tab until that has the focus, which must show."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("node => node === document.activeElement"):
            assert wanted.evaluate("node => getComputedStyle(node).outlineStyle") != "none"
            return
    raise AssertionError("cannot be reached with Tab")


def test_an_empty_folder_and_a_missing_run_say_so(base: str, open_page: Any, serve: Any, tmp_path: Path) -> None:
    page = open_page(serve(tmp_path).base).go("")
    expect(page.get_by_role("heading", name="No runs here yet")).to_be_visible()
    opened = open_page(base)
    opened.watch.allowed.append("404")
    expect(opened.go("#/runs/nobody").get_by_role("alert")).to_contain_text("There is no run named nobody")
    expect(opened.go("#/elsewhere").get_by_role("heading", name="No such page")).to_be_visible()


def settled(page: Page) -> None:
    """The view is there, and what it asked for has come."""
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator(".waiting")).to_have_count(0)
    expect(page.locator("main")).to_have_text(re.compile(".{40}", re.DOTALL))
