"""Tiny teachers of every kind with random weights, saved in the real formats."""

from pathlib import Path

import torch
from PIL import Image
from tests.tiny import tiny_captioner
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vistill.models.checkpoint import save_captioner
from vistill.models.tokens import SPECIAL
from vistill.models.torchvision_repair import repair_torchvision

WORDS = "a red green blue white circle square on the left right there is one dog two".split()
CAPTIONS = [["a red circle on the left", "there is one red circle"], ["a blue square"], []]


def pictures(count: int = 3, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    """Pictures that differ in colour and pattern."""
    found = []
    for n in range(count):
        image = Image.new("RGB", size, (40 * n % 255, 255 - 60 * n % 255, 90))
        image.paste(Image.effect_mandelbrot((20, 20), (-2, -1.5, 1, 1.5), 20 + n).convert("RGB"), (n, n))
        found.append(image)
    return found


def word_tokenizer(special: tuple[str, ...] = SPECIAL, unknown: str = "<unk>") -> Tokenizer:
    """Whole words; `special` first."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token=unknown)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def sharpen(model: torch.nn.Module, gain: float = 2.0) -> None:
    """Make random weights decide, and what the picture says count: near-ties prove nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=gain * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)


def save_checkpoint(folder: Path, seed: int = 0, tokenizer: Tokenizer | None = None) -> Path:
    """A vistill checkpoint."""
    tokenizer = tokenizer or word_tokenizer()
    torch.manual_seed(seed)
    model = tiny_captioner(vocab=tokenizer.get_vocab_size())
    sharpen(model.decoder)
    sharpen(model.mapper)
    save_captioner(folder, model, tokenizer, {})
    return folder


def save_vit_gpt2(folder: Path, seed: int = 0) -> Path:
    """VisionEncoderDecoderModel of ViT and GPT-2, whose one special token begins, ends and fills texts."""
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
    tokenizer = word_tokenizer((mark,), mark)
    torch.manual_seed(seed)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                  image_size=32, patch_size=8),
        GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_embd=24, n_layer=2, n_head=2, n_positions=24,
                   bos_token_id=0, eos_token_id=0),
    )  # fmt: skip
    config.decoder_start_token_id = config.pad_token_id = config.eos_token_id = 0
    config.tie_word_embeddings = False
    model = VisionEncoderDecoderModel(config).eval()
    model.generation_config.num_beams = 4  # as the public one has; an answer must not depend on it
    model.generation_config.max_length = 16
    sharpen(model)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=mark,
        eos_token=mark,
        unk_token=mark,
        model_input_names=["input_ids"],
    ).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]")


def bert_tokenizer() -> Tokenizer:
    """Words between [CLS] and [SEP], as BERT's tokenizer adds them."""
    tokenizer = word_tokenizer(BERT_SPECIAL, "[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def save_blip(folder: Path, seed: int = 0) -> Path:
    """BlipForConditionalGeneration."""
    repair_torchvision()
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        PreTrainedTokenizerFast,
    )

    tokenizer = bert_tokenizer()
    torch.manual_seed(seed)
    config = BlipConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 24, "encoder_hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 24, "bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8,
        },
    )  # fmt: skip
    model = BlipForConditionalGeneration(config).eval()
    sharpen(model)
    model.save_pretrained(folder)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), words).save_pretrained(folder)
    return folder


def save_git(folder: Path, seed: int = 0) -> Path:
    """GitForCausalLM: a captioner without prompt behind AutoModelForImageTextToText."""
    repair_torchvision()
    from transformers import (
        CLIPImageProcessor,
        GitConfig,
        GitForCausalLM,
        GitProcessor,
        PreTrainedTokenizerFast,
    )

    tokenizer = bert_tokenizer()
    torch.manual_seed(seed)
    config = GitConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8,
        },
        vocab_size=tokenizer.get_vocab_size(), hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    model = GitForCausalLM(config).eval()
    sharpen(model)
    model.save_pretrained(folder)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, words).save_pretrained(folder)
    return folder


CHAT = (
    "{% for m in messages %}{{ m.role }} {% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def save_llava(folder: Path, seed: int = 0) -> Path:
    """LlavaForConditionalGeneration with a chat template: a model that is told what to do."""
    repair_torchvision()
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    tokenizer = word_tokenizer(("<pad>", "<s>", "</s>", "<unk>", "<image>", "user", "assistant"))
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
        },
        text_config={
            "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 24,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_index=4,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    sharpen(model)
    model.save_pretrained(folder)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images, words, patch_size=8, vision_feature_select_strategy="default", chat_template=CHAT,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder
