"""Loaded by the process that ranks and killed runs are forked from: what every one of them would do again.

The modules that a run imports when it begins, the verifiers' hash, the held-out problems of tiny.toml.
Nothing of torch is computed, and no thread is started.
"""

import atexit
import gc
import os

import scipy.stats  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

import mathrl.cli
import mathrl.commands.entries
import mathrl.commands.train
import mathrl.policy.cpu.short_cuts
import mathrl.rollout.transformers  # noqa: F401
import verifiers.answers.number  # noqa: F401
from mathrl.config import DataConfig
from mathrl.data.problems import load_problems
from mathrl.evaluation.source_hash import verifiers_hash

verifiers_hash()
for role in ("held_out", "held_out_templates"):
    load_problems(DataConfig(num_train_problems=1, max_steps=1), role, 0)
atexit.register(os._exit, 0)  # without the libraries' account of what lives at the end
gc.collect()
gc.freeze()  # the collector of a forked process would otherwise copy what it walks
