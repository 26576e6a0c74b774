"""Networks: vision towers, mappers, language models, the captioner and its checkpoints."""
