"""The page of a report: complete, harmless whatever texts and names hold, and, in a real browser, alive."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report.conftest import make_searches

from mv2v_jax.alignment.score import CALIBRATION
from mv2v_jax.cli.report_page import Files, make_heading
from mv2v_jax.report.page import Texts, render_page

pytest.importorskip("bokeh", reason='a report needs bokeh: pip install "mv2v_jax[report]"')
from mv2v_jax.report.pictures import aligned_from

EVIL = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'> $$x$$ \"'&"
FACTS = {"verdict": "aligned", "reason": "restarts_agree_at_every_scale", "confidence": 0.99, "estimated_top1": 0.7}


def files(name="map.safetensors"):
    return Files(x="x.npy", y="y.npy", map=Path(name))


def page(case, texts=Texts(None, None), facts=FACTS, name="map.safetensors"):  # noqa: B008
    heading = make_heading(facts, case.measured, case.searches, files(name))
    return render_page(heading, case.measured, case.searches, texts)


class Loads(HTMLParser):
    """Everything outside that a page would load, and its number of scripts."""

    def __init__(self):
        super().__init__()
        self.found, self.scripts, self.images = [], 0, 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.images += tag == "img"
        self.found += [value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")]


def loads_of(text):
    parser = Loads()
    parser.feed(text)
    return parser


def test_texts_and_names_of_users_become_no_markup(cases):
    plain = loads_of(page(cases["right"]))
    texts = Texts([EVIL] * 900, [f"{EVIL} wine"] * 800)
    hostile = loads_of(page(cases["right"], texts, {**FACTS, "preset": EVIL}, name=EVIL))
    assert (hostile.scripts, hostile.images) == (plain.scripts, 0)
    assert plain.found == hostile.found == []


def test_the_table_holds_every_row_with_its_texts(cases):
    texts = Texts([f"source {row}" for row in range(900)], [f"target {row}" for row in range(800)])
    text = page(cases["right"], texts)
    rows = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    measured = cases["right"].measured
    assert [row["row"] for row in rows] == measured.rows.tolist()
    for row, nearest in zip(rows, measured.nearest, strict=True):
        assert row["text"] == f"source {row['row']}"
        assert [near["text"] for near in row["near"]] == [f"target {other}" for other in nearest]


def test_what_was_not_given_is_said(cases):
    case = cases["right"]
    alone = case.measured._replace(agreement=None, confirmed=None, ranks=None, ranks_back=None)
    text = render_page(make_heading({}, alone, case.searches, files()), alone, case.searches, Texts(None, None))
    assert "Agreement is unknown, because there is a single search" in text
    assert "are 3 new searches of these rows" in text
    assert "holds no verdict" in text
    assert "Rows by their numbers" in text
    assert "Rank of the true partner" not in text


def test_settings_of_the_fit_are_listed(cases):
    text = page(
        cases["right"],
        facts={**FACTS, "config": {"max_rows": 5000, "anchors": {"num_sets": 12, "power": 0.25, "used": True}}},
    )
    for name, value in (
        ("max_rows", "5,000"),
        ("anchors.num_sets", "12"),
        ("anchors.power", "0.25"),
        ("anchors.used", "true"),
    ):
        assert f"<tr><th>{name}</th><td>{value}</td></tr>" in text
    case = cases["right"]
    for config in (None, "none", [1]):
        assert not make_heading({**FACTS, "config": config}, case.measured, case.searches, files()).settings


@pytest.mark.parametrize(
    ("verdict", "name", "light"),
    [
        ("aligned", "right", "green"),
        ("aligned", "wrong", "amber"),
        ("uncertain", "right", "amber"),
        ("not_aligned", "right", "red"),
        (None, "right", "grey"),
    ],
)
def test_the_light_is_green_only_if_the_searches_confirm_the_verdict(verdict, name, light, cases):
    case = cases[name]
    facts = {**FACTS, "reason": "geometries_differ", "verdict": verdict} if verdict else {}
    heading = make_heading(facts, case.measured, case.searches, files())
    assert heading.light == light
    assert bool(heading.estimates) == (light == "green")
    is_confirmed = case.measured.confirmed >= CALIBRATION.agreement_midpoint
    assert any("do not confirm" in caution for caution in heading.cautions) != is_confirmed


def test_another_map_that_all_searches_find_is_named(cases):
    case = cases["wrong"]
    heading = make_heading(FACTS, case.measured, make_searches([np.eye(10, 8)] * 3), files())
    assert "They found another map" in heading.cautions[0]
    assert "too few rows" in make_heading(FACTS, case.measured, case.searches, files()).cautions[0]


def test_a_map_that_searches_confirm_in_part_is_not_called_another(cases):
    """As of searches of some of the rows that the map was fitted on, which agree with each other."""
    case = cases["right"]
    heading = make_heading(FACTS, case.measured._replace(confirmed=0.4), case.searches, files())
    assert (heading.light, heading.word) == ("amber", "Aligned by its file, confirmed here in part")
    assert "confirm the map in part: they agree with it by 0.40, and 0.45 is needed" in heading.cautions[0]


def test_the_line_on_a_ruler_is_where_the_judge_says_aligned(cases):
    lines = aligned_from(cases["right"].searches.best_evidence())
    assert all(0.05 < line < 0.3 for line in lines)
    # The finest scale is judged by its share of the second, too.
    far = make_searches([np.eye(10, 8)], closeness=0.9).best_evidence()
    assert aligned_from(far)[-1] > lines[-1]


# ------------------------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser by playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed, in which the page is tested")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, cases, tmp_path):
    """The page of the right map with hostile texts, open and offline; complaints of the browser are errors."""
    texts = Texts([f"source {row} {EVIL}" for row in range(900)], [f"target {row} {EVIL}" for row in range(800)])
    path = tmp_path / "report.html"
    path.write_text(page(cases["right"], texts, name=EVIL), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True)
    tab, complaints, requests = context.new_page(), [], []
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    tab.wait_for_selector("#rows tbody tr")
    tab.wait_for_function("Bokeh.documents.some((one) => one.get_model_by_name('cloud_x'))")
    tab.wait_for_timeout(500)
    yield tab
    assert complaints == []
    assert requests == [path.as_uri()]
    assert tab.evaluate("window.hacked") is None
    context.close()


@pytest.mark.slow
def test_the_switch_exchanges_the_clouds(opened):
    read = "Array.from(Bokeh.documents.map((o) => o.get_model_by_name('cloud_x')).find(Boolean).data['%s'])"
    for name in ("null", "before", "after"):
        opened.click(f"#switch [data-cloud={name}]")
        assert opened.evaluate(read % "now_0") == opened.evaluate(read % f"{name}_0")
        assert opened.get_attribute(f"#switch [data-cloud={name}]", "aria-checked") == "true"
    assert opened.evaluate(read % "null_0") != opened.evaluate(read % "after_0")


@pytest.mark.slow
def test_the_lasso_filters_the_table(opened, cases):
    figures = [box for box in opened.query_selector_all(".bk-events") if box.bounding_box()["height"] > 300]
    figures[0].scroll_into_view_if_needed()
    opened.wait_for_timeout(1_000)
    box = figures[0].bounding_box()
    corners = [(0.3, 0.3), (0.7, 0.3), (0.7, 0.7), (0.3, 0.7), (0.3, 0.3)]
    places = [(box["x"] + box["width"] * across, box["y"] + box["height"] * down) for across, down in corners]
    opened.mouse.move(*places[0])
    opened.mouse.down()
    for place in places[1:]:
        opened.mouse.move(*place, steps=8)
    opened.mouse.up()
    source = "Bokeh.documents.map((o) => o.get_model_by_name('cloud_x')).find(Boolean)"
    opened.wait_for_function(f"{source}.selected.indices.length > 0")
    chosen = opened.evaluate(f"Array.from({source}.selected.indices)")
    assert 0 < len(chosen) < len(cases["right"].measured.rows)
    shown = [int(line.get_attribute("data-row")) for line in opened.query_selector_all("#rows tbody tr")]
    assert shown == cases["right"].measured.rows[chosen][:50].tolist()


@pytest.mark.slow
def test_reading_becomes_a_precision_with_an_interval(opened):
    for place in range(20):
        name = "wrong" if place < 5 else "right"
        opened.click(f"#rows tbody tr:nth-child({place + 1}) button.{name}")
    # Wilson's interval of 15 in 20, from statsmodels: 0.531 to 0.888.
    assert opened.inner_text("#precision") == (
        "Precision: 75 % of 20 judged random rows are right (95 % interval: 53 to 89 %)."
    )
    opened.click("#tabs [data-view=surest]")
    assert len(opened.query_selector_all("#rows tbody tr")) == 10
    opened.click("#rows tbody tr:nth-child(1) button.wrong")
    opened.click("#tabs [data-view=random]")
    assert "of 20 judged random rows" in opened.inner_text("#precision")


@pytest.mark.slow
def test_the_search_box_finds_rows(opened, cases):
    row = int(cases["right"].measured.rows[7])
    opened.fill("#search", f"source {row} ")
    assert [line.get_attribute("data-row") for line in opened.query_selector_all("#rows tbody tr")] == [str(row)]
    assert EVIL in opened.inner_text("#rows tbody tr td")
