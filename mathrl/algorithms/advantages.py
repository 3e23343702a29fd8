"""Advantages: what a completion earned beyond what was to be expected. Pure functions of tensors.

Shapes: B completions, T tokens (padded on either side). Functions over whole completions take rewards (B,)
and group_ids (B,), so the order of the rows does not matter and groups may differ in size. ``sum_ranks`` adds
a tensor over the processes of a distributed run; it matters only where the baseline spans the whole step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STD_EPS = 1e-6
"""Added to a standard deviation before dividing: a group of binary rewards with G <= 1000 has std > 0.03."""

SumRanks = Callable[[Tensor], Tensor]
CompletionAdvantage = Callable[[Tensor, Tensor, SumRanks], Tensor]
"""(rewards (B,), group_ids (B,), sum_ranks) -> (B,)."""


def one_process(total: Tensor) -> Tensor:
    """``sum_ranks`` of a run with one process."""
    return total


def group_norm(rewards: Tensor, group_ids: Tensor, sum_ranks: SumRanks = one_process) -> Tensor:
    """(r - mean of the group) / (std of the group + 1e-6): GRPO, arXiv:2402.03300, section 4.1.2.

    The standard deviation is the population's (divides by G), as the paper's std(r) over the group reads;
    peers that divide by G - 1 get advantages smaller by sqrt((G-1)/G). Equal rewards give exactly 0.
    """
    centred, counts = _centred(rewards, group_ids)
    variance = _group_sum(centred.square(), group_ids, len(counts)) / counts
    return centred / (variance.sqrt()[group_ids] + STD_EPS)


def group_centre(rewards: Tensor, group_ids: Tensor, sum_ranks: SumRanks = one_process) -> Tensor:
    """r - mean of the group: Dr. GRPO, arXiv:2503.20783. Dividing by the std would up-weight groups that are
    nearly all right or nearly all wrong."""
    return _centred(rewards, group_ids)[0]


def group_ratio(rewards: Tensor, group_ids: Tensor, sum_ranks: SumRanks = one_process) -> Tensor:
    """(r - mean of the group) / mean of the group: MaxRL, arXiv:2602.02710, for rewards >= 0.

    With rewards 0 and 1 and K right of G: G/K - 1 for the right, -1 for the wrong. Averaged over the group
    this is the mean score of the right completions less that of all, an estimate of the gradient of
    log(probability of a right answer), where group_centre estimates that of the probability itself. A group
    with a mean of 0 or less has no right answer to be made likelier: exactly 0.
    """
    centred, counts = _centred(rewards, group_ids)
    means = (_group_sum(rewards, group_ids, len(counts)) / counts)[group_ids]
    return torch.where(means > 0, centred / means.clamp(min=torch.finfo(means.dtype).tiny), 0.0)


def leave_one_out(rewards: Tensor, group_ids: Tensor, sum_ranks: SumRanks = one_process) -> Tensor:
    """r - mean of the group's other rewards: RLOO, arXiv:2402.14740. Equals G/(G-1) · group_centre.

    Raises:
        ValueError: a group of one completion has no others.
    """
    centred, counts = _centred(rewards, group_ids)
    if (counts < 2).any():
        raise ValueError("leave_one_out needs at least 2 completions in every group")
    return centred * (counts / (counts - 1))[group_ids]


def batch_centre(rewards: Tensor, group_ids: Tensor, sum_ranks: SumRanks = one_process) -> Tensor:
    """r - mean of all rewards of the step: REINFORCE with an average-reward baseline (Williams 1992)."""
    return rewards - _step_mean(rewards, sum_ranks)


def batch_norm(rewards: Tensor, group_ids: Tensor, sum_ranks: SumRanks = one_process) -> Tensor:
    """batch_centre over the population std of the step: REINFORCE++, arXiv:2501.03262."""
    centred = batch_centre(rewards, group_ids, sum_ranks)
    return centred / (_step_mean(centred.square(), sum_ranks).sqrt() + STD_EPS)


def raw_reward(rewards: Tensor, group_ids: Tensor, sum_ranks: SumRanks = one_process) -> Tensor:
    """The reward itself: REINFORCE without a baseline."""
    return rewards


COMPLETION_ADVANTAGES: dict[str, CompletionAdvantage] = {
    "group_norm": group_norm,
    "group_centre": group_centre,
    "group_ratio": group_ratio,
    "leave_one_out": leave_one_out,
    "batch_centre": batch_centre,
    "batch_norm": batch_norm,
    "reward": raw_reward,
}
GROUP_ADVANTAGES = ("group_norm", "group_centre", "group_ratio", "leave_one_out")
"""Those that compare the completions of a group, and need no other group."""


def gae(
    token_rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the tokens that train, arXiv:1506.02438, eq. 16.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}; t + 1 is the next token of
    the mask, and V = A = 0 after the last one: a completion cut at the length limit ends there, with the
    reward that its verdict gave. With lambda = 1, A_t = sum_k gamma^k r_{t+k} - V_t; with a single reward r
    at the last token, the target of the prefix whose next token is k tokens before the last is gamma^k r.

    Args:
        token_rewards: (B, T) reward of each token.
        values: (B, T) V of the prefix before token t.
        mask: (B, T) bool.

    Returns:
        advantages and returns (A + V, the value model's targets), (B, T), 0 where masked.
    """
    advantages = torch.zeros_like(values)
    next_value, next_advantage = values.new_zeros(len(values)), values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        delta = token_rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * gae_lambda * next_advantage
        live = mask[:, t]
        advantages[:, t] = torch.where(live, advantage, 0.0)
        next_advantage = torch.where(live, advantage, next_advantage)
        next_value = torch.where(live, values[:, t], next_value)
    return advantages, torch.where(mask, advantages + values, 0.0)


def whiten(advantages: Tensor, mask: Tensor, sum_ranks: SumRanks = one_process) -> Tensor:
    """(A - mean) / (std + 1e-6) over the step's training tokens; population std; 0 where masked."""
    centred = torch.where(mask, advantages - _step_mean(advantages[mask], sum_ranks), 0.0)
    return centred / (_step_mean(centred[mask].square(), sum_ranks).sqrt() + STD_EPS)


def last_token(mask: Tensor) -> Tensor:
    """(B, T) bool: each row's last token that trains (none in an empty row)."""
    after = mask.flip(1).cumsum(1).flip(1)
    return mask & (after == 1)


def at_tokens(per_completion: Tensor, mask: Tensor) -> Tensor:
    """(B,) -> (B, T): a completion's value at each of its tokens, 0 where masked."""
    return torch.where(mask, per_completion[:, None], 0.0)


def overlong_penalty(lengths: Tensor, max_tokens: int, buffer: int) -> Tensor:
    """(B,) in [-1, 0]: DAPO's soft overlong punishment, arXiv:2503.14476, eq. 13.

    0 up to ``max_tokens - buffer``, then linear down to -1 at ``max_tokens``.
    """
    return ((max_tokens - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def _step_mean(values: Tensor, sum_ranks: SumRanks) -> Tensor:
    """The mean (0 of none) over all ranks of (n,) values, a scalar of their type.

    Summed in float64: in float32 the mean would show over how many ranks the values were spread. The mean of
    equal values is that value; where they are float64 themselves, what their sum has rounded is added again.
    """
    double = values.double()
    total = sum_ranks(torch.stack((double.sum(), double.new_tensor(float(len(values))))))
    count = total[1].clamp(min=1.0)
    mean = total[0] / count
    if values.dtype == torch.float64:
        mean = mean + sum_ranks((double - mean).sum()) / count
    return mean.to(values.dtype)


def _group_sum(values: Tensor, group_ids: Tensor, num_groups: int) -> Tensor:
    return values.new_zeros(num_groups).index_add_(0, group_ids, values)


def _centred(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """rewards - group mean (B,), exactly 0 in groups of equal rewards, and the group sizes (P,)."""
    num_groups = int(group_ids.max()) + 1 if len(group_ids) else 0  # a rank may have no rows
    counts = _group_sum(torch.ones_like(rewards), group_ids, num_groups)
    empty = rewards.new_zeros(num_groups)
    high = empty.scatter_reduce(0, group_ids, rewards, "amax", include_self=False)
    low = empty.scatter_reduce(0, group_ids, rewards, "amin", include_self=False)
    means = torch.where(high == low, high, _group_sum(rewards, group_ids, num_groups) / counts.clamp(min=1))
    return rewards - means[group_ids], counts
