"""Run by a test in a process of its own: every kernel of a decoding step compiled for a GPU, without one."""

import inspect
import json

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_for

from mathrl.rollout.core import decode_kernels

POINTERS = {  # what is not bfloat16
    "most": "fp32", "mass": "fp32", "temperature": "fp32", "logprobs": "fp32",
    "first": "i32", "places": "i32", "table": "i32", "lengths": "i32",
    "seeds": "i64", "positions": "i64", "tokens": "i64",
}  # fmt: skip
BF16 = ("joint", "b", "bias", "out", "query", "key", "value", "logits")
CONSTANTS = {
    "_expand_kernel": {"HAS_BIAS": True, "ROWS": 64, "COLUMNS": 64, "INNER": 32},
    "_gate_kernel": {"HAS_BIAS": False, "ROWS": 64, "COLUMNS": 64, "INNER": 64},
    "_attend_kernel": {"DIM": 64, "SHARED": 7, "PAGE": 16, "ROWS": 16, "TOKENS": 64},
    "_blocks_kernel": {"BLOCK": 4096},
    "_draw_kernel": {"BLOCK": 4096, "BLOCKS": 64, "CHUNK": 1024},
}


def kind(name: str, constants: dict[str, object]) -> str:
    if name in constants:
        return "constexpr"
    if name == "scale":
        return "fp32"
    return "*bf16" if name in BF16 else f"*{POINTERS[name]}" if name in POINTERS else "i32"


def main() -> None:
    found = {}
    for name, constants in CONSTANTS.items():
        kernel = getattr(decode_kernels, name)
        names = inspect.signature(kernel.fn).parameters
        source = ASTSource(kernel, {each: kind(each, constants) for each in names}, constants)
        compiled = compile_for(source, target=GPUTarget("cuda", 90, 32))
        found[name] = {"cubin": len(compiled.asm["cubin"]), "shared": compiled.metadata.shared}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
