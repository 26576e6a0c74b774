"""Seconds and memory of CLIP + mapper + language model at full size, with random weights.

For each pair a process of its own makes the model, does one training step (language model frozen, mapper
learning) and writes one caption, and reports its own peak memory. `--write` puts the table and the plan for
models that do not fit here into docs/benchmarks/prefix_memory.md.

    python benchmarks/prefix_memory.py                     # all pairs
    python benchmarks/prefix_memory.py --only tiny         # a few seconds
    python benchmarks/prefix_memory.py --write
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "prefix_memory.md"
CLIP_B32 = "vit_base_patch32_clip_quickgelu_224.openai"


@dataclass(frozen=True)
class Pair:
    """A tower, a language model, and how large the step is."""

    kind: str
    settings: dict[str, Any]
    vocab: int
    tower: str = CLIP_B32
    image_size: int = 224
    options: dict[str, Any] = field(default_factory=dict)
    pictures: int = 4
    prefix: int = 10
    context: int = 40


OPT_1B = {
    "hidden_size": 2048,
    "word_embed_proj_dim": 2048,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "ffn_dim": 8192,
}
PAIRS = {
    "tiny": Pair("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2}, 500, "test_vit", 64),
    "gpt2": Pair("gpt2", {}, 50261),
    "gpt2-large": Pair("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}, 50261),
    "gpt2-large, checkpointing": Pair(
        "gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}, 50261, options={"checkpointing": True}
    ),
    "opt-1.3b": Pair("opt", OPT_1B, 50276),
    "opt-1.3b, lora": Pair("opt", OPT_1B, 50276, options={"tune": "lora"}),
}


def measure(pair: Pair) -> dict[str, Any]:
    """One training step and one generation in this process."""
    import torch

    from vistill.models.captioner import TorchStepper, parameter_count
    from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
    from vistill.models.tokens import BOS, EOS
    from vistill.models.vision import VisionConfig
    from vistill.runtime.decode import GenerationConfig, generate

    torch.manual_seed(0)
    started = time.perf_counter()
    output = "embedding" if "_clip" in pair.tower else "grid"
    decoder = LanguageConfig(
        pair.kind, pair.settings, pair.vocab, pair.context, **({"tune": "frozen"} | pair.options)
    )
    model = PrefixCaptioner(
        PrefixConfig(
            VisionConfig(name=pair.tower, image_size=pair.image_size, output=output),
            PrefixMapperConfig(kind="mlp", features="pooled", length=pair.prefix),
            decoder,
        )
    ).train()
    model.tower.requires_grad_(False)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)
    made = time.perf_counter()
    pixels = torch.randn(pair.pictures, 3, pair.image_size, pair.image_size)
    tokens = torch.randint(4, pair.vocab, (pair.pictures, 1, pair.context))
    logits = model(pixels, tokens[..., :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 2), tokens[..., 1:].flatten())
    loss.backward()
    optimizer.step()
    stepped, peak = time.perf_counter(), _peak()
    optimizer.zero_grad(set_to_none=True)
    del logits, loss
    model.eval()
    begun = time.perf_counter()
    with torch.inference_mode():
        stepper = TorchStepper(model, model.vision(pixels[:1]))
        generate(stepper, 1, bos=BOS, eos=EOS, config=GenerationConfig(max_new_tokens=16, min_new_tokens=16))
    return {
        "parameters": parameter_count([model]),
        "learning": sum(p.numel() for p in learning),
        "make": made - started,
        "step": stepped - made,
        "generate": time.perf_counter() - begun,
        "peak_step": peak,
        "peak": _peak(),
        "threads": torch.get_num_threads(),
    }


def _peak() -> float:
    """Largest resident memory of this process so far, in GB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def plan() -> list[str]:
    """A table of computed memory for LLaMA-7B: weights, and what a training step adds."""
    layers, width, ffn, vocab = 32, 4096, 11008, 32004
    dense = layers * (4 * width**2 + 3 * width * ffn)
    tables = 2 * vocab * width  # stay as they are: 4 bytes each, input and output
    rows, positions = 8, 10 + 40
    # of a layer, in half precision: inputs of its seven products, q k v, two norms and the gated halves
    activations = rows * positions * layers * (9 * width + 4 * ffn) * 2
    kept = rows * positions * layers * width * 4  # with checkpointing: the input of each layer
    logits = rows * 40 * vocab * 4 * 3
    lines = [
        "| LLaMA-7B | weights | activations | those with checkpointing | logits | in all | in all with it |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, bits in (("float32", 32), ("float16", 16), ("bits=8", 8), ("bits=4", 4)):
        weights = dense * bits / 8 + tables * (2 if bits == 16 else 4)
        row = [weights, activations, kept, logits, weights + activations + logits, weights + kept + logits]
        lines.append(f"| {name} | " + " | ".join(f"{value / 1e9:.1f} GB" for value in row) + " |")
    return lines


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """The measured rows as Markdown."""
    lines = [
        "| language model | parameters | learning | training step | its peak | caption of 16 tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['parameters'] / 1e6:,.0f} M | {row['learning'] / 1e6:.1f} M "
            f"| {row['step']:.1f} s | {row['peak_step']:.1f} GB | {row['generate']:.2f} s |"
        )
    return lines


def page(found: dict[str, dict[str, Any]]) -> str:
    """The whole page."""
    first = next(iter(found.values()))
    return "\n".join(
        [
            "# Memory of prefix captioners",
            "",
            "CLIP ViT-B/32, an MLP to a prefix of 10, and a frozen language model, all with random",
            "weights of the real sizes in float32; written by `benchmarks/prefix_memory.py`",
            f"({platform.machine()}, {os.cpu_count()} cores, {first['threads']} threads of torch, shared",
            "with other work). A training step has 4 pictures with a caption of 40 tokens each; memory is",
            "the largest of the process, Python and torch with it.",
            "",
            *table(found),
            "",
            "What does not fit here, computed: 8 captions of 40 tokens behind a prefix of 10, activations",
            "in half precision; `prefix.decoder.bits` keeps dense layers in 8 or 4 bits and both tables in",
            "float32.",
            "",
            *plan(),
            "",
        ]
    )


def main() -> None:
    """Measure each pair in a process of its own and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=PAIRS, help="measure these pairs alone")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--measure", choices=PAIRS, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        print(json.dumps(measure(PAIRS[words.measure])))
        return
    found = {}
    for name in words.only or [name for name in PAIRS if name != "tiny"]:
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--measure", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: ended with {done.returncode}, left out", file=sys.stderr)
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
    if not found:
        sys.exit("nothing could be measured")
    text = page(found)
    if words.write:
        PAGE.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
