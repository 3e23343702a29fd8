"""What a clamp of the KL term at 10 does to its pull on the policy, and what a knee does instead.

Writes results/algorithms_kl_clamp.json and .svg: value and slope of k3 (arXiv:2402.03300, eq. 4) over
d = log pi_ref - log pi, clamped at 10 as two other trainers do, and linear beyond a knee as mathrl does.

    python benchmarks/algorithms_kl_clamp.py
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.record import RESULTS, describe, store
from mathrl.algorithms.losses import kl_k3

CLAMP, KNEE = 10.0, 10.0
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 260, 52, 40, 34
FLOOR = -2.0  # log10 at the lower edge of a panel; zero is drawn there
COLOURS = {"clamped at 10": "#d9730d", "knee at 10": "#1f5fbf"}


def clamped(logprobs: torch.Tensor) -> torch.Tensor:
    """k3 against a reference logprob of 0, clamped in value."""
    return ((-logprobs).exp() + logprobs - 1).clamp(max=CLAMP)


def measure(distances: torch.Tensor) -> dict[str, dict[str, list[float]]]:
    """Value and |slope| in log pi of both, in float64, at each log pi_ref - log pi."""
    found = {}
    for name in COLOURS:
        logprobs = (-distances).requires_grad_()
        value = clamped(logprobs) if "clamp" in name else kl_k3(logprobs, torch.zeros_like(logprobs), KNEE)
        (slope,) = torch.autograd.grad(value.sum(), logprobs)
        found[name] = {"value": value.tolist(), "pull": slope.abs().tolist()}
    return found


def panel(title: str, xs: Sequence[float], curves: dict[str, Sequence[float]], left: int) -> str:
    """One chart with a logarithmic y axis, as SVG."""
    top = math.ceil(max(math.log10(v) for values in curves.values() for v in values if v > 0))

    def place(x: float, value: float) -> str:
        y = max(math.log10(value), FLOOR) if value > 0 else FLOOR
        share = (y - FLOOR) / (top - FLOOR)
        across = left + LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - 16)
        return f"{across:.1f} {HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP):.1f}"

    parts = [f'<text x="{left + LEFT}" y="18" font-weight="600">{title}</text>']
    for power in range(int(FLOOR), top + 1):
        x, y = place(xs[0], 10.0**power).split()
        label = "0" if power == FLOOR else f"1e{power}"
        parts.append(f'<path d="M{x} {y}H{left + WIDTH - 16}" stroke="#ddd"/>')
        parts.append(f'<text x="{float(x) - 6}" y="{float(y) + 4}" text-anchor="end">{label}</text>')
    for tick in range(0, int(xs[-1]) + 1, 5):
        x = place(tick, 1.0).split()[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - 22}" text-anchor="middle">{tick}</text>')
    for name, values in curves.items():
        path = "M" + "L".join(place(x, v) for x, v in zip(xs, values, strict=True))
        parts.append(f'<path d="{path}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
    return "".join(parts)


def draw(xs: Sequence[float], found: dict[str, dict[str, list[float]]]) -> str:
    """Both panels and their legend as one SVG."""
    value = panel("k3, nats", xs, {n: f["value"] for n, f in found.items()}, 0)
    pull = panel("pull: |d k3 / d log pi|", xs, {n: f["pull"] for n, f in found.items()}, WIDTH)
    legend = "".join(
        f'<path d="M{LEFT + 130 * i} {HEIGHT + 6}h22" stroke="{c}" stroke-width="3"/>'
        f'<text x="{LEFT + 28 + 130 * i}" y="{HEIGHT + 10}">{n}</text>'
        for i, (n, c) in enumerate(COLOURS.items())
    )
    label = f'<text x="{WIDTH + 40}" y="{HEIGHT + 10}">d = log pi_ref - log pi (nats)</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT + 20}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f"{value}{pull}{legend}{label}</svg>\n"
    )


def main() -> None:
    distances = torch.linspace(0.05, 20.0, 400, dtype=torch.float64)
    (RESULTS / "algorithms_kl_clamp.svg").write_text(draw(distances.tolist(), measure(distances)))
    chosen = torch.tensor([1.0, 2.6, 2.7, 4.0, 10.0, 20.0], dtype=torch.float64)
    result = describe(("torch",)) | {"distances": chosen.tolist(), "found": measure(chosen)}
    print(store("algorithms_kl_clamp", result))


if __name__ == "__main__":
    main()
