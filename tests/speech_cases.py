"""A model that speaks, and what several test files make of it."""

import torch
from transformers import DacConfig, DacModel

from mmspec.engine.loop import generate

TEXT, LONG = "Hello there.", "Hello there, how are you? I am fine.\n\nAnd you?"


# Greatest difference between joined chunks and the whole, relative to the loudest sample: the codec decodes in float32.
CLOSE = 1e-5


def dac() -> DacModel:
    """Random: 20 frames a second of three tokens each, heard well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = dict(encoder_hidden_size=4, decoder_hidden_size=16, n_codebooks=3, codebook_size=16, codebook_dim=4)
        model = DacModel(DacConfig(sampling_rate=800, downsampling_ratios=[5, 8], hop_length=40, **sizes))
        for name, value in model.named_parameters():
            if value.dim() > 1 and name.endswith("weight"):
                torch.nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return model


def said(mixed, **how) -> list[int]:
    """What the model says of one text, marks and end too, in plain decoding."""
    prompts, stop = mixed.encode_examples([{"prompt": TEXT, "voice": "ada"}])
    return generate(mixed.target, prompts, 1, stop, **how).tokens[0]
