"""Completions that only decode, as rows of arrays: the numbers that vLLM's scheduler keeps in objects."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_NO_TOKEN = -1


class Given(NamedTuple):
    """What a row has sampled since it was entered: n tokens; log-probabilities and ranks if asked for."""

    tokens: list[int]
    logprobs: NDArray[np.float32] | None  # (n,)
    ranks: NDArray[np.int64] | None  # (n,)


class DecodeRows:
    """Rows of requests that get one token a step until they end.

    Args:
        num_rows: requests that may run at once.
        max_model_len: tokens of a prompt and its completion, at most.
    """

    def __init__(self, num_rows: int, max_model_len: int) -> None:
        self.max_model_len = max_model_len
        self.row_of: dict[str, int] = {}
        self.requests: list[Any] = [None] * num_rows
        self.stays = np.zeros(num_rows, np.int64)  # rises when a row is left: who knows an old number is late
        self.prompt = np.zeros(num_rows, np.int64)  # tokens of the prompt
        self.computed = np.zeros(num_rows, np.int64)  # tokens in the cache, those of steps under way included
        self.room = np.zeros(num_rows, np.int64)  # tokens that the row's cache blocks hold
        self.received = np.zeros(num_rows, np.int64)  # tokens of the completion, known here
        self.entered = np.zeros(num_rows, np.int64)  # of them known before the row was entered
        self.most = np.zeros(num_rows, np.int64)  # tokens that the completion may have
        self.ends = np.full((num_rows, 1), _NO_TOKEN)  # tokens that end it
        self._free = list(range(num_rows - 1, -1, -1))
        self._tokens = np.empty((num_rows, max_model_len), np.int32)
        self._logprobs: NDArray[np.float32] | None = None
        self._ranks: NDArray[np.int32] | None = None
        self._active: Ints | None = np.zeros(0, np.int64)
        self._ids: list[str] = []

    def __len__(self) -> int:
        return len(self.row_of)

    @property
    def active(self) -> Ints:
        """(n,) rows in use, in the order in which they were entered."""
        if self._active is None:
            self._active = np.fromiter(self.row_of.values(), np.int64, len(self.row_of))
            self._ids = list(self.row_of)
        return self._active

    def due(self) -> tuple[Ints, list[str]]:
        """Rows whose last token is not under way yet, and their requests' ids (a list not to be changed)."""
        rows = self.active
        due = self.computed[rows] < self.prompt[rows] + self.most[rows] - 1
        if due.all():
            return rows, self._ids
        return rows[due], [self._ids[i] for i in np.flatnonzero(due)]

    def scheduled(self, rows: Ints) -> Ints:
        """(n,) tokens of the completions, those under way included."""
        return self.computed[rows] - self.prompt[rows] + 1

    def enter(self, request: Any, room: int, ends: list[int]) -> None:
        """A request whose next step computes one token."""
        row = self._free.pop()
        self.row_of[request.request_id] = row
        self.requests[row] = request
        self.prompt[row] = request.num_prompt_tokens
        self.computed[row] = request.num_computed_tokens
        self.room[row] = room
        self.received[row] = self.entered[row] = request.num_output_tokens
        self.most[row] = min(request.max_tokens, self.max_model_len - request.num_prompt_tokens)
        if len(ends) > self.ends.shape[1]:
            wider = np.full((len(self.ends), len(ends)), _NO_TOKEN)
            wider[:, : self.ends.shape[1]] = self.ends
            self.ends = wider
        self.ends[row] = _NO_TOKEN
        self.ends[row, : len(ends)] = ends
        self._active = None

    def leave(self, row: int) -> Given:
        """Free the row; returns what it has sampled."""
        request, self.requests[row] = self.requests[row], None
        del self.row_of[request.request_id]
        self.stays[row] += 1
        self._free.append(row)
        self._active = None
        n = int(self.received[row] - self.entered[row])
        logprobs = ranks = None
        if self._logprobs is not None and self._ranks is not None:
            logprobs, ranks = self._logprobs[row, :n].copy(), self._ranks[row, :n].astype(np.int64)
        return Given(self._tokens[row, :n].tolist(), logprobs, ranks)

    def ended_by(self, rows: Ints, tokens: Ints) -> NDArray[np.bool_]:
        """(n,) whether these tokens, one a row, are the last of their completions."""
        return (tokens[:, None] == self.ends[rows]).any(axis=1) | (self.received[rows] + 1 >= self.most[rows])

    def add(self, rows: Ints, tokens: Ints, logprobs: Any = None, ranks: Any = None) -> None:
        """One token a row, (n,) each."""
        column = self.received[rows] - self.entered[rows]
        self._tokens[rows, column] = tokens
        if logprobs is not None:
            if self._logprobs is None or self._ranks is None:
                self._logprobs = np.empty(self._tokens.shape, np.float32)
                self._ranks = np.empty(self._tokens.shape, np.int32)
            self._logprobs[rows, column], self._ranks[rows, column] = logprobs, ranks
        self.received[rows] += 1

    @property
    def num_tokens(self) -> int:
        """Tokens that the rows have sampled since they were entered."""
        return int((self.received[self.active] - self.entered[self.active]).sum())
