"""What lies in the folder of a reward model; read without loading it."""

from __future__ import annotations

import json
from pathlib import Path

CHECKPOINT = "reward_model"
"""Folder of the checkpoint in the run of a reward model; the run stands for it wherever one is named."""

QUESTIONS = "training_questions.jsonl"
"""File in the checkpoint that names the questions it was trained on."""


def checkpoint_of(path: str) -> str:
    """The checkpoint itself where ``path`` is the run folder of a reward model; else ``path``."""
    inner = Path(path).expanduser() / CHECKPOINT
    return str(inner) if (inner / "config.json").is_file() else path


def training_questions(path: str) -> list[str]:
    """Questions that the reward model at ``path`` was trained on; empty where it does not say."""
    file = Path(checkpoint_of(path)) / QUESTIONS
    if not file.is_file():
        return []
    return [json.loads(line)["question"] for line in file.read_text(encoding="utf-8").split("\n") if line]
