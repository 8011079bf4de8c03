"""How the bundled models were made: data, tokenizers, targets, drafters, and what judges them. Not part of the
wheel.
"""

# Modules of stages by task, for recipes that do not name their module.
BY_TASK = {
    "text-to-image": "recipes.emoji_64.stages",
    "text-to-speech": "recipes.wren_86.stages",
    "image-text-to-text": "recipes.magpie_135.stages",
}
