"""The pages in a real headless Chromium, offline: no error, no request, readable, and their controls work."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, chromium, contrast, sticking_out
from made_run import NASTY, made_evaluation, make_run, trial

from benchmarks.chromium import Chromium, Page
from mathrl.evaluation.paired import compare_evaluations
from mathrl.report.algorithm_page import write_page
from mathrl.report.evaluation_page import Result, write_results
from mathrl.report.run_page import write_report
from mathrl.report.run_record import read_run
from mathrl.report.runs_page import write_comparison

pytestmark = pytest.mark.browser
__all__ = ["chromium"]


def algorithms_on_one_budget() -> dict[str, Any]:
    """As ``mathrl compare`` without runs finds it."""
    right = [1] * 80 + [0] * 20
    return {
        "recipe": "quickstart", "budgets": {"tokens": 5000, "seconds": 4.0}, "problems": 100, "jobs": 2,
        "cores": 2, "device": "cpu", "settings": {"trpo": {"cg_iterations": 6}, "ppo": {}}, "seconds": 60.0,
        "versions": {"torch": "2"}, "reference": {"accuracy": 0.2, "ci95": [0.13, 0.29]},
        "trials": [trial(name, seed, right) for name in ("trpo", "ppo") for seed in range(2)],
    }  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "algorithms").mkdir()
    runs = [make_run(folder / "first"), make_run(folder / "second", level=0.5, steps=60)]
    unfinished = make_run(folder / "half", steps=17, finished=False)
    results = []
    for name, was, now in (("gsm8k", (0.35, 0.25, 0.02), (0.9, 0.7, 0.03)), ("svamp", (0.3,), (0.33,))):
        before = made_evaluation(was, n=90, k=4, seed=5, name=name)
        after = made_evaluation(now, n=90, k=4, seed=6, name=name)
        results.append(Result(after, before, compare_evaluations(before, after)))
    return {
        "report": write_report(runs[0]),
        "unfinished": write_report(unfinished),
        "evaluation": write_results(folder / "evaluation", "model", results, {"python": "3"}),
        "algorithms": write_page(folder / "algorithms", algorithms_on_one_budget()),
        "comparison": write_comparison([read_run(r) for r in (*runs, unfinished)], folder / "all.html"),
    }


@pytest.mark.parametrize("name", ["report", "unfinished", "evaluation", "comparison", "algorithms"])
def test_pages_open_offline_and_can_be_read(chromium: Chromium, pages: dict[str, Path], name: str) -> None:
    for width in WIDTHS:
        for dark in (False, True):
            page = chromium.open(pages[name], width=width, dark=dark)
            page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
            assert page.errors == []
            assert page.requests == []
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert sticking_out(page) == []
            assert contrast(page) == []
            assert page.evaluate("typeof window.leaked") == "undefined"
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(15, 20, 25)") is dark
            page.close()


def test_the_checks_of_this_file_see_faults(chromium: Chromium, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><p style='color:#aaa'>pale</p>"
        "<div style='width:900px'>wide</div><img src='https://example.org/a.png'>"
        "<script>console.error('told'); undefined_name()</script>"
    )
    page = chromium.open(bad, width=390)
    assert any("pale" in text for text in contrast(page))
    assert sticking_out(page)
    assert page.requests == ["https://example.org/a.png"]
    assert any("told" in e for e in page.errors)
    assert any("undefined_name" in e for e in page.errors)
    page.close()


def test_the_cursor_tells_a_charts_values(chromium: Chromium, pages: dict[str, Path]) -> None:
    page = chromium.open(pages["report"])
    chart = (
        "[...document.querySelectorAll('figure.chart')]"
        ".find((f) => f.querySelector('figcaption').textContent === 'Held-out accuracy')"
    )
    page.evaluate(f"{chart}.querySelector('svg').focus()")
    page.press("End")
    tip = f"{chart}.querySelector('.tip')?.textContent ?? ''"
    assert page.evaluate(tip).startswith("step: 40")
    page.press("ArrowLeft")
    assert page.evaluate(tip).startswith("step: 30")
    page.press("Escape")
    assert page.evaluate(tip) == ""
    page.evaluate(f"{chart}.scrollIntoView({{ block: 'center' }})")
    box = page.evaluate(f"{chart}.querySelector('svg').getBoundingClientRect().toJSON()")
    page.move_to(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.evaluate(tip).startswith("step: 20")
    assert page.errors == []
    page.close()


@pytest.fixture
def browsing(chromium: Chromium, pages: dict[str, Path]) -> Iterator[Page]:
    page = chromium.open(pages["evaluation"])
    yield page
    assert page.errors == []
    page.close()


def choose(page: Page, **filters: str) -> str:
    """Set filters and return what the page says of its list."""
    for name, value in filters.items():
        page.evaluate(
            f"(() => {{ const field = document.getElementById('filters').elements['{name}']; "
            f"field.value = {value!r}; field.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()"
        )
    return str(page.evaluate("document.getElementById('count').textContent"))


def shown(page: Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)"
    )
    return found


def test_filters_and_pages_of_the_list_of_completions(browsing: Page) -> None:
    page = browsing
    assert choose(page) == "900 completions of 180 problems, page 1 of 9"
    assert len(shown(page, "#items .item")) == 20
    first = shown(page, "#items .item .q")[0]
    page.evaluate("document.getElementById('next').click()")
    assert "page 2 of 9" in shown(page, "#count")[0]
    assert shown(page, "#items .item .q")[0] != first
    page.evaluate("document.getElementById('previous').click()")
    assert shown(page, "#items .item .q")[0] == first
    assert choose(page, set="1") == "450 completions of 90 problems, page 1 of 5"
    assert choose(page, kind="greedy") == "90 completions of 90 problems, page 1 of 5"
    assert set(shown(page, "#items article .chip")) <= {"correct", "wrong", "no answer"}
    choose(page, outcome="wrong")
    assert set(shown(page, "#items article:last-child .chip")) == {"wrong"}
    choose(page, outcome="", set="", kind="")
    choose(page, meta="num_steps: 3")
    assert all("num_steps: 3" in text for text in shown(page, "#items .chips"))
    choose(page, meta="", kind="truncated")
    assert all("cut off" in text for text in shown(page, "#items article:last-child small"))
    assert choose(page, kind="", text="buys 2 more. how many has he? <SCRIPT>").startswith(
        "10 completions of 2 "  # one problem in each benchmark
    )
    assert NASTY in shown(page, "#items .q")[0]
    assert choose(page, text="no such text") == "nothing fits these filters"


def test_changed_problems_show_both_completions(browsing: Page) -> None:
    choose(browsing, change="right", set="0")
    assert all("newly right" in text for text in shown(browsing, "#items .chips"))
    titles = shown(browsing, "#items .item:first-child header span:first-child")
    assert titles == ["greedy before", "greedy now", "sample 1", "sample 2", "sample 3", "sample 4"]
    verdicts = shown(browsing, "#items .item article:first-child .chip")
    assert set(verdicts) <= {"wrong", "no answer"}
    assert set(shown(browsing, "#items .item article:nth-child(2) .chip")) == {"correct"}
