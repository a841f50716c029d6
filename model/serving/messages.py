"""What clients send and get, as JSON."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt

MAX_USERS, MAX_K = 100, 1000

UserId = Annotated[str, Field(max_length=256)]


class Query(BaseModel):
    """Who is to be recommended how much."""

    # Ids may come as numbers; they are compared as text.
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    users: list[UserId] = Field(min_length=1, max_length=MAX_USERS, description="original user ids")
    k: StrictInt = Field(10, ge=1, le=MAX_K, description="items per user")
    history: StrictInt = Field(0, ge=0, le=MAX_K, description="how many of the user's latest items to give with them")


class Item(BaseModel):
    """An item by its original id, as text."""

    item: str
    title: str | None = Field(description="null where no title is known")


class Ranked(Item):
    """An item that is recommended."""

    score: float = Field(description="the model's probability; by popularity the share of users who have the item")


class UserAnswer(BaseModel):
    """The items one user has not interacted with, best first."""

    basis: str = Field(description="`model`, or `popularity` for a user the model does not know")
    items: list[Ranked]
    history: list[Item] = Field(description="the user's latest items, the latest first")


class Answer(BaseModel):
    """An entry for each user asked for, in that order."""

    users: list[UserAnswer]


class Failure(BaseModel):
    """Why there is no answer."""

    detail: str


class Health(BaseModel):
    """That the service answers, and what it knows."""

    status: str
    n_users: int
    n_items: int
    examples: list[str] = Field(description="some of the user ids")
