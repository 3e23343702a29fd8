"""What a page and the console say of a ranking by a reward model."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from mathrl.evaluation.ranking import Ranking
from mathrl.evaluation.result import Estimate, Evaluation
from mathrl.report import pages
from mathrl.report.charts import Series, line_chart
from mathrl.report.pages import percent


def sentences(ranking: Ranking) -> list[str]:
    """Each paired test in words, and how well right and wrong samples are told apart."""
    told = []
    for name, test in ranking.tests.items():
        low, high = (100 * edge for edge in test.ci95)
        word = "better" if low > 0 else "worse" if high < 0 else "no difference that chance could not explain"
        told.append(
            f"{name}: {100 * test.value:+.1f} points [{low:+.1f}, {high:+.1f}], "
            f"p {pages.p_value(test.p_value)}: {word}"
        )
    if ranking.pair_accuracy is not None:
        told.append(
            f"a right sample is above a wrong one of its problem in {_told(ranking.pair_accuracy)} of the "
            f"pairs, over the {ranking.num_mixed:,} problems that have both"
        )
    return told


def _told(e: Estimate) -> str:
    return f"{percent(e.value)} [{100 * e.ci95.low:.1f}, {100 * e.ci95.high:.1f}]"


def facts(ranking: Ranking) -> list[tuple[str, str]]:
    """Names and values at the largest k."""
    k = max(ranking.best_at_k)
    return [
        (f"best@{k}", _told(ranking.best_at_k[k])),
        (f"weighted maj@{k}", _told(ranking.weighted_at_k[k])),
    ]


def lines(ranking: Ranking) -> list[str]:
    """The same and the tests, for the console."""
    values = ", ".join(f"{name} {value}" for name, value in facts(ranking))
    return [f"ranked by {ranking.model}: {values}", *(f"  {told}" for told in sentences(ranking))]


def curves(evaluation: Evaluation, ranking: Ranking | None) -> list[Markup]:
    """pass@k and maj@k over k, and best-of-k and weighted majority where samples were ranked."""
    if evaluation.k < 2:
        return []
    named = [("pass@k", evaluation.pass_at_k), ("maj@k", evaluation.maj_at_k)]
    note = "pass@k: one of k samples is right. maj@k: the most frequent answer is."
    if ranking is not None:
        named += [("best@k", dict(ranking.best_at_k)), ("weighted maj@k", dict(ranking.weighted_at_k))]
        note += " best@k: the sample with the highest score is. Weighted: votes count exp(score)."
    greedy = Series("greedy", [1, evaluation.k], [evaluation.accuracy] * 2, colour="c4")
    return [
        line_chart(
            "Measures of k samples" if ranking else "pass@k and maj@k",
            [*map(_series, named), greedy],
            note=f"{note} Bands: 95 %.",
            show=percent,
            x_label="k",
            log_x=True,
            y_range=(0.0, None),
        )
    ]


def _series(named: tuple[str, dict[int, Estimate]]) -> Series:
    name, table = named
    estimates: Sequence[Estimate] = list(table.values())
    return Series(
        name,
        list(table),
        [e.value for e in estimates],
        [e.ci95.low for e in estimates],
        [e.ci95.high for e in estimates],
        dots=True,
    )
