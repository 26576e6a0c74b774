"""Teachers of every kind, each compared with its model called directly."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.distill.tiny_teachers import (
    CAPTIONS,
    pictures,
    save_blip,
    save_checkpoint,
    save_git,
    save_llava,
    save_vit_gpt2,
    word_tokenizer,
)
from tests.models.tiny_pretrained import save_public
from tests.runtime.conftest import WORDS, random_head, tiny_logits, tiny_manifest, write_tiny_graphs
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from vistill.data.text import encode
from vistill.distill import teachers_prompted, teachers_transformers, teachers_vistill
from vistill.distill.answers import Answer, Ask, Teacher, Text
from vistill.distill.teachers import from_anywhere, load_teacher
from vistill.distill.teachers_common import picture_seed, tokenizer_hash
from vistill.distill.teachers_pretrained import Words
from vistill.errors import ConfigError
from vistill.models.adopt import load_language, shift_tokenizer
from vistill.models.captioner import TorchStepper
from vistill.models.checkpoint import load_captioner
from vistill.models.loading import load_model, save_model
from vistill.models.tokens import BOS, EOS, NEVER_GENERATED, SPECIAL
from vistill.runtime.bundle import write_bundle
from vistill.runtime.consensus import ConsensusHead
from vistill.runtime.decode import GenerationConfig, generate
from vistill.runtime.image import to_array
from vistill.runtime.pipelines import Captioner

SHORT = GenerationConfig(max_new_tokens=8)
SAMPLED = GenerationConfig(max_new_tokens=8, do_sample=True, num_return=3, seed=3)
KINDS = ("checkpoint", "ensemble", "bundle", "vit_gpt2", "blip", "git", "llava")
FULL = ("checkpoint", "ensemble", "vit_gpt2", "blip")  # those that show their encoder

Logits = Callable[[int, list[int]], Tensor]
"""(picture, ids [T]) -> logits [T, V] after each, computed alone and without the teacher."""


def save_bundle(folder: Path, head: ConsensusHead | None = None) -> Path:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    files = write_tiny_graphs(raw)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(raw / "tokenizer.json"))
    files |= {"tokenizer": raw / "tokenizer.json"}
    if head is not None:
        files["consensus"] = raw / "consensus.npz"
        files["consensus"].write_bytes(head.to_bytes())
    write_bundle(folder / "bundle", tiny_manifest(), files, card="# tiny\n")
    return folder / "bundle"


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{kind: what `load_teacher` is given}."""
    root = tmp_path_factory.mktemp("teachers")
    first, second = save_checkpoint(root / "one", 0), save_checkpoint(root / "two", 1)
    return {
        "checkpoint": str(first),
        "ensemble": f"{first}+{second}",
        "bundle": str(save_bundle(root / "b")),
        "vit_gpt2": str(save_vit_gpt2(root / "vit-gpt2")),
        "blip": str(save_blip(root / "blip")),
        "git": str(save_git(root / "git")),
        "llava": str(save_llava(root / "llava")),
    }


@pytest.fixture(scope="module")
def teachers(specs: dict[str, str]) -> dict[str, Teacher]:
    return {kind: load_teacher(spec) for kind, spec in specs.items()}


def ask_all(teacher: Teacher, **changes: Any) -> Ask:
    """Everything that the teacher can."""
    full = "hidden" in teacher.can
    wanted = {"captions": 2, "top_k": 4, "generation": SHORT, "hidden": "all" if full else "none"}
    return Ask(**wanted | {"embedding": full} | changes)


@pytest.fixture(scope="module")
def answers(teachers: dict[str, Teacher]) -> dict[str, list[Answer]]:
    return {
        kind: teacher.answer(pictures(), CAPTIONS, ask_all(teacher)) for kind, teacher in teachers.items()
    }


def assert_same(found: Answer, expected: Answer) -> None:
    """Equal but for rounding."""
    assert found.captions == expected.captions
    for a, b in zip(found.gold + found.generated, expected.gold + expected.generated, strict=True):
        assert_same_text(a, b)
    for ours, theirs in ((found.hidden, expected.hidden), (found.embedding, expected.embedding)):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def assert_same_text(found: Text, expected: Text) -> None:
    assert found.ids.tolist() == expected.ids.tolist()
    if expected.top_ids is None or expected.top_logp is None:
        assert found.top_ids is None
        assert found.top_logp is None
        return
    assert found.top_ids is not None
    assert found.top_logp is not None
    np.testing.assert_array_equal(found.top_ids, expected.top_ids)
    np.testing.assert_allclose(found.top_logp, expected.top_logp, rtol=1e-3, atol=1e-4)


def assert_top_k(text: Text, logits: Tensor) -> None:
    """The text's top K are those of logits [T - 1, V] after each id but the last."""
    assert text.top_ids is not None
    assert text.top_logp is not None
    logp = logits.double().log_softmax(-1)
    order = logp.argsort(dim=-1, descending=True)[:, : text.top_ids.shape[1]]
    assert text.top_ids.tolist() == order.tolist()
    np.testing.assert_allclose(text.top_logp, logp.gather(1, order), rtol=1e-3, atol=1e-4)
    assert text.top_logp.dtype == np.float32
    assert text.top_ids.dtype == np.int64


# Each kind, called directly


def direct_checkpoints(specs: dict[str, str], kind: str, never: Sequence[int] = ()) -> Logits:
    """`never` are forbidden to each member."""
    loaded = [load_captioner(Path(part)) for part in specs[kind].split("+")]

    @torch.inference_mode()
    def logits(picture: int, ids: list[int]) -> Tensor:
        found = []
        for model, _, _, preprocess in loaded:
            pixels = torch.from_numpy(to_array(pictures()[picture], preprocess))[None]
            scores = model(pixels, torch.tensor([[ids]]))[0, 0]
            scores[:, list(never)] = -torch.inf
            found.append(scores.softmax(-1))
        return torch.stack(found).mean(0).log()

    return logits


def direct_bundle(specs: dict[str, str], kind: str) -> Logits:
    def logits(picture: int, ids: list[int]) -> Tensor:
        pixels = to_array(pictures()[picture], tiny_manifest().preprocess)
        return torch.stack([torch.from_numpy(tiny_logits(pixels, ids[: t + 1])) for t in range(len(ids))])

    return logits


def direct_vit_gpt2(specs: dict[str, str], kind: str) -> Logits:
    from transformers import AutoImageProcessor, VisionEncoderDecoderModel

    model = VisionEncoderDecoderModel.from_pretrained(specs[kind]).eval()
    processor = AutoImageProcessor.from_pretrained(specs[kind], backend="pil")

    @torch.inference_mode()
    def logits(picture: int, ids: list[int]) -> Tensor:
        pixels = processor(pictures()[picture], return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels, decoder_input_ids=torch.tensor([ids])).logits[0]

    return logits


def direct_blip(specs: dict[str, str], kind: str) -> Logits:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model = BlipForConditionalGeneration.from_pretrained(specs[kind]).eval()
    processor = BlipProcessor.from_pretrained(specs[kind], backend="pil")

    @torch.inference_mode()
    def logits(picture: int, ids: list[int]) -> Tensor:
        pixels = processor(images=pictures()[picture], return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels, input_ids=torch.tensor([ids])).logits[0]

    return logits


def direct_git(specs: dict[str, str], kind: str) -> Logits:
    from transformers import AutoProcessor, GitForCausalLM

    model = GitForCausalLM.from_pretrained(specs[kind]).eval()
    processor = AutoProcessor.from_pretrained(specs[kind], backend="pil")

    @torch.inference_mode()
    def logits(picture: int, ids: list[int]) -> Tensor:
        pixels = processor(images=pictures()[picture], return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels, input_ids=torch.tensor([ids])).logits[0, -len(ids) :]

    return logits


def direct_llava(specs: dict[str, str], kind: str) -> Logits:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(specs[kind]).eval()
    processor = AutoProcessor.from_pretrained(specs[kind], backend="pil")
    text = "user <image> Describe this picture in one short sentence. assistant"

    @torch.inference_mode()
    def logits(picture: int, ids: list[int]) -> Tensor:
        inputs = processor(images=pictures()[picture], text=text, return_tensors="pt")
        assert int(inputs["input_ids"][0, -1]) == ids[0]
        whole = torch.cat((inputs["input_ids"], torch.tensor([ids[1:]], dtype=torch.int64)), dim=1)
        return model(pixel_values=inputs["pixel_values"], input_ids=whole).logits[0, -len(ids) :]

    return logits


BEGIN_END = {"vit_gpt2": (0, 0), "blip": (4, 3), "git": (2, 3), "llava": (6, 2)}
"""Own ids of what stands before a text (the last of the prompt, "assistant", for llava) and of its end."""


def direct(specs: dict[str, str], kind: str) -> Logits:
    """DIRECT under vistill's ids: <eos> has the logit of the model's own end, what is token i is i + 4."""
    logits = DIRECT[kind](specs, kind)
    if kind not in BEGIN_END:
        return logits
    begin, end = BEGIN_END[kind]

    def moved(picture: int, ids: list[int]) -> Tensor:
        assert ids[0] == BOS
        own = logits(picture, [begin, *(end if i == EOS else i - 4 for i in ids[1:])])
        never = torch.full((len(ids), 1), -torch.inf)
        rest = own.clone()
        rest[:, end] = -torch.inf
        return torch.cat((never, never, own[:, end : end + 1], never, rest), dim=1)

    return moved


def while_searching(specs: dict[str, str], kind: str) -> Logits:
    """As `direct`, with what is forbidden in captions."""
    if kind in ("checkpoint", "ensemble"):
        return direct_checkpoints(specs, kind, NEVER_GENERATED)
    logits = direct(specs, kind)

    def allowed(picture: int, ids: list[int]) -> Tensor:
        scores = logits(picture, ids).clone()
        if kind == "llava":
            scores[:, 4 + 4] = -torch.inf  # <image>
        return scores

    return allowed


DIRECT: dict[str, Callable[[dict[str, str], str], Logits]] = {
    "checkpoint": direct_checkpoints,
    "ensemble": direct_checkpoints,
    "bundle": direct_bundle,
    "vit_gpt2": direct_vit_gpt2,
    "blip": direct_blip,
    "git": direct_git,
    "llava": direct_llava,
}


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_is_that_of_the_model_alone(
    kind: str, specs: dict[str, str], answers: dict[str, list[Answer]]
) -> None:
    logits = direct(specs, kind)
    lengths = set()
    for picture, answer in enumerate(answers[kind]):
        assert len(answer.gold) == len(CAPTIONS[picture])
        assert len(answer.generated) == 2
        for text in answer.gold + answer.generated:
            assert_top_k(text, logits(picture, text.ids.tolist())[:-1])
            lengths.add(len(text.ids))
    assert len(lengths) > 2  # or padding was never tried


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_captions_follow_the_likeliest_token(
    kind: str, specs: dict[str, str], teachers: dict[str, Teacher]
) -> None:
    logits = while_searching(specs, kind)
    greedy = GenerationConfig(max_new_tokens=6, num_beams=1)
    found = teachers[kind].answer(pictures(), CAPTIONS, Ask(generation=greedy))
    for picture, answer in enumerate(found):
        ids = [int(answer.generated[0].ids[0])]
        while len(ids) <= 6 and (len(ids) == 1 or ids[-1] != EOS):
            scores = logits(picture, ids)[-1].clone()
            if len(ids) == 1:
                scores[EOS] = -torch.inf
            ids.append(int(scores.argmax()))
        assert answer.generated[0].ids.tolist() == ids
        assert answer.generated[0].top_ids is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generation", [SHORT, SAMPLED], ids=["beams", "samples"])
def test_company_does_not_change_an_answer(
    kind: str, generation: GenerationConfig, teachers: dict[str, Teacher]
) -> None:
    teacher, images = teachers[kind], pictures()
    ask = ask_all(teacher, captions=3, generation=generation)
    together = teacher.answer(images, CAPTIONS, ask)
    turned = teacher.answer(images[::-1], CAPTIONS[::-1], ask)[::-1]
    for i, expected in enumerate(together):
        assert_same(teacher.answer([images[i]], [CAPTIONS[i]], ask)[0], expected)
        assert_same(turned[i], expected)
    assert len({answer.captions for answer in together}) > 1 or kind == "bundle"  # pictures count


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_several_and_come_best_first(
    kind: str, specs: dict[str, str], teachers: dict[str, Teacher]
) -> None:
    # samples are scored by the raw distribution; only vistill's own forbids its marks before that
    logits = (while_searching if kind in ("checkpoint", "ensemble") else direct)(specs, kind)
    ask = Ask(captions=5, generation=SAMPLED)
    answer = teachers[kind].answer(pictures(1), [[]], ask)[0]
    scores = []
    for text in answer.generated:
        ids = text.ids.tolist()
        steps = logits(0, ids)[:-1].double()
        scores.append(float(steps.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum()))
    assert scores == sorted(scores, reverse=True)
    assert len(set(answer.captions)) > 1
    other = replace(ask, generation=replace(SAMPLED, seed=4))
    assert teachers[kind].answer(pictures(1), [[]], other)[0].captions != answer.captions


def test_sampling_leaves_the_random_numbers_of_others_alone(teachers: dict[str, Teacher]) -> None:
    for kind in ("vit_gpt2", "llava"):
        torch.manual_seed(9)
        expected = torch.rand(3)
        torch.manual_seed(9)
        teachers[kind].answer(pictures(1), [[]], Ask(captions=2, generation=SAMPLED))
        assert torch.equal(torch.rand(3), expected)


# Beams as the model's own `generate` finds them


def test_vit_gpt2_searches_as_transformers_does(
    specs: dict[str, str], answers: dict[str, list[Answer]]
) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

    folder = specs["vit_gpt2"]
    model = VisionEncoderDecoderModel.from_pretrained(folder).eval()
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(pictures(), return_tensors="pt")
    ids = model.generate(
        **pixels, num_beams=3, num_return_sequences=2, max_new_tokens=8, min_new_tokens=1,
        early_stopping=True, length_penalty=1.0,
    )  # fmt: skip
    texts = AutoTokenizer.from_pretrained(folder).batch_decode(ids, skip_special_tokens=True)
    assert [c for answer in answers["vit_gpt2"] for c in answer.captions] == [t.strip() for t in texts]
    with torch.inference_mode():
        hidden = model.encoder(**pixels).last_hidden_state
    for i, answer in enumerate(answers["vit_gpt2"]):
        np.testing.assert_allclose(answer.hidden, hidden[i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answer.embedding, hidden[i].mean(0), rtol=1e-4, atol=1e-5)


def test_blip_searches_as_transformers_does(specs: dict[str, str], answers: dict[str, list[Answer]]) -> None:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model = BlipForConditionalGeneration.from_pretrained(specs["blip"]).eval()
    processor = BlipProcessor.from_pretrained(specs["blip"], backend="pil")
    pixels = processor(images=pictures(), return_tensors="pt")
    ids = model.generate(
        **pixels, num_beams=3, num_return_sequences=2, max_new_tokens=8, min_new_tokens=1,
        early_stopping=True, length_penalty=1.0,
    )  # fmt: skip
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    assert [c for answer in answers["blip"] for c in answer.captions] == [t.strip() for t in texts]
    with torch.inference_mode():
        hidden = model.vision_model(**pixels).last_hidden_state
    for i, answer in enumerate(answers["blip"]):
        np.testing.assert_allclose(answer.hidden, hidden[i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answer.embedding, hidden[i, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["git", "llava"])
def test_prompted_models_search_as_transformers_does(
    kind: str, specs: dict[str, str], answers: dict[str, list[Answer]]
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(specs[kind]).eval()
    processor = AutoProcessor.from_pretrained(specs[kind], backend="pil")
    text = {"text": "user <image> Describe this picture in one short sentence. assistant"}
    for image, answer in zip(pictures(), answers[kind], strict=True):
        inputs = processor(images=image, return_tensors="pt", **(text if kind == "llava" else {}))
        before = inputs["input_ids"].shape[1] if "input_ids" in inputs else 1
        ids = model.generate(
            **inputs, num_beams=3, num_return_sequences=2, max_new_tokens=8, min_new_tokens=1,
            early_stopping=True, length_penalty=1.0,
        )  # fmt: skip
        texts = processor.batch_decode(ids[:, before:], skip_special_tokens=True)
        assert list(answer.captions) == [t.strip() for t in texts]


def test_a_bundle_answers_as_the_runtime_does(specs: dict[str, str], teachers: dict[str, Teacher]) -> None:
    expected = Captioner(specs["bundle"]).caption(pictures(), num_return=2)
    found = teachers["bundle"].answer(
        pictures(), CAPTIONS, Ask(captions=2, generation=tiny_manifest().generation)
    )
    assert [list(a.captions) for a in found] == [[c.text for c in one] for one in expected]


def test_the_consensus_head_of_a_bundle_chooses_for_the_teacher(
    teachers: dict[str, Teacher], tmp_path: Path
) -> None:
    folder = save_bundle(tmp_path, random_head())
    teacher = load_teacher(str(folder))
    generation = replace(tiny_manifest().generation, num_beams=4)
    drawn = replace(generation, do_sample=True, temperature=3.0, num_return=6)
    for asked in (replace(generation, num_return=1), drawn):
        captions = asked.num_return
        ask = Ask(captions=captions, generation=asked)
        found = [list(answer.captions) for answer in teacher.answer(pictures(), CAPTIONS, ask)]
        assert {len(texts) for texts in found} == {captions}
        plain = [list(answer.captions) for answer in teachers["bundle"].answer(pictures(), CAPTIONS, ask)]
        assert found != plain, "it has to matter here"
        if not asked.do_sample:  # each sampled picture has a seed of its own here
            runtime = Captioner(folder, **vars(asked)).caption(pictures())
            assert found == [[caption.text for caption in row] for row in runtime]
    greedy = Ask(captions=1, generation=replace(generation, num_beams=1))
    first, second = (t.answer(pictures(), CAPTIONS, greedy) for t in (teacher, teachers["bundle"]))
    assert [a.captions for a in first] == [a.captions for a in second], "there is nothing to choose from"
    assert teacher.identity.weights != teachers["bundle"].identity.weights


def test_a_checkpoint_answers_as_its_model_does(
    specs: dict[str, str], answers: dict[str, list[Answer]]
) -> None:
    model, tokenizer, _, preprocess = load_captioner(specs["checkpoint"])
    pixels = torch.from_numpy(np.stack([to_array(image, preprocess) for image in pictures()]))
    with torch.inference_mode():
        memory = model.vision(pixels)
        found = generate(
            TorchStepper(model, memory), 3, bos=BOS, eos=EOS, config=replace(SHORT, num_return=2)
        )
    for i, answer in enumerate(answers["checkpoint"]):
        assert list(answer.captions) == [tokenizer.decode(list(h.tokens)) for h in found[i]]
        assert [t.ids.tolist() for t in answer.gold] == [encode(tokenizer, t, 40) for t in CAPTIONS[i]]
        np.testing.assert_allclose(answer.hidden, memory[i], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answer.embedding, memory[i].mean(0), rtol=1e-4, atol=1e-5)


# Ensembles


def test_two_equal_members_are_one(specs: dict[str, str], answers: dict[str, list[Answer]]) -> None:
    one = specs["checkpoint"]
    twice = load_teacher(f"{one}+{one}")
    for found, alone in zip(
        twice.answer(pictures(), CAPTIONS, ask_all(twice)), answers["checkpoint"], strict=True
    ):
        assert alone.hidden is not None
        assert alone.embedding is not None
        doubled = replace(alone, hidden=np.tile(alone.hidden, (1, 2)), embedding=np.tile(alone.embedding, 2))
        assert_same(found, doubled)


def test_an_ensemble_is_neither_of_its_members(
    specs: dict[str, str], answers: dict[str, list[Answer]], teachers: dict[str, Teacher]
) -> None:
    second = load_teacher(specs["ensemble"].split("+")[1])
    other = second.answer(pictures(), CAPTIONS, ask_all(second))
    ours = [a.captions for a in answers["ensemble"]]
    assert ours != [a.captions for a in answers["checkpoint"]]
    assert ours != [a.captions for a in other]
    identity = teachers["ensemble"].identity
    assert (identity.kind, identity.name) == ("ensemble", "one+two")
    assert identity.weights not in (teachers["checkpoint"].identity.weights, second.identity.weights)
    assert identity.tokenizer == second.identity.tokenizer
    swapped = load_teacher("+".join(reversed(specs["ensemble"].split("+"))))
    assert swapped.identity.weights != identity.weights  # their hidden states stand side by side


def test_members_need_the_same_tokenizer(specs: dict[str, str], tmp_path: Path) -> None:
    other = word_tokenizer()
    other.add_tokens(["cat"])
    folder = save_checkpoint(tmp_path / "other", tokenizer=other)
    with pytest.raises(ConfigError, match="the tokenizers of 'one' and 'other' differ"):
        load_teacher(f"{specs['checkpoint']}+{folder}")


@pytest.mark.parametrize("kind", ["bundle", "vit_gpt2", "missing"])
def test_members_are_checkpoints(kind: str, specs: dict[str, str]) -> None:
    member = specs.get(kind, "nowhere")
    with pytest.raises(ConfigError, match=f"{member} is no vistill checkpoint folder"):
        load_teacher(f"{specs['checkpoint']}+{member}")


# What is asked


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_asked_comes(kind: str, teachers: dict[str, Teacher]) -> None:
    teacher = teachers[kind]
    only = teacher.answer(pictures(2), CAPTIONS[:2], Ask(captions=1, generation=SHORT))
    for answer in only:
        assert len(answer.captions) == len(answer.generated) == 1
        assert answer.gold == ()
        assert answer.hidden is answer.embedding is answer.generated[0].top_logp is None
    gold = teacher.answer(pictures(3), CAPTIONS, Ask(captions=0, top_k=2))
    assert [len(a.gold) for a in gold] == [2, 1, 0]
    assert all(a.captions == a.generated == () for a in gold)
    own = teacher.answer(pictures(1), CAPTIONS[:1], Ask(captions=1, generation=SHORT, top_k=2, gold=False))
    assert own[0].gold == ()
    assert own[0].generated[0].top_logp is not None
    assert teacher.answer([], [], Ask(generation=SHORT)) == []


@pytest.mark.parametrize("kind", FULL)
def test_pooled_is_the_mean_of_all(
    kind: str, teachers: dict[str, Teacher], answers: dict[str, list[Answer]]
) -> None:
    pooled = teachers[kind].answer(pictures(), CAPTIONS, Ask(captions=0, hidden="pooled"))
    for answer, whole in zip(pooled, answers[kind], strict=True):
        assert whole.hidden is not None
        assert answer.hidden is not None
        np.testing.assert_allclose(answer.hidden, whole.hidden.mean(0), rtol=1e-3, atol=1e-4)
        assert answer.hidden.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_are_cut(
    kind: str, teachers: dict[str, Teacher], answers: dict[str, list[Answer]]
) -> None:
    ask = ask_all(teachers[kind], longest=4, hidden="none", embedding=False)
    found = teachers[kind].answer(pictures(1), CAPTIONS[:1], ask)[0]
    whole = answers[kind][0]
    assert found.captions == whole.captions
    for text, full in zip(found.gold + found.generated, whole.gold + whole.generated, strict=True):
        assert full.top_ids is not None
        assert full.top_logp is not None
        assert_same_text(text, Text(full.ids[:4], full.top_ids[:3], full.top_logp[:3]))


@pytest.mark.parametrize("kind", ["checkpoint", "vit_gpt2", "llava"])
def test_parts_that_fit_in_memory_make_the_same_answer(
    kind: str,
    teachers: dict[str, Teacher],
    answers: dict[str, list[Answer]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (teachers_vistill, teachers_transformers, teachers_prompted):
        monkeypatch.setattr(module, "MOST_LOGITS", 1)  # one picture, or one text, at a time
    found = teachers[kind].answer(pictures(), CAPTIONS, ask_all(teachers[kind]))
    for answer, expected in zip(found, answers[kind], strict=True):
        assert_same(answer, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_answered_is_refused(kind: str, teachers: dict[str, Teacher]) -> None:
    teacher = teachers[kind]
    own = teacher.identity.vocab_size - (len(SPECIAL) if kind in BEGIN_END else 0)
    with pytest.raises(ConfigError, match=f"vocabulary has {own} entries"):
        teacher.answer(pictures(1), [["a dog"]], Ask(captions=0, top_k=1000))
    if kind not in FULL:
        with pytest.raises(ConfigError, match="gives no embedding, hidden"):
            teacher.answer(pictures(1), [[]], Ask(hidden="all", embedding=True))
    if kind not in ("git", "llava"):
        with pytest.raises(ConfigError, match="max_new_tokens=99: the teacher can write at most"):
            teacher.answer(pictures(1), [[]], Ask(generation=GenerationConfig(max_new_tokens=99)))


@pytest.mark.parametrize("kind", BEGIN_END)
def test_texts_of_public_models_are_those_that_a_student_reads(
    kind: str, specs: dict[str, str], teachers: dict[str, Teacher]
) -> None:
    from transformers import AutoTokenizer

    shifted = shift_tokenizer(AutoTokenizer.from_pretrained(specs[kind]).backend_tokenizer)
    assert teachers[kind].identity.tokenizer == tokenizer_hash(shifted)
    assert teachers[kind].identity.vocab_size == shifted.get_vocab_size()
    written = "One RED circle, on the left!"
    answer = teachers[kind].answer(pictures(1), [[written]], Ask(captions=2, top_k=2, generation=SHORT))[0]
    assert answer.gold[0].ids.tolist() == encode(shifted, "one red circle on the left", 40)
    for text, caption in zip(answer.generated, answer.captions, strict=True):
        assert shifted.decode(text.ids.tolist()) == caption
        assert text.ids[0] == BOS
        assert set(text.ids[1:-1].tolist()).isdisjoint(range(len(SPECIAL)))


def test_a_language_model_that_reads_as_the_teacher_has_its_ids(
    specs: dict[str, str], tmp_path: Path
) -> None:
    """DistilGPT-2 can be taught by ViT-GPT2 token by token: its table has the teacher's entries."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    teacher = load_teacher(specs["vit_gpt2"])
    entries = teacher.identity.vocab_size - len(SPECIAL)
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 1, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=entries, **sizes)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(specs["vit_gpt2"]).save_pretrained(tmp_path)
    language, tokenizer, _ = load_language(str(tmp_path))
    assert tokenizer_hash(tokenizer) == teacher.identity.tokenizer
    assert language.get_input_embeddings().num_embeddings == teacher.identity.vocab_size


def test_a_slow_tokenizer_gives_no_log_probabilities(
    specs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        teachers_transformers, "words_of", lambda own, marks, entries: Words(own, None, marks, entries)
    )
    teacher = load_teacher(specs["vit_gpt2"])
    with pytest.raises(ConfigError, match="gives no top_k; it can give captions, embedding, hidden"):
        teacher.answer(pictures(1), [["a dog"]], Ask(top_k=2))
    assert teacher.answer(pictures(1), [["a dog"]], Ask(generation=SHORT))[0].captions


def test_a_caption_cannot_ask_for_a_second_picture(teachers: dict[str, Teacher]) -> None:
    with_mark, without = teachers["llava"].answer(
        pictures(1) * 2, [["a <image> dog"], ["a dog"]], Ask(captions=0, top_k=2)
    )
    assert_same(with_mark, without)


def test_pictures_of_different_shapes_go_apart() -> None:
    """A processor may make more inputs of a larger picture; the same shapes go together."""
    inputs = [{"a": torch.zeros(1, n)} for n in (3, 5, 3)]
    assert teachers_prompted._same_shapes(inputs) == [[0, 2], [1]]


# Names, files, identities


@pytest.mark.parametrize("kind", KINDS)
def test_identity_is_the_same_every_time(
    kind: str, specs: dict[str, str], teachers: dict[str, Teacher]
) -> None:
    assert load_teacher(specs[kind]).identity == teachers[kind].identity
    json.dumps(teachers[kind].identity.details)
    assert str(Path(specs[kind].split("+")[0]).parent) not in str(teachers[kind].identity)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_other_weights_are_another_teacher(teachers: dict[str, Teacher], tmp_path: Path) -> None:
    folder = save_vit_gpt2(tmp_path / "vit-gpt2")
    assert load_teacher(str(folder)).identity == teachers["vit_gpt2"].identity
    rewrite(folder, lambda state: state | {"decoder.transformer.ln_f.bias": torch.ones(24)})
    changed = load_teacher(str(folder)).identity
    assert changed.weights != teachers["vit_gpt2"].identity.weights
    assert replace(changed, weights="") == replace(teachers["vit_gpt2"].identity, weights="")


def test_missing_weights_are_refused_but_for_an_unused_pooler(tmp_path: Path) -> None:
    folder = save_vit_gpt2(tmp_path / "vit-gpt2")
    rewrite(folder, lambda state: {k: v for k, v in state.items() if ".pooler." not in k})
    assert load_teacher(str(folder)).identity == load_teacher(str(folder)).identity  # though it is random
    rewrite(folder, lambda state: {k: v for k, v in state.items() if "h.1.mlp.c_fc.bias" not in k})
    with pytest.raises(ConfigError, match=r"lacks 1 weights of VisionEncoderDecoderModel.*mlp\.c_fc\.bias"):
        load_teacher(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"image_processor_type": "ViTImageProcessorFast"},
        {"image_processor_type": "ViTImageProcessor"},
        {"image_processor_type": None, "feature_extractor_type": "ViTFeatureExtractor", "size": 32},
    ],
    ids=["fast", "slow", "old"],
)
def test_processors_saved_in_any_form_do_the_same(
    changes: dict[str, Any], teachers: dict[str, Teacher], answers: dict[str, list[Answer]], tmp_path: Path
) -> None:
    folder = save_vit_gpt2(tmp_path / "vit-gpt2")
    path = folder / "preprocessor_config.json"
    settings = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(settings))
    teacher = load_teacher(str(folder))
    assert teacher.identity == teachers["vit_gpt2"].identity
    found = teacher.answer(pictures(), CAPTIONS, ask_all(teacher))
    for answer, expected in zip(found, answers["vit_gpt2"], strict=True):
        assert_same(answer, expected)
    path.write_text(
        json.dumps({k: v for k, v in settings.items() if v is not None} | {"image_mean": [0.1] * 3})
    )
    assert load_teacher(str(folder)).identity.preprocess != teacher.identity.preprocess


def test_the_prompt_is_part_of_the_identity(specs: dict[str, str], teachers: dict[str, Teacher]) -> None:
    other = load_teacher(specs["llava"], prompt="a red dog")
    assert other.identity.preprocess != teachers["llava"].identity.preprocess
    found = other.answer(pictures(1), [[]], Ask(generation=SHORT))[0].captions
    assert found != teachers["llava"].answer(pictures(1), [[]], Ask(generation=SHORT))[0].captions


def test_another_process_finds_the_teacher_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "a+b"):
        Path(name).mkdir()
    assert from_anywhere("one") == str(tmp_path / "one")
    assert from_anywhere("one + two") == f"{tmp_path / 'one'}+{tmp_path / 'two'}"
    assert from_anywhere("a+b") == str(tmp_path / "a+b")
    for spec in ("nlpconnect/vit-gpt2-image-captioning", "http://localhost:8000/v1#one+two"):
        assert from_anywhere(spec) == spec


def test_names_that_are_no_teacher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder, and it is no name on the hub"):
        load_teacher(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"neither a manifest\.json nor a config\.json"):
        load_teacher(str(tmp_path))
    config = tmp_path / "config.json"
    for text, message in (
        ("{", "is not JSON"),
        ('{"kind": "image-embedder"}', "of kind 'image-embedder' makes no captions"),
        ('{"model_type": "bert"}', "bert does not make text from pictures"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "BertModel does not make text"),
        ('{"model_type": "my-own"}', "AutoConfig cannot load it"),
    ):
        config.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_teacher(str(tmp_path))


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    folder = save_vit_gpt2(tmp_path / "m")
    (folder / "evil.py").write_text("open('ran', 'w')\nraise SystemExit\n")
    path = folder / "config.json"
    names = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "evil", "auto_map": names}))
    with pytest.raises(ConfigError, match="cannot load it"):
        load_teacher(str(folder))


def test_a_tokenizer_is_what_it_does() -> None:
    first, second = word_tokenizer(), word_tokenizer()
    second.enable_padding(length=7)
    second.enable_truncation(3)
    assert tokenizer_hash(first) == tokenizer_hash(second)
    second.add_tokens(["cat"])
    assert tokenizer_hash(first) != tokenizer_hash(second)


def test_seeds_depend_on_pixels_and_shape() -> None:
    def seeds(images: Sequence[Image.Image]) -> set[int]:
        return {picture_seed(1, image) for image in images}

    wide, high = Image.new("RGB", (2, 1)), Image.new("RGB", (1, 2))
    assert len(seeds([*pictures(3), wide, high])) == 5
    assert picture_seed(1, wide) == picture_seed(1, wide.copy()) != picture_seed(2, wide)
    assert all(0 <= seed < 2**63 for seed in seeds(pictures(3)))


def test_log_probabilities_need_a_text() -> None:
    with pytest.raises(ConfigError, match=r"ask\.top_k=4: of no text"):
        Ask(captions=0, gold=False, top_k=4)


def test_a_fine_tuned_swin_is_a_teacher(tmp_path: Path) -> None:
    model, tokenizer, _ = load_model(save_public(tmp_path / "public", "swin+bert"))
    save_model(tmp_path / "tuned", model, tokenizer, {})
    ask = Ask(captions=1, generation=GenerationConfig(max_new_tokens=4), hidden="pooled")
    (answer,) = load_teacher(str(tmp_path / "tuned")).answer(pictures(1), [[]], ask)
    assert answer.hidden is not None
    assert np.isfinite(answer.hidden).all()
