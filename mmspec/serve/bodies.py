"""What request bodies share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmspec.pipelines.request import MAX_SEED


class StrictModel(BaseModel):
    """A request body: a field that is not known is an error, not ignored; null is as if left out."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: object) -> object:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class UserFields(StrictModel):
    """Who asks, in OpenAI's words; taken, and used for nothing."""

    user: str | None = None
    safety_identifier: str | None = None


class SamplingFields(StrictModel):
    """How to sample, draft and accept; see `pipelines.base.GenerateOptions`. All but OpenAI's are mmspec's own."""

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    drafter: str | None = None
    acceptance: str = "exact"

    @property
    def sampling_kwargs(self) -> dict:
        """These fields as a pipeline takes them."""
        return self.model_dump(include=set(SamplingFields.model_fields))
