"""Pieces of a decoding step on a GPU, ours beside vLLM's and torch's: milliseconds of a replayed CUDA graph.

    python benchmarks/decode_kernels.py [--only linears attention drawing] [--out DIR]

linears    all linear layers of a step with an adapter of rank 32: without it, as two more products a layer,
           and as a part of each layer's own product (mathrl/rollout/core/dense_adapter.py)
attention  one token a sequence over a paged cache: FlashAttention 3 as vLLM calls it in a graph, and ours
drawing    a token of 151,936 for every row: vLLM's Gumbel sampling, and ours
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import describe

RANK, VOCABULARY, PAGE, LONGEST = 32, 151_936, 16, 1536
# in, out, slices of a layer's linears
LINEARS = {
    "0.5b": (24, ((896, 1152, 3), (896, 896, 1), (896, 9728, 2), (4864, 896, 1))),
    "1.5b": (28, ((1536, 2048, 3), (1536, 1536, 1), (1536, 17920, 2), (8960, 1536, 1))),
}
SHAPES = (  # sequences, mean length, heads, key heads, size of a head
    (512, 256, 14, 2, 64),
    (512, 256, 12, 2, 128),
    (256, 600, 14, 2, 64),
    (128, 800, 14, 2, 64),
    (64, 1000, 14, 2, 64),
    (1024, 120, 9, 3, 64),
)


def replayed_ms(run: Callable[[], Any], times: int = 20) -> float:
    """Milliseconds of one replay of what ``run`` launches: the best of five rounds."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    rounds = []
    for _ in range(6):
        begin.record()
        for _ in range(times):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        rounds.append(begin.elapsed_time(end) / times)
    return round(min(rounds[1:]), 4)


def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def linears(model: str, tokens: int) -> dict[str, float]:
    from mathrl.rollout.core.decode_kernels import expand

    layers, shapes = LINEARS[model]
    weights = []
    for _ in range(layers):
        for width, out, slices in shapes:
            whole = drawn(out + slices * RANK, width, scale=0.02)
            weights.append((whole, whole[:out], whole[out:], drawn(out, slices * RANK, scale=0.02)))
    inputs = {width: drawn(tokens, width) for width, _, _ in shapes}

    def bare() -> None:
        for _, weight, _, _ in weights:
            F.linear(inputs[weight.shape[1]], weight)

    def two_more() -> None:
        for _, weight, a, b in weights:
            x = inputs[weight.shape[1]]
            F.linear(x, weight).addmm_(x @ a.t(), b.t())

    def in_its_own() -> None:
        for whole, _, _, b in weights:
            expand(inputs[whole.shape[1]] @ whole.t(), b, None)

    ways = {
        "without an adapter": bare,
        "two more products": two_more,
        "a part of the layer's own": in_its_own,
    }
    return {name: replayed_ms(run) for name, run in ways.items()}


def attention(sequences: int, length: int, heads: int, key_heads: int, dim: int) -> dict[str, float]:
    from vllm.vllm_flash_attn import flash_attn_varlen_func, get_scheduler_metadata

    from mathrl.rollout.core.decode_kernels import attend

    layers = 24
    lengths = torch.randint(int(0.7 * length), int(1.3 * length), (sequences,), device="cuda").int()
    pages = -(-int(lengths.max()) // PAGE)
    caches = [drawn(sequences * pages, key_heads, PAGE, 2 * dim) for _ in range(layers)]
    table = torch.zeros(sequences, LONGEST // PAGE, dtype=torch.int32, device="cuda")
    table[:, :pages] = torch.randperm(sequences * pages, device="cuda").int().view(sequences, pages)
    query = drawn(sequences, heads, dim)
    out, starts = torch.empty_like(query), torch.arange(sequences + 1, dtype=torch.int32, device="cuda")
    split = [cache.transpose(1, 2).split(dim, dim=-1) for cache in caches]

    def flash(splits: int) -> Callable[[], None]:
        plan = get_scheduler_metadata(
            batch_size=sequences, max_seqlen_q=1, max_seqlen_k=LONGEST, num_heads_q=heads,
            num_heads_kv=key_heads, headdim=dim, cache_seqlens=lengths, qkv_dtype=torch.bfloat16,
            cu_seqlens_q=starts, page_size=PAGE, causal=True, window_size=(-1, -1), num_splits=splits,
        )  # fmt: skip

        def run() -> None:
            for keys, values in split:
                flash_attn_varlen_func(
                    q=query, k=keys, v=values, out=out, cu_seqlens_q=starts, max_seqlen_q=1,
                    seqused_k=lengths, max_seqlen_k=LONGEST, softmax_scale=dim**-0.5, causal=True,
                    window_size=[-1, -1], block_table=table, scheduler_metadata=plan, fa_version=3,
                    num_splits=splits,
                )  # fmt: skip

        return run

    def ours() -> None:
        for keys, values in split:
            attend(query, keys, values, out, table, lengths, dim**-0.5)

    found = {f"FlashAttention 3, at most {n} splits": replayed_ms(flash(n)) for n in (32, 1)}
    bytes_read = int(lengths.sum()) * key_heads * dim * 4 * layers
    return found | {"ours": replayed_ms(ours), "its bytes at 4.2 TB/s": round(bytes_read / 4.2e9, 4)}


def drawing(rows: int) -> dict[str, float]:
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    from mathrl.rollout.core.decode_kernels import draw

    logits, heat = drawn(rows, VOCABULARY, scale=2.0), torch.ones(rows, device="cuda")
    places = torch.arange(rows, device="cuda", dtype=torch.int32)
    seeds, positions = (torch.randint(0, 1 << 40, (rows,), device="cuda") for _ in range(2))
    return {
        "vLLM's": replayed_ms(lambda: gumbel_sample(logits, places, heat, seeds, positions, False)),
        "ours": replayed_ms(lambda: draw(logits, places, heat, seeds, positions)),
    }


def main() -> None:
    kinds = {
        "linears": (linears, [("0.5b", n) for n in (512, 256, 64, 8)] + [("1.5b", n) for n in (512, 64)]),
        "attention": (attention, list(SHAPES)),
        "drawing": (drawing, [(512,), (64,)]),
    }
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=sorted(kinds), default=sorted(kinds))
    parser.add_argument("--out", type=Path, default=Path("runs/decode_kernels"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = describe(("torch", "triton", "vllm"))
    for name in args.only:
        measure, cases = kinds[name]
        for case in cases:
            title = f"{name} {', '.join(map(str, case))}"
            found[title] = measure(*case)  # type: ignore[operator]
            print(title, json.dumps(found[title]), flush=True)
    (args.out / "decode_kernels.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
