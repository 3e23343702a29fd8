"""How far an evaluation has come, by its tokens: the first completions to finish are short ones.

Counted by finished problems, an evaluation of long completions seems to take hours at first, and then stands
still while hundreds are written side by side.
"""

from __future__ import annotations

_FEWEST = 16  # finished completions that a guess rests on, where there are as many


class TokensLeft:
    """Tokens sampled, and the share of all that will be.

    A completion goes on for another r tokens on average, r the tokens that were sampled lately for each
    completion that finished, and at most ``limit``. Were lengths exponential, any stretch would give the same
    r; they are not, and what finished lately says most about those under way.

    Args:
        num: completions to be sampled.
        limit: tokens of a completion at most.
    """

    def __init__(self, num: int, limit: int) -> None:
        self.num, self.limit = num, limit
        self.num_finished = 0
        self.tokens = 0  # sampled so far, of finished and unfinished completions
        self._finished = self._under_way = 0  # tokens
        self._forget = 1.0 - 1.0 / max(_FEWEST, num // 4)
        self._lately, self._lately_finished = 0.0, 0.0
        self._counted = 0  # tokens that are in ``_lately``

    def under_way(self, tokens: int) -> None:
        """The completions that have not finished have so many tokens now."""
        self._under_way = tokens
        self.tokens = max(self.tokens, self._finished + tokens)

    def finished(self, length: int) -> None:
        """A completion has finished with so many tokens."""
        self.num_finished += 1
        self._finished += length
        self.under_way(max(self._under_way - length, 0))
        self._lately = self._lately * self._forget + self.tokens - self._counted
        self._lately_finished = self._lately_finished * self._forget + 1.0
        self._counted = self.tokens

    @property
    def share(self) -> float | None:
        """Of all tokens, in (0, 1]; None before anything has finished."""
        if not self.num_finished:
            return None
        rest = (self._lately + self.tokens - self._counted) / self._lately_finished
        left = (self.num - self.num_finished) * min(rest, self.limit)
        return self.tokens / (self.tokens + left) if self.tokens else None
