"""What answers questions: a bundle, with no torch loaded, or a checkpoint."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vistill.errors import BundleError
from vistill.files import best_of
from vistill.runtime.answerer import Answer, Answerer, Pair, answer_pairs
from vistill.runtime.bundle import MANIFEST
from vistill.runtime.decode import GenerationConfig

BATCH = 16


@dataclass(frozen=True)
class Answering:
    """`answer` takes (picture, question) pairs and how many answers to each, best first."""

    answer: Callable[[Iterable[Pair], int], list[list[Answer]]]
    kind: str
    """bundle or checkpoint."""
    generation: GenerationConfig
    hash: str
    """sha256 (hex) that tells which model this is."""


def open_answerer(model: Path | None, threads: int | None = None, **overrides: Any) -> Answering:
    """Open a bundle or checkpoint folder, or that of a run; None is the bundle in the package.

    overrides: fields of GenerationConfig that replace the model's own, None leaves one alone. Raises
    BundleError if it is neither, ConfigError for a generation setting out of range.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if model is None or (model / MANIFEST).is_file():
        answerer = Answerer(model, threads, BATCH, **given)
        return Answering(answerer.answer, "bundle", answerer.generation, answerer.bundle.hash())
    folder = best_of(model)
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        return _open_checkpoint(folder, threads, given)
    problem = "there is no such folder" if not model.is_dir() else f"has neither a checkpoint nor {MANIFEST}"
    raise BundleError(f"{model}: {problem}")


def _open_checkpoint(folder: Path, threads: int | None, given: dict[str, Any]) -> Answering:
    import numpy as np
    import torch

    from vistill.models.answerer import PromptedStepper, of_questions
    from vistill.models.folder import model_files, read_config
    from vistill.models.loading import ANSWERERS, load_answerer
    from vistill.models.tokens import EOS
    from vistill.report.generate import hash_files
    from vistill.runtime.decode import generate
    from vistill.runtime.image import preprocess
    from vistill.runtime.prompts import answer_text, ask_mark, prompt_ids

    if threads:
        torch.set_num_threads(threads)
    model, tokenizer, spec = load_answerer(folder)
    provenance = read_config(folder, *ANSWERERS).get("provenance", {})
    search = replace(GenerationConfig(**provenance.get("config", {}).get("generation", {})), **given)
    longest = model.config.decoder.context - search.max_new_tokens

    def answer(pairs: Iterable[Pair], num_return: int = 1) -> list[list[Answer]]:
        config = replace(search, num_return=num_return, num_beams=max(search.num_beams, num_return))

        @torch.inference_mode()
        def search_all(pixels: Any, owner: list[int], questions: Sequence[str]) -> list[list[Answer]]:
            cross = model.decoder.cross_kv(model.vision(torch.from_numpy(pixels)))
            prompts = [prompt_ids(tokenizer, question, longest) for question in questions]
            stepper = PromptedStepper(model, of_questions(cross, owner), prompts)
            found = generate(stepper, len(prompts), bos=ask_mark(tokenizer), eos=EOS, config=config)
            return [[Answer(answer_text(tokenizer, h.tokens), h.score) for h in one] for one in found]

        def read(sources: Sequence[Any]) -> Any:
            return np.stack([preprocess(source, spec) for source in sources])

        return answer_pairs(list(pairs), BATCH, read, search_all)

    mark = hash_files(model_files(folder))
    return Answering(answer, "checkpoint", search, mark)
