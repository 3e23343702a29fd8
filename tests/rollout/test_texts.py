"""Texts of many completions are those that transformers makes one by one."""

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from mathrl.rollout.texts import texts_of

WORDS = ["<pad>", "<eos>", "x", "=", "7", ",", "n't", "é"]
ROWS = [(2, 3, 4, 5, 6, 1, 0), [7], (), [0, 1], (4,) * 50]


class Shouting(PreTrainedTokenizerFast):
    def _decode(self, *args, **kwargs):
        return super()._decode(*args, **kwargs).upper()


def make(kind=PreTrainedTokenizerFast, **settings):
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.decoder = decoders.Fuse() if settings.pop("fused", False) else None
    return kind(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", **settings)


@pytest.mark.parametrize(
    ("settings", "at_once"),
    [
        ({"clean_up_tokenization_spaces": False}, True),
        ({"clean_up_tokenization_spaces": False, "fused": True}, True),
        ({"clean_up_tokenization_spaces": True}, False),  # "x =7 ," -> "x =7,"
        ({"clean_up_tokenization_spaces": False, "kind": Shouting}, False),
    ],
)
def test_they_are_what_batch_decode_gives(settings, at_once, monkeypatch):
    tokenizer = make(**settings)
    expected = tokenizer.batch_decode([list(row) for row in ROWS], skip_special_tokens=True)
    asked = []
    usual = type(tokenizer).batch_decode
    monkeypatch.setattr(
        tokenizer,
        "batch_decode",
        lambda *args, **kwargs: asked.append(1) or usual(tokenizer, *args, **kwargs),
    )
    assert texts_of(tokenizer, ROWS) == expected
    assert len(asked) == (0 if at_once else 1)
    assert len(set(expected)) == 4
    assert expected[2] == expected[3] == ""
