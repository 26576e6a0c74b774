"""The words of `vistill teach`, and the settings that they mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Teacher = Annotated[
    str,
    typer.Argument(
        metavar="TEACHER",
        help="Folder or hub name; checkpoints joined by + are an ensemble; http(s)://HOST/v1#MODEL.",
    ),
]
Data = Annotated[Path, typer.Argument(metavar="DATA", help="Data set that `vistill data build` made.")]
Folder = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder that `vistill teach run` made.")]
Splits = Annotated[str, typer.Option(help="Splits, as train,extra.")]
Captions = Annotated[int, typer.Option(min=0, help="Captions the teacher makes of each view.")]
Beams = Annotated[int, typer.Option(min=1, help="Beams of its search; 1 is greedy.")]
Draw = Annotated[bool, typer.Option("--sample", help="Draw the captions at random instead of searching.")]
Temperature = Annotated[float, typer.Option(help="With --sample: above 1 is more varied.")]
TopP = Annotated[float, typer.Option(help="With --sample: draw from the likeliest tokens of this mass.")]
LengthPenalty = Annotated[float, typer.Option(help="Score is sum(log p) / length ** this.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest caption it makes, in tokens.")]
Longest = Annotated[int, typer.Option(min=2, help="Longest text in tokens, marks included.")]
TopK = Annotated[int, typer.Option(help="Log-probabilities kept at each position of each text.")]
Gold = Annotated[bool, typer.Option("--gold/--no-gold", help="Whether --top-k looks at gold captions too.")]
Hidden = Annotated[str, typer.Option(help="Encoder states: none, all or pooled.")]
HiddenDtype = Annotated[str, typer.Option(help="float16, or int8 with a scale for each patch.")]
Embedding = Annotated[bool, typer.Option("--embedding", help="Keep the picture's embedding.")]
Views = Annotated[int, typer.Option(help="Views of each picture: the clean one, then augmented ones.")]
Augment = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="How far augmented views go, as flip=0 or crop_scale=0.5,1: datamodule.augment. Several.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the augmented views and of drawn captions.")]
BatchSize = Annotated[int, typer.Option(help="Pictures that the teacher sees at once.")]
ShardRecords = Annotated[int, typer.Option(help="Records in one file, the most that a kill can lose.")]
Measure = Annotated[
    int | None,
    typer.Option(
        min=0, help="Records to measure before; 0 plans nothing. [default: 16; 0 for a URL, where each costs]"
    ),
]
Device = Annotated[str, typer.Option(help="Where torch runs the teacher: cpu, cuda, cuda:1.")]
Prompt = Annotated[str, typer.Option(help="What a teacher that follows instructions is told.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Of a URL: requests at the same time. [default: 4]")]
PerMinute = Annotated[
    float | None,
    typer.Option(min=0, help="Of a URL: most requests a minute of each process. [default: no limit]"),
]
Timeout = Annotated[
    float | None, typer.Option(help="Of a URL: seconds without a byte till a new attempt. [default: 60]")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def config_of(words: dict[str, Any]) -> Any:
    """The CacheConfig that the words of the command line mean. Raises ConfigError for a wrong one."""
    from vistill.distill.answers import Ask
    from vistill.distill.cache import CacheConfig
    from vistill.runtime.decode import GenerationConfig

    generation = GenerationConfig(
        max_new_tokens=words["max_new_tokens"],
        num_beams=words["beams"],
        length_penalty=words["length_penalty"],
        do_sample=words["sample"],
        temperature=words["temperature"],
        top_p=words["top_p"],
        seed=words["seed"],
    )
    ask = Ask(
        captions=words["captions"],
        generation=generation,
        gold=words["gold"],
        top_k=words["top_k"],
        hidden=words["hidden"],
        embedding=words["embedding"],
        longest=words["longest"],
    )
    return CacheConfig(
        splits=tuple(words["splits"].split(",")),
        views=words["views"],
        seed=words["seed"],
        augment=augment_of(words["augment"] or []),
        ask=ask,
        hidden_dtype=words["hidden_dtype"],
        shard_records=words["shard_records"],
        batch_size=max(words["batch_size"], words["workers"] or 1),  # or some would have nothing to send
    )


def augment_of(words: Sequence[str]) -> Any:
    """The AugmentSpec of NAME=VALUE words; what none names is as in training. ConfigError for a wrong one."""
    from dataclasses import fields

    from vistill.errors import ConfigError
    from vistill.runtime.image import AugmentSpec

    usual: dict[str, Any] = {field.name: field.default for field in fields(AugmentSpec)}
    given: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in usual:
            raise ConfigError(f"--augment {word}: names are {', '.join(usual)}")
        many = len(usual[name]) if isinstance(usual[name], tuple) else 1
        try:
            numbers = tuple(map(float, text.split(",")))
        except ValueError:
            numbers = ()
        if len(numbers) != many:
            example = f"{name}=0.5,1" if many == 2 else f"{name}=0.5"
            raise ConfigError(f"--augment {word}: write {example}")
        given[name] = numbers if many > 1 else numbers[0]
    return AugmentSpec(**given)


def remote_of(words: dict[str, Any]) -> dict[str, Any]:
    """How fast a server is asked: what the command line says of it. ConfigError if the teacher is none."""
    from vistill.distill.teachers import is_url
    from vistill.errors import ConfigError

    names = [name for name in ("workers", "per_minute", "timeout") if words[name] is not None]
    if names and not is_url(words["teacher"] or ""):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        raise ConfigError(f"{options}: only for a teacher that is a URL, http(s)://HOST/v1#MODEL; leave away")
    return {name: words[name] for name in names}


def load(teacher: str, device: str, prompt: str, threads: int | None, remote: dict[str, Any]) -> Any:
    """The teacher, computing with so many threads."""
    from vistill.distill.teachers import load_teacher

    if threads:
        import torch

        torch.set_num_threads(threads)
    return load_teacher(teacher, device, prompt, remote)
