"""Questions without a picture, and SmolLM2's own answers to them, so that the model keeps what SmolLM2 knew."""

import json
import random

from rich.progress import track
from transformers import LlavaProcessor, PreTrainedModel

from mmspec.engine.loop import Stop, generate
from mmspec.engine.sampling import SamplingOptions
from mmspec.files import write_atomically
from mmspec.targets.causal import CausalTarget, Prompts
from mmspec.train.run import Run
from recipes.magpie_135 import smollm
from recipes.magpie_135.dialogue import encode

# Questions about words of the picture set, about places, and about the world at large.
WORDS = (
    *(
        "What is a {}?",
        "Write a short sentence about a {}.",
        "Tell me three facts about the {}.",
        "Explain what a {} is to a child.",
    ),
    *(
        "Write two lines of a poem about a {}.",
        "Where can you find a {}?",
        "Name five things that go with a {}.",
        "What does a {} look like?",
    ),
    *(
        "Write a short story about a {}.",
        "Is a {} bigger than a cat?",
        "How do you say {} in French?",
        "Give me a riddle about a {}.",
    ),
)
PLACES = (
    "France Japan Brazil Egypt Canada India Kenya Norway Mexico Australia Italy Turkey Peru Greece China Spain".split()
)
ABOUT_PLACES = (
    "What is the capital of {}?",
    "Name three cities in {}.",
    "What do people eat in {}?",
    "When is a good time to travel to {}?",
)
AT_LARGE = (
    *("Hello! Who are you?", "How are you today?", "What can you help me with?"),
    *("Write a short thank-you note.", "What is 12 plus 30?", "Count from one to ten."),
    *("Why is the sky blue?", "How do I boil an egg?", "What is photosynthesis?", "Who wrote Hamlet?"),
    *("Give me three tips for sleeping well.", "What is a computer?", "List the days of the week."),
    *("What are the primary colours?", "How many minutes are in two hours?", "Write a haiku about rain."),
    *("What is the opposite of hot?", "Tell me a joke.", "How does a bicycle work?"),
    *("What is the largest planet?", "Translate good morning to Spanish.", "Why do we dream?"),
    *("What is gravity?", "Suggest a name for a dog.", "How do I say no politely?", "What is a verb?"),
    *("Summarize the story of Cinderella.", "What causes thunder?", "Write a slogan for a bakery."),
    *("How can I learn faster?", "What is the speed of light?", "Name four seasons.", "What do bees do?"),
    *("Give me a recipe for pancakes.", "What is democracy?"),
)


def text_questions(names: list[str]) -> list[str]:
    """Questions without a picture, always in the same order: a model is trained on the first of them."""
    questions = [form.format(name) for form in WORDS for name in names]
    questions += [form.format(name) for form in ABOUT_PLACES for name in PLACES]
    random.Random(0).shuffle(questions)
    return [*AT_LARGE, *questions]


def answer(model: PreTrainedModel, processor: LlavaProcessor, questions: list[str]) -> list[tuple[str, str, bool]]:
    """Questions without a picture, a language model's answers (T = 0.7), and whether they ended by themselves."""
    target, rows = CausalTarget(model), []
    target.min_query_len = 1
    for start in track(range(0, len(questions), 32), "answering without pictures"):
        part = questions[start : start + 32]
        prompts = Prompts([encode(processor, [(question, "")], False).ids for question in part])
        stop = Stop(96, frozenset({0, 2}))
        generation = generate(target, prompts, len(part), stop, sampling=SamplingOptions(0.7), seeds=start)
        for question, tokens in zip(part, generation.tokens):
            ended = tokens[-1] in (0, 2)
            reply = processor.tokenizer.decode(tokens[:-1] if ended else tokens).strip()
            rows.append((question, reply, ended))
    return [row for row in rows if row[1]]


def text_chats(run: Run, processor: LlavaProcessor, names: list[str]) -> list[tuple[str, str, bool]]:
    """The questions without a picture that the model is trained on, with SmolLM2's answers; made once."""
    count = run.recipe["target"]["text"]
    path = run.file("text", count).with_suffix(".json")
    if not path.exists():
        rows = answer(smollm.load(run.work / "data"), processor, text_questions(names)[:count])
        write_atomically(path, lambda file: file.write_text(json.dumps(rows)))
    return [(question, reply, ended) for question, reply, ended in json.loads(path.read_text())]
