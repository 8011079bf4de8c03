"""Chats with pictures, in the forms that people give them."""

from pathlib import Path
from typing import TypeAlias

from mmspec.errors import MmspecError
from mmspec.media import image as media

Chat: TypeAlias = list[dict]


def as_chats(images: object, text: object) -> list[Chat]:
    """A question, a chat or a list of either as chats whose pictures are PIL images in RGB.

    Raises MmspecError for what is no chat, and for pictures without a place in it.
    """
    if text is None and isinstance(images, list):
        images, text = None, images
    pictures = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
    if isinstance(text, list) and text and all(isinstance(question, str) for question in text):
        if pictures and len(pictures) != len(text):
            raise MmspecError(f"{len(pictures)} images were given for {len(text)} questions: give one each, or chats")
        return [as_chats(pictures[row] if pictures else None, question)[0] for row, question in enumerate(text)]
    if isinstance(text, list):
        chats = [read_chat(chat, pictures) for chat in (text if text and isinstance(text[0], list) else [text])]
        if pictures:
            raise MmspecError(
                f'{len(pictures)} of the images have no place in the chat: put {{"type": "image"}} where each belongs'
            )
        return chats
    if not isinstance(text, str) or not text.strip():
        raise MmspecError("there is no question: say what to answer, as in 'How many hearts are there?'")
    parts = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": text}]
    return [read_chat([{"role": "user", "content": parts}], [])]


def read_chat(messages: object, pictures: list) -> Chat:
    """Messages checked, each with a list of parts; images without a source are taken from the front of `pictures`."""
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages)
    ):
        raise MmspecError(
            'a chat is a list of messages such as {"role": "user", "content": [{"type": "text", "text": "Hello"}]}'
        )
    chat: Chat = []
    for message in messages:
        content = message["content"]
        parts: list[dict] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list | tuple) or not all(isinstance(part, dict) for part in parts):
            raise MmspecError(f"the content of a message is a string or a list of parts, not {content!r:.60}")
        chat.append({"role": message["role"], "content": [_read_part(part, pictures) for part in parts]})
    return chat


def _read_part(part: dict, pictures: list) -> dict:
    """A part of a message: text, or a picture that is read from its source."""
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    source = next((part[key] for key in ("image", "url", "path", "image_url") if part.get(key) is not None), None)
    if source is None and part.get("base64") is not None:
        source = f"data:;base64,{part['base64']}"
    if isinstance(source, dict):  # as OpenAI's clients give it
        source = source.get("url")
    if kind == "image" and source is None and pictures:
        source = pictures.pop(0)
    if kind not in ("image", "image_url") or source is None:
        raise MmspecError(
            f"a part of a message is text or an image with its source, not {part!r:.80}: videos and sounds are not "
            "supported"
        )
    return {"type": "image", "image": media.read(source)}


def example_chat(row: dict, folder: Path) -> Chat:
    """A line of `prompts.jsonl`: turns before it, its question, and its picture or pictures in the first message of the
    user; or a chat as `messages`, which its question ends.
    """
    messages: list[dict] = [dict(message) for message in row.get("messages", ())]
    if not messages:
        messages = [
            {"role": role, "content": text}
            for turn in row.get("before", [])
            for role, text in zip(("user", "assistant"), turn)
        ]
        messages.append({"role": "user", "content": row["prompt"]})
    if pictures := [row["image"]] if row.get("image") else row.get("images"):
        first = next(message for message in messages if message["role"] == "user")
        text = {"type": "text", "text": first["content"]}
        first["content"] = [*({"type": "image", "path": folder / path} for path in pictures), text]
    return read_chat(messages, [])
