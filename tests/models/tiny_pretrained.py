"""Tiny public captioners of more architectures, with random weights, in the format of `transformers`."""

from pathlib import Path
from typing import Any

import torch
from tests.distill.tiny_teachers import bert_tokenizer, save_blip, save_vit_gpt2, sharpen

from vistill.models.torchvision_repair import repair_torchvision

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ENCODERS: dict[str, dict[str, Any]] = {
    "vit": SIZES | {"image_size": 32, "patch_size": 8},
    "deit": SIZES | {"image_size": 32, "patch_size": 8},
    "beit": SIZES
    | {"image_size": 32, "patch_size": 8, "use_shared_relative_position_bias": True, "drop_path_rate": 0.0},
    "swin": {"image_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": [2, 2],
             "num_heads": [2, 4], "drop_path_rate": 0.0},
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 24,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "bert": SIZES | {"hidden_size": 24, "num_attention_heads": 2, "max_position_embeddings": 24},
    "roberta": SIZES
    | {"hidden_size": 24, "num_attention_heads": 2, "max_position_embeddings": 24, "pad_token_id": 0},
}


def save_pair(folder: Path, encoder: str, decoder: str, seed: int = 0) -> Path:
    """VisionEncoderDecoderModel of two kinds, with BERT's marks."""
    repair_torchvision()
    from transformers import (
        AutoConfig,
        PreTrainedTokenizerFast,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTImageProcessor,
    )

    tokenizer = bert_tokenizer()
    torch.manual_seed(seed)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        AutoConfig.for_model(encoder, **ENCODERS[encoder]),
        AutoConfig.for_model(decoder, **DECODERS[decoder], vocab_size=tokenizer.get_vocab_size()),
    )
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 2, 3, 0
    model = VisionEncoderDecoderModel(config).eval()
    sharpen(model)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_public(folder: Path, kind: str) -> Path:
    """A captioner by name: `vit-gpt2`, `blip`, or ENCODER+DECODER."""
    if kind in PUBLIC:
        return PUBLIC[kind](folder)
    return save_pair(folder, *kind.split("+"))


PUBLIC = {"vit-gpt2": save_vit_gpt2, "blip": save_blip}
