"""Folders of photos: walk, sidecars, resumable batch runs. No torch."""
