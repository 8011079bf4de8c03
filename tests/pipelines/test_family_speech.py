"""Speaking with people's speech language models: folders as they are released, loaded by the public way."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_speakers
import torch
from speech_cases import CLOSE
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2Model

import mmspec
from mmspec.errors import MmspecError
from mmspec.pipelines import task_of
from mmspec.pipelines.family_speech import FamilySpeechPipeline
from mmspec.pipelines.reference import Reference
from mmspec.pipelines.sentences import read_plainly
from mmspec.pipelines.speakers import OrpheusSpeaker
from mmspec.pipelines.text_to_speech import TextToSpeechPipeline

TEXT = "hello there. how are you?"
FAMILIES = ("orpheus", "llasa", "outetts", "cosyvoice")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {name: getattr(tiny_speakers, f"save_{name}")(home / name) for name in FAMILIES}


def load(folder: Path, **options: object) -> FamilySpeechPipeline:
    made = mmspec.pipeline("text-to-speech", folder, device="cpu", dtype="fp64", **options)
    assert isinstance(made, FamilySpeechPipeline)
    return made


@pytest.fixture(scope="module")
def pipes(folders: dict[str, Path]) -> dict[str, FamilySpeechPipeline]:
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second in two channels."""
    path = tmp_path_factory.mktemp("sounds") / "voice.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (8000, 2)), 16_000)
    return path


class Hiss:
    """A vocoder: two samples a code."""

    sampling_rate, vocabulary_size, frame_tokens, frame_samples = 50, tiny_speakers.COSYVOICE_CODES, 1, 2
    context = (0, 0)

    def encode(self, audio: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        raise NotImplementedError

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens / self.vocabulary_size).repeat_interleave(2, 1)

    def to(self, device: torch.device) -> "Hiss":
        return self


def test_families_are_told_by_their_files(folders: dict[str, Path], pipes: dict[str, FamilySpeechPipeline]) -> None:
    """Tasks, names and defaults; `generation_config.json` goes first, then what the authors say."""
    assert {task_of(folder) for folder in folders.values()} == {"text-to-speech"}
    assert [pipe.speaker.name for pipe in pipes.values()] == ["Orpheus", "Llasa", "OuteTTS", "CosyVoice 2"]
    assert pipes["orpheus"].sampling_defaults == {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
    assert pipes["orpheus"].voices[:2] == ["tara", "leah"] and pipes["llasa"].voices == ["default"]
    path = folders["llasa"] / "generation_config.json"
    old = path.read_text()
    try:
        path.write_text(json.dumps({"temperature": 0.7, "do_sample": True, "top_p": 0.95}))
        assert load(folders["llasa"]).sampling_defaults == {"temperature": 0.7, "top_p": 0.95}
        assert load(folders["llasa"], temperature=0.2).temperature == 0.2
        path.write_text(json.dumps({"do_sample": False}))
        assert load(folders["llasa"]).temperature == 0.0
    finally:
        path.write_text(old)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.sweep] if name in ("llasa", "outetts") else []) for name in FAMILIES],
)
def test_a_seed_says_one_thing(pipes: dict[str, FamilySpeechPipeline], family: str) -> None:
    """equality: the same codes with any drafter, by the defaults of the family, streamed or not."""
    pipe = pipes[family]
    options: dict = {"seed": 3, "output_type": "codes"} if family == "cosyvoice" else {"seed": 3}
    text = "yes." if family in ("cosyvoice", "outetts") else TEXT
    plain = pipe(text, drafter="none", **options)
    assert plain.tokens == pipe(text, **options).tokens == pipe(text, drafter="lookup", **options).tokens
    assert plain.tokens != pipe(text, **options | {"seed": 4}).tokens and plain.stats.lossless
    if family != "cosyvoice":
        assert len(plain.audio) == len(plain.tokens[0]) // pipe.codec.frame_tokens * pipe.codec.frame_samples
        chunks = [chunk.audio for chunk in pipe.stream(text, piece=0.1, **options)]
        assert torch.cat(chunks).shape == plain.audio.shape and (len(chunks) > 1) == (family != "llasa")
        assert (torch.cat(chunks) - plain.audio).abs().max() < CLOSE * plain.audio.abs().max()


def test_orpheus_prompts(pipes: dict[str, FamilySpeechPipeline]) -> None:
    """As its inference code writes them; names of voices that it may know, and control tokens that are none of them."""
    pipe = pipes["orpheus"]
    words = pipe.speaker.tokenizer
    ids = [words.convert_tokens_to_ids(f"<custom_token_{i}>") for i in (3, 4, 5, 1)]
    for voice in ("leah", "mine"):
        text = words(f"{voice}: {TEXT}").input_ids
        wanted = [ids[0], *text, words.convert_tokens_to_ids("<|eot_id|>"), *ids[1:]]
        assert text[0] == words.bos_token_id and pipe.encode([TEXT], voice).conditional == [wanted]
    with pytest.raises(MmspecError, match="unknown voice 'my voice': known are "):
        pipe(TEXT, voice="my voice")
    with pytest.raises(MmspecError, match="the text holds <custom_token_2>, a control token of the model"):
        pipe("hello <custom_token_2>")
    with pytest.raises(MmspecError, match="Orpheus clones no voice from a recording: leave the reference out"):
        pipe(TEXT, reference="voice.wav")


def test_llasa_clones(pipes: dict[str, FamilySpeechPipeline], recording: Path, tmp_path: Path) -> None:
    """A reference is its text before the text and its codes in the answer, as its model card writes them as text."""
    pipe = pipes["llasa"]
    samples = torch.from_numpy(soundfile.read(recording, dtype="float32")[0]).mean(1)[None]
    codes = "".join(f"<|s_{code}|>" for code in pipe.codec.encode(samples, 16_000)[0].tolist())
    said = f"<|TEXT_UNDERSTANDING_START|>oh well. {TEXT}<|TEXT_UNDERSTANDING_END|>"
    chat = [
        {"role": "user", "content": f"Convert the text to speech:{said}"},
        {"role": "assistant", "content": f"<|SPEECH_GENERATION_START|>{codes}"},
    ]
    wanted = pipe.speaker.tokenizer.apply_chat_template(chat, continue_final_message=True, return_dict=True)
    reference = Reference(recording, "oh well. ")
    assert pipe.encode([TEXT], "default", reference).conditional == [wanted["input_ids"]]
    out = pipe(TEXT, reference=reference, seed=3)
    assert out.tokens != pipe(TEXT, seed=3).tokens and len(out.audio) == 320 * len(out.tokens[0])
    for reference, wrong in (
        (recording, "Llasa needs what is said in the reference: give --reference-text"),
        (Reference(recording, "oh <|s_3|>"), r"the reference's text holds <\|s_3\|>, a control token of the model"),
        (Reference(tmp_path / "none.wav", "oh"), "none.wav cannot be read as sound"),
    ):
        with pytest.raises(MmspecError, match=wrong):
            pipe(TEXT, reference=reference)
    long = tmp_path / "long.wav"
    soundfile.write(long, np.zeros(16_000 * 20), 16_000)
    with pytest.raises(MmspecError, match="which leaves no room for speech: give a shorter reference"):
        pipe(TEXT, reference=Reference(long, "oh"))


def test_outetts_prompts_and_codes(pipes: dict[str, FamilySpeechPipeline], tmp_path: Path) -> None:
    """Prompts alone and after a speaker profile; codes are pairs whatever is written between them."""
    pipe, profile = pipes["outetts"], tmp_path / "ada.json"
    sound = {"energy": 3, "pitch": 2, "spectral_centroid": 1}
    words = [
        {"word": "oh", "duration": 0.07, "c1": [1, 2], "c2": [3, 4], "features": sound},
        {"word": "well", "duration": 0.2, "c1": [5], "c2": [6], "features": {}},
    ]
    profile.write_text(json.dumps({"text": "oh well", "words": words, "global_features": sound}))
    begin = "<|im_start|>\n<|text_start|>"
    wanted = {
        None: f"{begin}it's - {TEXT}<|text_end|>\n<|audio_start|>\n",
        Reference(profile): f"{begin}oh well. it's - {TEXT}<|text_end|>\n<|audio_start|>\n"
        "<|word_start|>oh<|features|><|t_0.07|><|energy_3|><|spectral_centroid_1|><|pitch_2|><|code|>"
        "<|c1_1|><|c2_3|><|c1_2|><|c2_4|><|word_end|>\n"
        "<|word_start|>well.<|features|><|t_0.20|><|energy_0|><|spectral_centroid_0|><|pitch_0|><|code|>"
        "<|c1_5|><|c2_6|><|word_end|>\n<|word_start|>",
    }
    tokenizer = pipe.speaker.tokenizer
    for reference, text in wanted.items():
        found = pipe.encode([f" it’s –\n{TEXT}"], "default", reference).conditional[0]
        assert found == tokenizer.encode(text, add_special_tokens=False)
    written = ["<|c2_9|>", "<|c1_7|>", "a", "<|c1_1|>", "<|c1_32|>", "<|c2_3|>", "<|c1_4|>"]
    stream = tokenizer.convert_tokens_to_ids(written)
    assert pipe.codes(stream) == [7, 32 + 9, 1, 32 + 3] and pipe.codes(stream[:3]) == [7, 32 + 9]
    assert pipe(TEXT, seed=3, reference=profile).tokens != pipe(TEXT, seed=3).tokens
    for name, wrong in (
        ("a.wav", "a.wav is no speaker profile, which says"),
        ("a.json", "a.json is no speaker profile"),
    ):
        (tmp_path / name).write_text("{}")
        with pytest.raises(MmspecError, match=wrong):
            pipe(TEXT, reference=tmp_path / name)


@torch.inference_mode()
def test_cosyvoice_is_its_llm(folders: dict[str, Path], pipes: dict[str, FamilySpeechPipeline]) -> None:
    """equality: greedy codes are those of a loop over vectors with the tensors of `llm.pt`, as its code has it."""
    folder, pipe = folders["cosyvoice"], pipes["cosyvoice"]
    state = torch.load(folder / "llm.pt", weights_only=True)
    state = {name: value.double() for name, value in state.items()}
    body = Qwen2Model(Qwen2Config.from_pretrained(folder / "CosyVoice-BlankEN")).double().eval()
    prefix = "llm.model.model."
    body.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    ids = pipe.speaker.tokenizer(TEXT).input_ids
    begin, task = state["llm_embedding.weight"]
    vectors, codes = torch.stack([begin, *body.embed_tokens.weight[ids], task]), []
    while len(codes) < 70:
        hidden = body(inputs_embeds=vectors[None], use_cache=False).last_hidden_state[0, -1]
        logits = F.linear(hidden, state["llm_decoder.weight"], state["llm_decoder.bias"])
        logits[40 + (len(codes) >= 2 * len(ids)) :] = -torch.inf
        codes.append(int(logits.argmax()))
        if codes[-1] == 40:
            break
        vectors = torch.cat([vectors, state["speech_embedding.weight"][codes[-1:]]])
    out = pipe(TEXT, temperature=0, output_type="codes", logits_processor=[], top_p=1.0, top_k=0)
    assert out.tokens[0][:70] == [code for code in codes if code != 40] and len(set(codes)) > 3
    assert out.seconds == 0.0 and out.ended[0] in ("end", "length", "loop")


def test_cosyvoice_sounds_by_a_given_vocoder(folders: dict[str, Path], tmp_path: Path) -> None:
    """Codes alone without one, also after saving; tags in texts are its own."""
    pipe = load(folders["cosyvoice"], codec=Hiss())
    out = pipe("yes", seed=3)
    assert len(out.audio) == 2 * len(out.tokens[0]) > 0
    without = load(folders["cosyvoice"])
    assert without("yes", seed=3, output_type="codes").tokens == out.tokens
    with pytest.raises(MmspecError, match="no vocoder for the codes of cosyvoice2 models: output_type='codes'"):
        without("yes")
    with pytest.raises(MmspecError, match="unknown output_type 'latent'"):
        without("yes", output_type="latent")
    assert len(without.encode(["[breath]"], "default").conditional[0]) == 3
    with pytest.raises(MmspecError, match="holds a CosyVoice 3"):
        (folders["cosyvoice"] / "cosyvoice3.yaml").touch()
        try:
            load(folders["cosyvoice"])
        finally:
            (folders["cosyvoice"] / "cosyvoice3.yaml").unlink()
    without.save_pretrained(tmp_path / "copy")
    assert load(tmp_path / "copy")("yes", seed=3, output_type="codes").tokens == out.tokens


@pytest.mark.parametrize("family", ["orpheus", "llasa", "outetts"])
def test_saved_again(pipes: dict[str, FamilySpeechPipeline], family: str, tmp_path: Path) -> None:
    """round trip: a folder of transformers with its codec, which speaks the same."""
    pipes[family].save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "model_index.json").exists()
    again, out = load(tmp_path / "copy")(TEXT, seed=2), pipes[family](TEXT, seed=2)
    assert again.tokens == out.tokens and torch.allclose(again.audio, out.audio, atol=1e-4)


def test_long_texts_go_in_pieces(pipes: dict[str, FamilySpeechPipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole sentences where they fit, clauses, words, and characters in other languages; a pause after each."""
    read = read_plainly("One two. Three four! Five, six seven eight nine ten.\n\nLast one.", 24)
    pieces = ["One two. Three four!", "Five,", "six seven eight", "nine ten.", "Last one."]
    assert [piece.text for piece in read.sentences] == pieces
    assert [piece.pause for piece in read.sentences] == [0.35, 0.15, 0.0, 0.7, 0.0]
    assert [piece.text for piece in read_plainly("你好，世界。再见。", 18).sentences] == ["你好，世界。", "再见。"]
    assert "".join(piece.text for piece in read_plainly("ab" * 40, 11).sentences) == "ab" * 40
    for text, wrong in ((" ... \n", "the text has no letter and no digit"), ("a\ud800", "not valid UTF-8")):
        with pytest.raises(MmspecError, match=wrong):
            read_plainly(text, 100)
    monkeypatch.setattr(OrpheusSpeaker, "longest_text", 16)
    out = pipes["orpheus"](TEXT, seed=1)
    assert len(out.sentences) == 2 and out.seeds == [1, 2] and len(out.ended) == 2
    alone = pipes["orpheus"](out.sentences[1].text, seed=2)
    assert out.tokens[1] == alone.tokens[0]


def test_what_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Folders that do not speak, before weights are read; codecs that are missing or of another family."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(MmspecError, match="a model of the family llama, which does not speak: use one of cosyvoice2, "):
        mmspec.pipeline("text-to-speech", other)
    with pytest.raises(MmspecError, match="the codec is a HubCodec, and Orpheus speaks with SNAC"):
        load(folders["orpheus"], codec=load(folders["llasa"]).codec)
    with pytest.raises(MmspecError, match="no folder nowhere: give a codec's folder, or a hub id"):
        load(folders["llasa"], codec="nowhere")
    with pytest.raises(MmspecError, match="CosyVoice 2 takes a codec as an object alone"):
        load(folders["cosyvoice"], codec=str(folders["llasa"]))
    codec = folders["outetts"] / "codec"
    codec.rename(tmp_path / "codec")
    try:
        with pytest.raises(MmspecError, match="has no folder named codec: give the OuteTTS model's codec"):
            load(folders["outetts"])
        assert load(folders["outetts"], codec=tmp_path / "codec").codec.frame_tokens == 2
    finally:
        (tmp_path / "codec").rename(codec)
    with pytest.raises(MmspecError, match="unknown option of from_pretrained 'tokens_per_phoneme'"):
        load(folders["llasa"], tokens_per_phoneme=3.0)
    assert issubclass(FamilySpeechPipeline, TextToSpeechPipeline)
