"""`POST /v1/images/generations`."""

import base64
import io
from collections.abc import AsyncIterator
from time import time
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, Field

from mmspec.pipelines.text_to_image import TextToImagePipeline
from mmspec.serve.bodies import SamplingFields, UserFields
from mmspec.serve.errors import ERROR_RESPONSES, Refusal
from mmspec.serve.metrics import Metrics
from mmspec.serve.serving import EVENTS, PROMPT_CHARACTERS, Serving, drain, event, event_stream


class ImageRequest(SamplingFields, UserFields):
    """What to draw. `guidance_scale` and the sampling fields are mmspec's own; row i of `n` has seed + i."""

    prompt: str
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    size: str = "auto"
    quality: Literal["auto", "standard"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    style: Literal["vivid"] | None = None
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=16)] = 0
    guidance_scale: Annotated[float, Field(ge=0, le=20)] | None = None


class ImageData(BaseModel):
    b64_json: str
    seed: int


class ImageTokensDetails(BaseModel):
    text_tokens: int
    image_tokens: int = 0


class ImageUsage(BaseModel):
    """Tokens that were read and generated, in OpenAI's words."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: ImageTokensDetails


class ImageResponse(BaseModel):
    created: int
    model: str
    data: list[ImageData]
    size: str
    output_format: str
    usage: ImageUsage
    metrics: Metrics


def encode_image(image: Image.Image, kind: str, quality: int | None = None) -> str:
    """A picture file in base64; `quality` from 0 to 100 is for JPEG and WebP."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({} if quality is None else {"quality": quality}))
    return base64.b64encode(buffer.getvalue()).decode()


def router(serving: Serving) -> APIRouter:
    """The endpoint over the models of `serving`."""
    routes = APIRouter(tags=["images"])

    @routes.post(
        "/v1/images/generations",
        response_model=ImageResponse,
        responses=ERROR_RESPONSES | EVENTS,
        summary="Draw pictures",
    )
    async def generate(body: ImageRequest, request: Request) -> ImageResponse | StreamingResponse:
        """Draw `n` pictures.

        With `stream`, server-sent events: `partial_images` unfinished pictures, then each picture as it is done.
        """
        model = serving.model(body.model, "text-to-image", request)
        session, prompt = model.session(), serving.check_text("prompt", body.prompt, PROMPT_CHARACTERS)
        pipe: TextToImagePipeline = session.pipe
        grid, scale = pipe.grid, pipe.image_tokenizer.scale
        size = f"{grid.width * scale}x{grid.height * scale}"
        if body.size not in ("auto", size):
            raise Refusal(400, f"size={body.size}: {model.name} draws {size}; leave size out")
        if body.n > serving.limits.rows:
            raise Refusal(400, f"n={body.n}: this server draws at most {serving.limits.rows} at once")
        options = body.sampling_kwargs | {"guidance_scale": body.guidance_scale, "num_images_per_prompt": body.n}
        parts = serving.iterate_in_thread(request, session, lambda: session.stream(prompt, **options), body.stream)
        kind, quality = body.output_format, body.output_compression
        if kind == "png" and quality not in (None, 100):
            raise Refusal(400, f"output_compression={quality}: PNG is lossless; leave it out, or ask for jpeg or webp")

        def usage_of(image_tokens: int) -> ImageUsage:
            prompt_tokens = len(pipe.encode([prompt], 1.0).conditional[0])
            return ImageUsage(
                input_tokens=prompt_tokens,
                output_tokens=image_tokens,
                total_tokens=prompt_tokens + image_tokens,
                input_tokens_details=ImageTokensDetails(text_tokens=prompt_tokens),
            )

        async def events() -> AsyncIterator[str]:
            facts = {
                "created_at": int(time()),
                "size": size,
                "output_format": kind,
                "quality": "auto",
                "background": "opaque",
            }
            sent = 0
            async for part in parts:
                due = part.position * (body.partial_images + 1) // part.total
                if sent < due <= body.partial_images:
                    sent = due
                    for row, image in enumerate(await serving.thread(part.images)):
                        data = {
                            "b64_json": encode_image(image, kind, quality),
                            "partial_image_index": due - 1,
                            "row": row,
                        }
                        yield event({"type": "image_generation.partial_image"} | data | facts)
            metrics = serving.metrics.count(model, part.stats).model_dump()
            usage = usage_of(part.total).model_dump()
            for row, image in enumerate(await serving.thread(part.images)):
                data = {"b64_json": encode_image(image, kind, quality), "seed": part.seeds[row], "row": row}
                yield event(
                    {"type": "image_generation.completed"} | data | {"metrics": metrics, "usage": usage} | facts
                )

        if body.stream:
            return await event_stream(events())
        part = await drain(parts)
        images = await serving.thread(part.images)
        return ImageResponse(
            created=int(time()),
            model=model.name,
            data=[
                ImageData(b64_json=encode_image(image, kind, quality), seed=seed)
                for image, seed in zip(images, part.seeds)
            ],
            size=size,
            output_format=kind,
            usage=usage_of(part.total * body.n),
            metrics=serving.metrics.count(model, part.stats),
        )

    return routes
