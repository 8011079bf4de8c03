"""`POST /v1/images/generations`."""

import base64
import io
from collections.abc import AsyncIterator
from time import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, Field

from mmspec.pipelines.request import HIGHEST
from mmspec.serve.serving import EVENTS, PROBLEMS, Metrics, Refusal, Serving, Shape, event, last, started


class ImageRequest(Shape):
    """What to draw. `seed` and the fields after it are mmspec's own; row i of `n` has seed + i."""

    prompt: str
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    size: str = "auto"
    quality: Literal["auto"] = "auto"
    background: Literal["auto", "opaque"] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=16)] = 0
    user: str | None = None
    seed: Annotated[int, Field(ge=0, le=HIGHEST)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    drafter: str | None = None
    acceptance: str = "exact"


class ImageData(BaseModel):
    b64_json: str
    seed: int


class ImageResponse(BaseModel):
    created: int
    model: str
    data: list[ImageData]
    size: str
    output_format: str
    metrics: Metrics


def encoded(image: Image.Image, kind: str) -> str:
    """A picture file in base64."""
    whole = io.BytesIO()
    image.save(whole, format=kind)
    return base64.b64encode(whole.getvalue()).decode()


def router(serving: Serving) -> APIRouter:
    """The endpoint over the models of `serving`."""
    routes = APIRouter(tags=["images"])

    @routes.post(
        "/v1/images/generations", response_model=ImageResponse, responses=PROBLEMS | EVENTS, summary="Draw pictures"
    )
    async def generate(body: ImageRequest, request: Request) -> Any:
        """Draw `n` pictures. With `stream`, server-sent events: `partial_images` pictures in the making, then each picture as it is done."""
        model = serving.model(body.model, "text-to-image")
        pipe, prompt = model.seat(), serving.text("prompt", body.prompt)
        grid, scale = pipe.grid, 2 ** (len(pipe.vqvae.config.block_out_channels) - 1)
        size = f"{grid.width * scale}x{grid.height * scale}"
        if body.size not in ("auto", size):
            raise Refusal(400, f"size={body.size}: {model.name} draws {size}; leave size out")
        if body.n > serving.limits.rows:
            raise Refusal(400, f"n={body.n}: this server draws at most {serving.limits.rows} at once")
        law = body.model_dump(
            include={"seed", "guidance_scale", "temperature", "top_k", "top_p", "drafter", "acceptance"}
        )
        parts = serving.follow(
            request, pipe, lambda: pipe.stream(prompt, num_images_per_prompt=body.n, **law), body.stream
        )

        async def events() -> AsyncIterator[str]:
            about = {
                "created_at": int(time()),
                "size": size,
                "output_format": body.output_format,
                "quality": "auto",
                "background": "opaque",
            }
            shown = 0
            async for part in parts:
                due = part.position * (body.partial_images + 1) // part.total
                if shown < due <= body.partial_images:
                    shown = due
                    images = await serving.thread(part.images)
                    for row, image in enumerate(images):
                        facts = {
                            "b64_json": encoded(image, body.output_format),
                            "partial_image_index": due - 1,
                            "row": row,
                        } | about
                        yield event({"type": "image_generation.partial_image"} | facts)
            metrics, words = (
                serving.report(model, part.stats).model_dump(),
                len(pipe.encode([prompt], 1.0).conditional[0]),
            )
            details = {"text_tokens": words, "image_tokens": 0}
            usage = {
                "input_tokens": words,
                "output_tokens": part.total,
                "total_tokens": words + part.total,
                "input_tokens_details": details,
            }
            for row, image in enumerate(await serving.thread(part.images)):
                facts = {
                    "b64_json": encoded(image, body.output_format),
                    "seed": part.seeds[row],
                    "row": row,
                    "metrics": metrics,
                    "usage": usage,
                } | about
                yield event({"type": "image_generation.completed"} | facts)

        if body.stream:
            return StreamingResponse(await started(events()), media_type="text/event-stream")
        part = await last(parts)
        images = await serving.thread(part.images)
        return ImageResponse(
            created=int(time()),
            model=model.name,
            data=[
                ImageData(b64_json=encoded(image, body.output_format), seed=seed)
                for image, seed in zip(images, part.seeds)
            ],
            size=size,
            output_format=body.output_format,
            metrics=serving.report(model, part.stats),
        )

    return routes
