"""mathrl: reinforcement learning with verifiable rewards for mathematics.

    import mathrl

    run = mathrl.train(model="./my-model", problems=[{"question": "…", "answer": "…"}, …], rewards=[function])
    run.accuracy, run.adapter, run.report, run.metrics
    mathrl.evaluate("./my-model", benchmark="gsm8k", samples=8)

Nothing heavy is loaded before the first call; mathrl/api.py says what each takes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mathrl.api import Run, compare, evaluate, judge, train
    from mathrl.errors import UserError
    from mathrl.rewards.functions import RewardFunction

__version__ = "0.1.0"
__all__ = ["RewardFunction", "Run", "UserError", "__version__", "compare", "evaluate", "judge", "train"]

_HOMES = {
    "RewardFunction": "mathrl.rewards.functions",
    "Run": "mathrl.api",
    "UserError": "mathrl.errors",
    "compare": "mathrl.api",
    "evaluate": "mathrl.api",
    "judge": "mathrl.api",
    "train": "mathrl.api",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mathrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
