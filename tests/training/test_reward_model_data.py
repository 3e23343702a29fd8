"""Pairs as they are read, refused, split, and dealt to batches."""

import json
import random
import re

import pandas
import pytest
from reward_model_case import config_of, make_tokenizer

from mathrl.errors import UserError
from mathrl.training.batch import by_tokens
from mathrl.training.reward_model_data import balanced_batches, load_pairs, read_pairs

ROW = {"question": "What is 2 + 2?", "chosen": " 4", "rejected": " 5"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_texts_and_lists_of_messages_are_the_same_pair(tmp_path):
    asked = [{"role": "user", "content": "What is 2 + 2?"}]

    def said(text):
        return [{"role": "assistant", "content": text}]

    forms = [
        ROW | {"chosen": "4", "rejected": "5"},
        {"prompt": "What is 2 + 2?", "chosen": "4", "rejected": "5"},
        {"question": asked, "chosen": said("4"), "rejected": said("5")},
        {"question": asked, "chosen": asked + said("4"), "rejected": asked + said("5")},
    ]
    found = []
    for number, row in enumerate(forms):
        found += read_pairs(write(tmp_path / f"{number}.jsonl", [row]))
    pandas.DataFrame(forms[2:3]).to_parquet(tmp_path / "pairs.parquet")
    found += read_pairs(tmp_path / "pairs.parquet")
    assert len({(p.key, p.chosen[0]["content"], p.rejected[0]["content"], len(p.chosen)) for p in found}) == 1
    tokenizer = make_tokenizer()
    texts = {tokenizer.apply_chat_template([*p.question, *p.chosen], tokenize=False) for p in found}
    assert texts == {"Question: What is 2 + 2?\nAnswer: 4<|endoftext|>"}


def test_a_column_of_numbers_is_one_of_texts(tmp_path):
    (tmp_path / "pairs.csv").write_text(
        "question,chosen,rejected\nWhat is 2 - 2?,0,1\nAnd 1.5 + 1?,2.5,3.0\n"
    )
    sides = [(p.chosen[0]["content"], p.rejected[0]["content"]) for p in read_pairs(tmp_path / "pairs.csv")]
    assert sides == [("0", "1"), ("2.5", "3")]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "chosen": "a"}, ["row 2", "no field 'rejected'"]),
        ({"chosen": "a", "rejected": "b"}, ["row 2", "no field 'question'"]),
        (ROW | {"rejected": " "}, ["row 2", "'rejected' is empty"]),
        (ROW | {"question": ""}, ["row 2", "'question' is empty"]),
        (ROW | {"rejected": "4 "}, ["row 2", "chosen and rejected are the same text"]),
        (
            ROW | {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "4"}]},
            ["row 2", "'chosen' begins with a message by 'user'"],
        ),
        (ROW | {"margin": "wide"}, ["row 2", "margin must be a number >= 0, got 'wide'"]),
        (ROW | {"margin": -1.0}, ["row 2", "margin must be a number >= 0"]),
        (ROW | {"margin": None}, ["row 2", "no field 'margin'"]),
    ],
)
def test_a_row_that_is_no_pair_is_told_in_a_sentence(row, words, tmp_path):
    file = write(tmp_path / "pairs.jsonl", [ROW | {"margin": 1.0}, row])
    with pytest.raises(UserError) as error:
        read_pairs(file, margins=True)
    assert all(word in str(error.value) for word in ["pairs.jsonl", *words])
    assert "\n" not in str(error.value)


def test_messages_without_text_or_role_are_refused(tmp_path):
    bad = [{"question": "q", "chosen": [{"role": "assistant"}], "rejected": [{"role": "assistant"}]}]
    with pytest.raises(UserError, match="row 1: a message of 'chosen' has no role or no text"):
        read_pairs(write(tmp_path / "pairs.jsonl", bad))


ROWS = [
    {"question": f"What is {i} + {j}?", "chosen": f" {i + j}", "rejected": f" {i + j + wrong}"}
    for i in range(12)
    for j in range(4)
    for wrong in (1, 2)
]


def test_a_question_is_trained_on_or_held_out_never_both(tmp_path):
    file = write(tmp_path / "pairs.jsonl", ROWS)
    tokenizer = make_tokenizer()
    config = config_of(reward_model={"pairs": file, "eval_fraction": 0.25})
    sets = load_pairs(config, tokenizer, 128)
    train, held_out = ({p.pair.key for p in part} for part in (sets.train, sets.held_out))
    assert not train & held_out
    assert len(sets.train) + len(sets.held_out) == len(ROWS) == 2 * len(train | held_out)
    assert 0.1 < len(held_out) / 48 < 0.4
    mixed = ROWS[:]
    random.Random(0).shuffle(mixed)
    other = config_of(reward_model={"pairs": write(tmp_path / "mixed.jsonl", mixed), "eval_fraction": 0.25})
    assert {p.pair.key for p in load_pairs(other, tokenizer, 128).held_out} == held_out


def test_a_file_of_held_out_pairs_takes_its_questions_out_of_training(tmp_path):
    file, held_out = write(tmp_path / "pairs.jsonl", ROWS), write(tmp_path / "eval.jsonl", ROWS[:6])
    sets = load_pairs(config_of(reward_model={"pairs": file, "eval_pairs": held_out}), make_tokenizer(), 128)
    assert (len(sets.train), len(sets.held_out), sets.num_asked_twice) == (len(ROWS) - 6, 6, 6)
    assert "6 left out, for their question is held out" in sets.describe()


def test_margins_that_are_not_asked_for_are_told_once(tmp_path):
    file = write(tmp_path / "pairs.jsonl", [*(row | {"margin": 2.0} for row in ROWS[:90]), *ROWS[90:]])
    sets = load_pairs(config_of(reward_model={"pairs": file}), make_tokenizer(), 128)
    assert sets.num_margins == 90
    assert {p.pair.margin for p in sets.train} == {0.0}
    assert sets.describe().endswith(
        "; the field margin of 90 is not used (--reward_model.margins true asks for it: the chosen score "
        "must then be larger by it)"
    )
    whole = write(tmp_path / "whole.jsonl", [row | {"margin": 2.0} for row in ROWS])
    asked = config_of(reward_model={"pairs": whole, "margins": True})
    sets = load_pairs(asked, make_tokenizer(), 128)
    assert {p.pair.margin for p in sets.train} == {2.0}
    assert "margin" not in sets.describe()


def test_long_pairs_are_refused_or_left_out_and_counted(tmp_path):
    long = {"question": "What is 1 + 1?", "chosen": " 2" * 200, "rejected": " 3"}
    file = write(tmp_path / "pairs.jsonl", [*ROWS, long])
    with pytest.raises(UserError, match=r"row 97: \d+ tokens do not fit the model's context of 128"):
        load_pairs(config_of(reward_model={"pairs": file}), make_tokenizer(), 128)
    config = config_of(reward_model={"pairs": file}, data={"skip_long_prompts": True})
    assert load_pairs(config, make_tokenizer(), 128).num_long == 1


def test_without_pairs_or_with_one_question_there_is_nothing_to_train(tmp_path):
    with pytest.raises(UserError, match=r"--reward_model\.pairs"):
        load_pairs(config_of(), make_tokenizer(), 128)
    config = config_of(reward_model={"pairs": write(tmp_path / "pairs.jsonl", ROWS[:2])})
    by = r"by reward_model.eval_fraction 0.1"
    with pytest.raises(UserError, match=rf"is left held out, of 2 \(2 to train on {by}\): it needs pairs"):
        load_pairs(config, make_tokenizer(), 128)


def test_where_the_pairs_went_is_told_where_none_is_left(tmp_path):
    file = write(tmp_path / "pairs.jsonl", ROWS)
    same = config_of(reward_model={"pairs": file, "eval_pairs": file})
    with pytest.raises(UserError) as told:
        load_pairs(same, make_tokenizer(), 128)
    assert "left to train on, of 96 (96 with a question that is held out): it" in str(told.value)
    assert "eval_fraction" not in str(told.value)
    short = config_of(reward_model={"pairs": file}, data={"skip_long_prompts": True})
    with pytest.raises(UserError, match=r"of 96 \((\d+) held out by .*; (\d+) longer than .* of 3 t") as told:
        load_pairs(short, make_tokenizer(), 3)
    assert sum(map(int, re.findall(r"(\d+) (?:held|longer)", str(told.value)))) == 96


def test_batches_have_the_same_mixture_of_lengths():
    lengths = [random.Random(i).randint(5, 400) for i in range(203)]
    batches = balanced_batches(lengths, 20, seed=1)
    assert sorted(i for batch in batches for i in batch) == list(range(203))
    assert {len(batch) for batch in batches} <= {20, 21}
    totals = [sum(lengths[i] for i in batch) / len(batch) for batch in batches]
    shuffled = list(range(203))
    random.Random(0).shuffle(shuffled)
    plain = [sum(lengths[i] for i in shuffled[at : at + 20]) / 20 for at in range(0, 200, 20)]
    assert max(totals) - min(totals) < 0.5 * (max(plain) - min(plain))
    assert balanced_batches(lengths, 20, seed=1) == batches != balanced_batches(lengths, 20, seed=2)


def test_parts_hold_all_pairs_and_no_more_tokens_than_asked(tmp_path):
    sets = load_pairs(
        config_of(reward_model={"pairs": write(tmp_path / "pairs.jsonl", ROWS)}), make_tokenizer(), 128
    )
    parts = list(by_tokens(sets.train, 60))
    assert [p for part in parts for p in part] == list(sets.train)
    assert all(len(part) == 1 or sum(p.num_tokens for p in part) <= 60 for part in parts)
    assert len(parts) > 10
