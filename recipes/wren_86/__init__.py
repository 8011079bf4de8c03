"""wren-86: three voices, spoken from phonemes in one codebook at 86 codes a second."""
