"""How likely counts are under exact probabilities."""

from collections import Counter

import scipy.stats
import torch


def chi_square_p(counts: Counter, exact: torch.Tensor) -> float:
    """Tokens with fewer than five expected count as one."""
    total = sum(counts.values())
    common = [i for i, p in enumerate(exact.tolist()) if p * total >= 5]
    observed = [counts[i] for i in common]
    expected = [exact[i].item() * total for i in common]
    rest = total - sum(expected)
    if rest > 1e-6 * total:
        observed.append(total - sum(observed))
        expected.append(rest)
    else:
        assert sum(observed) == total, "a token of probability 0 was drawn"
    scale = sum(observed) / sum(expected)
    return float(scipy.stats.chisquare(observed, [e * scale for e in expected]).pvalue)
