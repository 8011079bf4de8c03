"""The language model of CosyVoice 2 (Du et al. 2024, arXiv 2412.10117; github.com/FunAudioLLM/CosyVoice) as a plain
causal language model.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LogitsProcessor, Qwen2Config, Qwen2ForCausalLM

from mmspec.engine.state import State
from mmspec.errors import MmspecError
from mmspec.targets.speech import SpeechTarget

# Ids of the output head that are no codes: the end, another mark, and one that asks for more text of a stream.
MARKS = 3
# A prompt's ids beside its text: its beginning, and the mark after which speech begins.
FRAME = 2
# How many codes there are at least for each token of the text.
LEAST = 2

BODY = "llm.model.model."


def cosyvoice_model(config: Qwen2Config, state: Mapping[str, Tensor], dtype: torch.dtype) -> Qwen2ForCausalLM:
    """The model of an `llm.pt`: a Qwen2 that reads vectors, with its own embedding and head of speech.

    Its ids are those of speech, the head's rows with their bias, then the two of `llm_embedding`, then those of text.
    """
    try:
        head, speech = state["llm_decoder.weight"], state["speech_embedding.weight"]
        table = [speech, state["llm_embedding.weight"], state[f"{BODY}embed_tokens.weight"]]
        bias = state["llm_decoder.bias"]
    except KeyError as error:
        raise MmspecError(f"llm.pt has no {error}, so it is no CosyVoice 2: give one of CosyVoice2-0.5B") from None
    config.vocab_size, config.tie_word_embeddings = sum(map(len, table)), False
    config.bos_token_id = config.eos_token_id = None
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
        model.lm_head = nn.Linear(config.hidden_size, len(head))
    body = {name.replace(BODY, "model."): value for name, value in state.items() if name.startswith(BODY)}
    body |= {"model.embed_tokens.weight": torch.cat(table), "lm_head.weight": head, "lm_head.bias": bias}
    try:
        missing, unexpected = model.load_state_dict(body, strict=False, assign=True)
    except RuntimeError as error:
        raise MmspecError(f"llm.pt does not fit the configuration beside it ({str(error)[:200]})") from None
    if missing or unexpected:
        raise MmspecError(f"llm.pt holds another model (missing: {missing[:3]}, unexpected: {unexpected[:3]})")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.to(dtype).eval()


def cosyvoice_state(model: Qwen2ForCausalLM) -> dict[str, Tensor]:
    """The tensors of an `llm.pt`."""
    state = {name: value for name, value in model.state_dict().items() if name.startswith("model.")}
    speech = len(model.lm_head.weight)
    sizes = [speech, FRAME, model.config.vocab_size - speech - FRAME]
    tables = state.pop("model.embed_tokens.weight").split(sizes)
    body = {name.replace("model.", BODY, 1): value for name, value in state.items()}
    names = ("speech_embedding.weight", "llm_embedding.weight", f"{BODY}embed_tokens.weight")
    head = {"llm_decoder.weight": model.lm_head.weight.data, "llm_decoder.bias": model.lm_head.bias.data}
    return body | head | {name: table.clone() for name, table in zip(names, tables, strict=True)}


class CosyVoiceTarget(SpeechTarget):
    """Codes of CosyVoice 2, at least `LEAST` of them for each token of the prompt's text, and the end."""

    def __init__(self, model: Qwen2ForCausalLM, weights_hash: str = "", check: bool = True):
        codes = len(model.lm_head.weight) - MARKS
        super().__init__(model, range(codes), codes, weights_hash=weights_hash, check=check)

    def guide(
        self, state: State, logits: Float[Tensor, "branch row node vocab"], positions: Int[Tensor, "row node"]
    ) -> Float[Tensor, "row node vocab"]:
        guided = super().guide(state, logits, positions).clone()
        least = [LEAST * (len(prompt) - FRAME) for prompt in state.prompt_ids]
        early = positions < torch.tensor(least, device=positions.device)[:, None]
        guided[..., self.end_token].masked_fill_(early, -torch.inf)
        return guided

    def generate_processor(self, start: int) -> LogitsProcessor:
        return CosyVoiceLogitsProcessor(self, start)

    def why_not_comparable(self, guidance: float, penalty: float) -> str:
        """transformers' penalty looks up scores of the prompt's ids, which the head does not have."""
        return "penalty of CosyVoice 2" if penalty != 1 else ""


class CosyVoiceLogitsProcessor(LogitsProcessor):
    """Makes `transformers.generate` follow the target after prompts of `start` ids."""

    def __init__(self, target: CosyVoiceTarget, start: int):
        self.target, self.start = target, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        early = input_ids.shape[1] - self.start < LEAST * (self.start - FRAME)
        scores[:, self.target.end_token + (0 if early else 1) :] = -torch.inf
        return scores
