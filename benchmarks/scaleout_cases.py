"""What scaleout.py measures, in order of importance, and the work of each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from step_workload import Work, Workload

FIXED = 256  # tokens of every completion where lengths do not vary


@dataclass(frozen=True)
class Case:
    """One measurement of a job: a group of processes, a rank a GPU, with one engine each."""

    job: str  # of JOBS
    name: str
    problems: int = 64  # of a step, over all ranks, where the job has 128
    kind: str = "step"  # or "sums": what sums of tensors take; "repeat": what two runs of a seed differ in
    alone: bool = False  # rank 0 by itself, while the others wait and their GPUs rest
    variable: bool = False  # lengths of the workload, and not FIXED
    warmup: int = 1
    least_s: float = 15.0  # not worth beginning with less time left
    most_s: float = 75.0  # then it ends with the steps that it has

    @property
    def title(self) -> str:
        return f"{self.job}: {self.name}"

    def of(self, work: Work) -> Work:
        """This case's part of a job's work."""
        w = work.workload
        longest = w.completion if self.variable else min(FIXED, w.completion)
        mean = w.mean_length if self.variable else 0
        problems = max(1, self.problems * w.problems // 128)
        return replace(work, workload=replace(w, problems=problems, completion=longest, mean_length=mean))


JOBS = {  # with 128 problems, of which the cases take the first
    "0.5b": Workload("0.5b", "0.5b", 128, completion=1024, mean_length=300),  # micro-batches of step_time.py
    "1.5b": Workload("1.5b", "1.5b", 128, completion=FIXED, micro_batch_tokens=16384),
    "TRL, two GPUs": Workload("0.5b", "0.5b", 128, completion=FIXED),
    "TRL, one GPU": Workload("0.5b", "0.5b", 128, completion=FIXED),
}
TINY_JOBS = {  # for trying all of it on the CPU
    "0.5b": Workload(
        "tiny", "quickstart", 8, 4, 12, 20, 14, rank=4, micro_batch_tokens=512, peer_batch=8, device="cpu"
    ),
    "1.5b": Workload(
        "tiny", "quickstart", 8, 4, 12, 20, rank=4, micro_batch_tokens=512, peer_batch=8, device="cpu"
    ),
}
TINY_JOBS |= {name: TINY_JOBS["1.5b"] for name in JOBS if name.startswith("TRL")}


def ranks_of(job: str) -> int:
    return 1 if job == "TRL, one GPU" else 2


def folder_of(job: str) -> str:
    """Of the job's model and prompts; TRL's jobs have ours."""
    return "0.5b" if job.startswith("TRL") else job


CASES = (
    Case("0.5b", "one GPU", alone=True),
    Case("0.5b", "two GPUs"),
    Case("0.5b", "two GPUs, twice the problems", 128),
    Case("TRL, two GPUs", "as it comes", least_s=25),
    Case("0.5b", "variable lengths on two GPUs", variable=True, least_s=25),
    Case("0.5b", "variable lengths on one GPU", alone=True, variable=True, least_s=30),
    Case("0.5b", "sums", kind="sums", least_s=5),
    Case("0.5b", "two runs of a seed", kind="repeat"),
    Case("0.5b", "half of the problems on one GPU", 32, alone=True),
    Case("1.5b", "two GPUs"),
    Case("1.5b", "one GPU", alone=True),
    Case("1.5b", "two GPUs, twice the problems", 128),
    Case("0.5b", "an eighth of the problems on one GPU", 8, alone=True),
    Case("0.5b", "one problem on one GPU", 1, alone=True),
    Case("TRL, one GPU", "as it comes", least_s=100, most_s=150),
)
