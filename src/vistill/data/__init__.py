"""Data sets: records, sources, building and opening."""
