"""Token ids to text, many completions at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

_OWN = ("decode", "_decode", "batch_decode")


def texts_of(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """The rows' text without special tokens, as the tokenizer's ``batch_decode`` gives it.

    transformers decodes row by row, where the library below it decodes all of them at once on all cores. That
    library is asked where transformers adds nothing to what it says.
    """
    if _only_passes_on(tokenizer):
        found: list[str] = tokenizer.backend_tokenizer.decode_batch(
            [list(row) for row in rows], skip_special_tokens=True
        )
        return found
    return list(tokenizer.batch_decode(rows, skip_special_tokens=True))


def _only_passes_on(tokenizer: Any) -> bool:
    kind = type(tokenizer)
    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and not tokenizer.clean_up_tokenization_spaces
        and all(getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in _OWN)
    )
