"""Run bundles: preprocessing, sessions, decoding, pipelines. No torch."""
