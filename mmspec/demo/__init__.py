"""Demos in the browser: one tab for each modality, and a race between speculative and plain decoding."""
