"""Demos in the browser: a tab for each modality, a race with plain decoding, and a page that explains it."""
