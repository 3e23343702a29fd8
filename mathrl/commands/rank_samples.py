"""``--rank-by``: the samples of an evaluation scored by a reward model, and what ranking makes of them."""

from __future__ import annotations

from pathlib import Path

from mathrl.commands.model_source import check_reward_model_is_there
from mathrl.distributed.agreement import on_rank_0, together
from mathrl.errors import UserError
from mathrl.evaluation.ranking import Ranking, measure_ranking, score_samples
from mathrl.evaluation.result import Evaluation
from mathrl.rewards.learned import RewardModelScorer, load_reward_model
from mathrl.run.files import write_json


class Ranker:
    """A reward model that ranks evaluations' samples.

    Args:
        path: a checkpoint, an adapter of one, a reward model's run, or a hub name.

    Raises:
        UserError: no reward model there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        check_reward_model_is_there(path, "--rank-by")
        self.model: RewardModelScorer = load_reward_model(path, "--rank-by")

    def __call__(self, evaluation: Evaluation, folder: Path) -> Ranking:
        """The ranking; ``folder``/ranking.json gets it with every sample's score.

        Raises:
            UserError: a problem has fewer than two samples.
        """
        if evaluation.k < 2:
            raise UserError(
                f"{evaluation.name}: --rank-by ranks samples, and there are {evaluation.k} of some problem "
                "beside its first completion, which counts as greedy"
            )
        with together("ranking the samples"):
            ranking = measure_ranking(evaluation, score_samples(evaluation, self.model), self.path)
        ids = (record.problem.id for record in evaluation.records)
        scores = dict(zip(ids, map(list, ranking.scores), strict=True))
        told = ranking.to_dict() | {"scores": scores}
        on_rank_0("writing the ranking", lambda: write_json(folder / "ranking.json", told))
        return ranking
