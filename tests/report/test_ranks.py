"""The report's table of ranks: whose seconds, and who waited for whom."""

import json

from mathrl.report.ranks import rank_table
from mathrl.report.run_page import write_report
from mathrl.report.run_record import read_run


def with_ranks(run, *steps):
    rows = [{"step": step, "ranks": ranks} for step, ranks in enumerate(steps, start=1)]
    (run / "ranks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def seconds(rollout: float, wait: float) -> dict[str, float]:
    return {"rollout": rollout, "update": 1.0, "reduce": 0.25, "gather": 0.125, "agree": 0.125, "wait": wait}


def test_a_row_a_rank_and_a_sentence(made_run):
    first = [seconds(9.0, 0.0), seconds(9.0, 0.0)]  # it starts things, and is left out
    run = with_ranks(
        made_run, first, [seconds(1.5, 1.0), seconds(2.5, 0.0)], [seconds(0.5, 2.0), seconds(2.5, 0.0)]
    )
    table = rank_table(read_run(run))
    assert table["header"] == ["rank", "rollout", "update", "reduce", "gather", "agree", "wait", "step"]
    assert table["rows"] == [
        ["0", "1.000", "1.000", "0.250", "0.125", "0.125", "1.500", "4.000"],
        ["1", "2.500", "1.000", "0.250", "0.125", "0.125", "0.000", "4.000"],
    ]
    assert "68.8\u202f% of a step's 4.00 s" in table["told"]  # (2 + 3.5) / 2 of 4
    assert "waited 18.8\u202f%" in table["told"]
    assert "for rank 1" in table["told"]
    assert table["told"] in write_report(run).read_text().replace("&#39;", "'")


def test_a_run_of_one_process_has_none(made_run):
    assert rank_table(read_run(made_run)) is None
    assert "<h2>Ranks</h2>" not in write_report(made_run).read_text()


def test_a_run_that_went_on_with_fewer_ranks_is_told_of_by_these(made_run):
    three = [seconds(1.0, 0.0)] * 3
    run = with_ranks(made_run, three, three, [seconds(2.0, 0.0)] * 2, [seconds(4.0, 0.0)] * 2)
    assert [row[1] for row in rank_table(read_run(run))["rows"]] == ["4.000", "4.000"]
