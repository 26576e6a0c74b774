"""Caption metrics in numpy and Python: tokeniser, BLEU, ROUGE-L, CIDEr, bootstrap. No torch."""
