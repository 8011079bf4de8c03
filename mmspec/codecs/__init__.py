"""Audio to tokens and back."""
