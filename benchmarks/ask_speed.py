"""Pictures about which a question is answered a second, beside the same weights in eager fp32, in one run.

    python benchmarks/ask_speed.py --checkpoint runs/flickr8k-answerer/best [--rounds 3] [--write]

JPEG files of 500 x 375, each with one question, to answers, decoding included. Beside the int8 bundle: the
fp32 checkpoint that it was made of, its tower and mapper in eager torch and its decoder as a GPT2LMHeadModel
of `transformers` with the same weights, by `generate`; and wholly in vistill's own torch code, laid out as in
training. Both one by one, as a pipeline does, and in batches. Every system runs in processes of its own, one
after another, round by round; medians are printed and, with --write, written to docs/benchmarks/ask_speed.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caption_speed import write_photos

from vistill.provenance import environment

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "ask_speed.md"
BATCH, TOKENS = 16, 8
SYSTEMS = {
    "vistill, int8 bundle, batches": ("vistill", BATCH),
    "vistill, int8 bundle, one by one": ("vistill", 1),
    "transformers eager fp32, batches": ("transformers", BATCH),
    "transformers eager fp32, one by one": ("transformers", 1),
    "vistill's torch code, eager fp32, batches": ("torch", BATCH),
    "vistill's torch code, eager fp32, one by one": ("torch", 1),
}
BASELINES = ("transformers eager fp32, batches", "transformers eager fp32, one by one")
QUESTIONS = (
    "what is in the picture?",
    "what is the dog doing?",
    "how many people are there?",
    "what colour is the shirt of the man?",
    "where are they?",
    "is there a child?",
)

Pair = tuple[Path, str]
Answer = Callable[[list[Pair]], list[str]]


def load_vistill(bundle: str, size: int) -> Answer:
    from vistill import Answerer

    answerer = Answerer(bundle or None, batch_size=size)
    return lambda pairs: answerer(pairs)


def load_eager(checkpoint: str, size: int, kind: str) -> Answer:
    """The fp32 checkpoint in batches of `size`; kind: whose decoder, `transformers` or `torch`."""
    import numpy as np
    import torch

    from vistill.models.loading import load_answerer
    from vistill.runtime.image import preprocess
    from vistill.runtime.prompts import answer_text, ask_mark, prompt_ids

    model, tokenizer, spec = load_answerer(checkpoint)
    longest = model.config.decoder.context - TOKENS
    if kind == "torch":  # as in training: half the time of a convolution
        model.tower.to(memory_format=torch.channels_last)
    write = transformers_decoder(model) if kind == "transformers" else torch_decoder(model)

    @torch.inference_mode()
    def answer(pairs: list[Pair]) -> list[str]:
        out: list[str] = []
        for start in range(0, len(pairs), size):
            some = pairs[start : start + size]
            pixels = torch.from_numpy(np.stack([preprocess(path, spec) for path, _ in some]))
            prompts = [prompt_ids(tokenizer, question, longest) for _, question in some]
            found = write(model.vision(pixels), prompts, ask_mark(tokenizer))
            out += [answer_text(tokenizer, ids) for ids in found]
        return out

    return answer


Decode = Callable[[Any, list[list[int]], int], list[list[int]]]
"""(memory [B, N, D], prompts, mark between question and answer) -> ids of the answers."""


def torch_decoder(model: Any) -> Decode:
    """vistill's own loop over its own torch decoder."""
    from vistill.models.answerer import PromptedStepper
    from vistill.models.tokens import EOS
    from vistill.runtime.decode import GenerationConfig, generate

    config = GenerationConfig(max_new_tokens=TOKENS, num_beams=1)

    def decode(memory: Any, prompts: list[list[int]], ask: int) -> list[list[int]]:
        stepper = PromptedStepper(model, model.decoder.cross_kv(memory), prompts)
        found = generate(stepper, len(prompts), bos=ask, eos=EOS, config=config)
        return [list(hypotheses[0].tokens) for hypotheses in found]

    return decode


def transformers_decoder(model: Any) -> Decode:
    """A GPT2LMHeadModel with the weights of the checkpoint's decoder."""
    import torch

    from vistill.models.language import from_gpt2_state
    from vistill.models.tokens import BOS, EOS, NEVER_GENERATED, PAD
    from vistill.models.torchvision_repair import repair_torchvision
    from vistill.runtime.prompts import left_padded

    repair_torchvision()
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    ours = model.decoder.config
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=ours.vocab_size,
            n_positions=ours.context,
            n_embd=ours.width,
            n_layer=ours.layers,
            n_head=ours.heads,
            add_cross_attention=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    ).eval()
    state, weights = gpt2.state_dict(), model.decoder.state_dict()
    numbered = {name: torch.tensor([[number]]) for number, name in enumerate(state)}
    for own, number in from_gpt2_state(numbered, ours.layers).items():
        name = list(state)[int(number)]
        turned = isinstance(gpt2.get_submodule(name.rpartition(".")[0]), Conv1D) and name.endswith("weight")
        state[name].copy_(weights[own].T if turned else weights[own])

    def decode(memory: Any, prompts: list[list[int]], ask: int) -> list[list[int]]:
        tokens, offset = left_padded(prompts)
        mask = (torch.arange(tokens.shape[1]) >= torch.from_numpy(offset)[:, None]).long()
        ids = gpt2.generate(
            input_ids=torch.from_numpy(tokens),
            attention_mask=mask,
            encoder_hidden_states=memory,
            max_new_tokens=TOKENS,
            min_new_tokens=1,
            num_beams=1,
            do_sample=False,
            suppress_tokens=list(NEVER_GENERATED),
        )
        answers = ids[:, tokens.shape[1] :].tolist()
        return [row[: row.index(EOS)] if EOS in row else row for row in answers]

    return decode


def measure_here(system: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one system in this process: its answers, pictures a second after a warm-up, peak memory in MB."""
    kind, size = SYSTEMS[system]
    if kind == "vistill":
        answer = load_vistill(options.bundle, size)
    else:
        answer = load_eager(options.checkpoint, size, kind)
    paths = sorted(options.pictures.glob("*.jpg"))
    pairs = [(path, QUESTIONS[number % len(QUESTIONS)]) for number, path in enumerate(paths)]
    answers = answer(pairs)  # and a warm-up
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < options.seconds:
        for start in range(0, len(pairs), 4 * BATCH):
            done += len(answer(pairs[start : start + 4 * BATCH]))
            if time.perf_counter() - began >= options.seconds:
                break
    rate = done / (time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"per_second": rate, "peak_mb": peak, "answers": answers}


def measure(system: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--system", system, "--pictures", str(folder)]
    for name in ("bundle", "checkpoint", "seconds"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def make_page(rows: dict[str, list[dict[str, Any]]], rounds: int) -> str:
    """The table as Markdown."""
    rate = {name: statistics.median(row["per_second"] for row in found) for name, found in rows.items()}
    right = rows[BASELINES[0]][0]["answers"]
    lines = [
        "# Speed of answering",
        "",
        f"Written by `python benchmarks/ask_speed.py --rounds {rounds} --write`. JPEG files of 500 x 375",
        "with one question each to answers, decoding included, all processors of the machine; batches of",
        f"{BATCH}; medians of rounds in which the systems take turns. Eager fp32: the checkpoint that the",
        "int8 bundle was made of; under `transformers` its decoder is a `GPT2LMHeadModel` with the same",
        f"weights. Same answers: compared with {BASELINES[0]}, over {len(right)} questions.",
        "",
        "| system | pictures/s | times eager, batches | times eager, one by one | peak MB | same answers |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        times = " | ".join(f"{rate[name] / rate[baseline]:.1f}" for baseline in BASELINES)
        peak = max(row["peak_mb"] for row in found)
        same = sum(a == b for a, b in zip(found[0]["answers"], right, strict=True)) / len(right)
        lines.append(f"| {name} | {rate[name]:.1f} | {times} | {peak:.0f} | {100 * same:.0f}% |")
    facts = {**environment(), "processors": str(len(os.sched_getaffinity(0)))}
    lines += ["", "| machine | |", "|---|---|", *[f"| {k} | {v} |" for k, v in facts.items()], ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="the fp32 answerer that the bundle was made of")
    parser.add_argument("--bundle", default="", help="answerer bundle; by default the one in the package")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each system and round")
    parser.add_argument("--photos", type=int, default=128)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(json.dumps(measure_here(options.system, options)))
        return
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    with tempfile.TemporaryDirectory() as scratch:
        write_photos(Path(scratch), options.photos)
        for turn in range(options.rounds):
            for name, found in rows.items():
                found.append(measure(name, options, Path(scratch)))
                rate = found[-1]["per_second"]
                print(f"round {turn + 1}, {name}: {rate:.1f} a second", file=sys.stderr, flush=True)
    page = make_page(rows, options.rounds)
    print(page)
    if options.write:
        PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
