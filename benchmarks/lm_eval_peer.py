"""lm-evaluation-harness on GSM8K with completions that are there already, for the interpreter that has it.

    python lm_eval_peer.py TRAIN.jsonl TEST.jsonl COMPLETIONS.json OUT

The task is the package's own gsm8k.yaml; only the place of its data is another. COMPLETIONS.json maps each
question to a text, which is cut at the task's stop words as the harness's models cut it. OUT gets the samples
file that ``--log_samples`` writes. Prints a line of JSON: the version and both scores.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import yaml
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker


class Replay(LM):
    """A model that says what it said before."""

    def __init__(self, completions: dict[str, str]) -> None:
        super().__init__()
        self.completions = completions

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        texts = []
        for request in requests:
            text = self.completions[request.doc["question"]]
            for stop in request.args[1]["until"]:
                text = text.split(stop)[0]
            texts.append(text)
        return texts

    def loglikelihood(self, requests):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


def main() -> None:
    """Score the completions."""
    train, test, completions, out = sys.argv[1:]
    import lm_eval

    rows = (Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text()
    task = yaml.safe_load(rows)
    task |= {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"train": train, "test": test}},
    }
    model = Replay(json.loads(Path(completions).read_text()))
    found = simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
    tracker = EvaluationTracker(output_path=out)
    tracker.general_config_tracker.model_source = "replay"
    tracker.general_config_tracker.model_name_sanitized = "replay"
    tracker.save_results_aggregated(results=found, samples=found["samples"])
    tracker.save_results_samples(task_name="gsm8k", samples=found["samples"]["gsm8k"])
    scores = found["results"]["gsm8k"]
    print(
        json.dumps(
            {
                "version": version("lm-eval"),
                "strict": scores["exact_match,strict-match"],
                "flexible": scores["exact_match,flexible-extract"],
            }
        )
    )


if __name__ == "__main__":
    main()
