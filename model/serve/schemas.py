"""JSON schemas of requests and responses."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt

MAX_USERS, MAX_K = 100, 1000

UserId = Annotated[str, Field(max_length=256)]


class Query(BaseModel):
    """Request for recommendations."""

    # Ids may be sent as numbers; they are compared as text.
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    users: list[UserId] = Field(min_length=1, max_length=MAX_USERS, description="original user ids")
    k: StrictInt = Field(10, ge=1, le=MAX_K, description="items per user")
    history: StrictInt = Field(0, ge=0, le=MAX_K, description="number of the user's latest items to include")


class Item(BaseModel):
    """An item by its original id, as text."""

    item: str
    title: str | None = Field(description="null if no title is known")


class Ranked(Item):
    """A recommended item."""

    score: float = Field(
        description="the model's (its kind is in `/health`), or for popularity the share of users who have the item"
    )


class UserAnswer(BaseModel):
    """Items one user has not interacted with, best first."""

    basis: str = Field(description="`model`, or `popularity` for a user unknown to the model")
    items: list[Ranked]
    history: list[Item] = Field(description="the user's latest items, latest first")


class Answer(BaseModel):
    """One entry per requested user, in request order."""

    users: list[UserAnswer]


class Failure(BaseModel):
    """The error."""

    detail: str


class Health(BaseModel):
    """Status of the service, and numbers of users (that the run was trained on) and items."""

    status: str
    n_users: int
    n_items: int
    examples: list[str] = Field(description="some user ids")
    scores: str = Field(description="`probability` of an interaction, or `logit`: compares the items of one user only")
