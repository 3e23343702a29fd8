"""The run report: right numbers, nothing from outside, model text inert, unfinished and damaged runs."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import NASTY, make_run

from mathrl.errors import UserError
from mathrl.recipes import differences, load_recipe
from mathrl.report.doctor import diagnose
from mathrl.report.pages import embed
from mathrl.report.run_page import direction, evenly, render, write_report
from mathrl.report.run_record import RunRecord, read_run
from mathrl.report.training_charts import smoothed


class Page(HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._raw = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text.append(data)

    @property
    def words(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.text))


def page_of(run: Path) -> tuple[str, Page]:
    html = write_report(run).read_text(encoding="utf-8")
    return html, Page(html)


def test_the_report_says_what_the_files_say(made_run: Path) -> None:
    _, page = page_of(made_run)
    summary = json.loads((made_run / "summary.json").read_text())
    gain = 100 * summary["difference"]["value"]
    assert f"{gain:+.1f} points" in page.words
    before, after = summary["before"]["accuracy"], summary["after"]["accuracy"]
    assert f"{100 * before:.1f}\u202f% → {100 * after:.1f}\u202f%" in page.words
    newly_right = len(summary["difference"]["newly_right"])
    assert f"{newly_right} problems became right" in page.words
    for title in (
        "Reward",
        "KL to the reference",
        "Entropy",
        "Verdicts",
        "Time by phase",
        "Held-out accuracy",
    ):
        assert title in page.words
    assert "train.num_steps" in page.words
    assert "A demonstration" in page.words
    assert "has not finished" not in page.words


def test_what_a_run_does_not_have_is_not_drawn(made_run: Path) -> None:
    """Without a reference pass there is no divergence from it, and a model without thoughts ends none."""
    rows = [json.loads(line) for line in (made_run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["policy/kl_old"] = row["rollout/unfinished_thought_frac"] = 0.0
        del row["policy/kl_ref"]
    (made_run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, page = page_of(made_run)
    assert "KL to the reference" not in page.words
    assert "KL to the policy before the step" in page.words
    assert "Truncated completions" in page.words
    assert "thought unfinished" not in page.words
    rows[3]["rollout/unfinished_thought_frac"] = 0.1
    (made_run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "thought unfinished" in page_of(made_run)[1].words


def test_what_was_learned_is_told_apart_from_what_was_not(made_run: Path) -> None:
    _, page = page_of(made_run)
    kinds = re.findall(r"\b([123]) n = \d+, (learned|lost|no visible change)", page.words)
    assert kinds == [("1", "learned"), ("2", "learned"), ("3", "no visible change")] * 2


def test_watched_problems_are_shown_from_before_to_after(made_run: Path) -> None:
    html, _ = page_of(made_run)
    strips = html.split("The same problems over training")[1].split("<h2>")[0].split('class="strip"')[1:]
    labels = [re.findall(r"<header><span>(.*?)</span>", strip) for strip in strips]
    assert labels == [["before", "step 10", "step 20", "step 30", "step 40", "after"]] * 3
    before = read_run(made_run).evaluations["held_out", "before"].records[1].greedy.outcome
    assert f'class="chip {before}"' in strips[1].split("</article>")[0]


def test_what_the_rules_saw_stands_first_and_notes_are_small(made_run: Path, tmp_path: Path) -> None:
    html, page = page_of(made_run)
    assert "saw nothing wrong" in page.words
    lines = [json.loads(line) for line in (made_run / "metrics.jsonl").read_text().splitlines()]
    (made_run / "metrics.jsonl").write_text(
        "".join(json.dumps(row | {"reward/equal_frac": 1.0}) + "\n" for row in lines)
    )
    found = [f for f in diagnose(read_run(made_run).rows, read_run(made_run).config) if f.severity != "note"]
    assert found
    html, page = page_of(made_run)
    assert "saw nothing wrong" not in page.words
    assert all(f.text in page.words for f in found)
    assert html.index("What to look at") < html.index("What was learned")


def test_a_difference_that_chance_explains_has_no_direction() -> None:
    assert [direction(*ends) for ends in ((0.01, 0.2), (-0.2, -0.01), (-0.1, 0.1), (0.0, 0.2))] == [
        "up", "down", "", "",
    ]  # fmt: skip


def test_smoothed_curves_do_not_lean_on_zero() -> None:
    assert smoothed([3.0] * 6) == pytest.approx([3.0] * 6)
    assert smoothed([1.0, 0.0]) == pytest.approx([1.0, 0.85 / 1.85])  # of weight 0.85 · 0.15 and 0.15


def test_no_text_ends_the_script_that_holds_it() -> None:
    page = str(embed("data", {"text": "</script><script>alert(1)</script> & <b>"}))
    assert page.count("<") == 2  # of the element itself
    assert json.loads(page.split(">", 1)[1].rsplit("<", 1)[0])["text"].startswith("</script>")


def test_nothing_comes_from_outside(made_run: Path) -> None:
    html, page = page_of(made_run)
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form"), tag
        for name in ("src", "href", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value == "data:,", f"<{tag} {name}={value}>"
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", html)


def test_model_text_is_text(made_run: Path) -> None:
    html, page = page_of(made_run)
    assert "<script>window.leaked" not in html
    assert NASTY in "".join(page.text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1


def test_every_picture_is_described(made_run: Path) -> None:
    _, page = page_of(made_run)
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) >= 12
    assert all(p.get("role") == "img" and p.get("aria-label") for p in pictures)
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_a_run_under_way_is_reported_as_far_as_it_got(tmp_path: Path) -> None:
    _, page = page_of(make_run(tmp_path / "half", steps=17, finished=False))
    assert "This run has not finished: 17 of 40 steps are done" in page.words
    assert "points" not in page.words


def test_a_run_of_one_step_and_a_run_before_its_first(tmp_path: Path) -> None:
    _, page = page_of(make_run(tmp_path / "one", steps=1, finished=False))
    assert "1 of 40 steps" in page.words
    run = make_run(tmp_path / "none", steps=1, finished=False)
    (run / "metrics.jsonl").unlink()
    (run / "samples.jsonl").unlink()
    _, page = page_of(run)
    assert "0 of 40 steps" in page.words


def test_a_step_that_was_made_twice_counts_once(made_run: Path) -> None:
    with open(made_run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 40, "reward/mean": 0.125}) + "\n")
    run = read_run(made_run)
    assert len(run.rows) == 40
    assert run.column("reward/mean")[-1] == 0.125


def test_evaluations_by_other_protocols_are_not_compared(made_run: Path) -> None:
    path = made_run / "evaluations" / "after.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"kind": "plain"', '"kind": "chat"', 1))
    _, page = page_of(made_run)
    assert "cannot be compared" in page.words


def test_what_differs_from_the_recipe_is_listed(made_run: Path) -> None:
    html = render(read_run(made_run))
    changed = html.split("<h2>Configuration</h2>")[1].split("<details")[0]
    rows = [re.findall(r"<code>(.*?)</code>", row) for row in changed.split("<tr>")[2:]]
    expected = differences(read_run(made_run).config, load_recipe("quickstart"))
    assert [row[0] for row in rows] == list(expected)
    assert {"run.name", "run.seed"} <= set(expected)
    assert next(row for row in rows if row[0] == "run.seed")[1:] == ["0", "3"]


def test_other_folders_and_damaged_files_are_one_sentence(made_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(made_run, broken)
    (broken / "summary.json").write_text('{"before": ')
    with pytest.raises(UserError, match=r"summary.json: not JSON"):
        write_report(broken)
    (broken / "summary.json").unlink()
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    (broken / "metrics.jsonl").write_text("\n".join([lines[0], "{", *lines[2:]]))
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not JSON"):
        write_report(broken)
    assert not (broken / "report.html").exists()


def test_spread_keeps_both_ends() -> None:
    assert evenly(list(range(100)), 4) == [0, 33, 66, 99]
    assert evenly([1, 2], 4) == [1, 2]


def with_config(run: RunRecord, *overrides: tuple[str, str]) -> RunRecord:
    return replace(run, config=load_recipe("quickstart", list(overrides)))


def test_looks_are_told_with_the_number_of_problems_that_there_are(made_run: Path) -> None:
    run = read_run(made_run)
    for asked, told in (("2000", 500), ("100", 100)):
        html = render(with_config(run, ("evaluate.every_num_problems", asked)))
        assert re.findall(r"during training, n = (\d+)", html)[0] == str(told)


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("run.seed", "7", True),
        ("train.num_steps", "9", True),
        ("lora.rank", "8", True),
        ("data.path", "mine.jsonl", False),
        ("model.hidden_size", "64", False),
        ("algorithm.name", "rloo", False),
        ("sft.direct_answer_steps", "0", False),
    ],
)
def test_a_run_that_departs_from_a_recipe_does_not_carry_its_description(made_run, field, value, kept):
    run = with_config(read_run(made_run), (field, value))
    description = load_recipe("quickstart").description
    assert len(description) > 20
    assert (description in subtitle(render(run))) is kept
    own = replace(run, config=run.config.model_copy(update={"description": "My own words"}))
    assert "My own words" in subtitle(render(own))


def subtitle(html: str) -> str:
    return re.findall(r'<p class="sub">(.*?)</p>', html)[0]
