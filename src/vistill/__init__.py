"""vistill: small image-to-text models, distilled, scored, exported and run on a plain CPU."""

__version__ = "0.1.0"
