"""The kinds of values that requests and business rules are made of, each checked before it reaches PostgreSQL."""

from __future__ import annotations

import datetime as dt
import enum
import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from bazaruto.service.currencies import CURRENCIES

MAX_MINOR = 10**15  # still exact as a JSON number everywhere
FIRST_DAY = dt.date(1970, 1, 1)
LAST_DAY = dt.date(2199, 12, 31)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EMAIL = re.compile(r"[!-?A-~]{1,64}@(?:[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?\.)+[0-9A-Za-z-]{2,63}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class Role(enum.StrEnum):
    """What a user may do."""

    CUSTOMER = "customer"  # sees and claims on own policies
    AGENT = "agent"  # keeps customers, policies and claims
    ADMIN = "admin"  # also agents and admins, webhooks, and failed jobs


class Product(enum.StrEnum):
    """What can be insured."""

    MOTOR = "motor"
    HOME = "home"
    HEALTH = "health"
    TRAVEL = "travel"
    LIFE = "life"


class Input(BaseModel):
    """What a client sends: unknown fields are refused, strings are not taken for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _storable(text: str) -> str:
    """Refuse what PostgreSQL or a log cannot hold: NUL and other control characters, lone surrogates."""
    for character in text:
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\t":
            raise ValueError(f"must not contain the character U+{ord(character):04X}")
    return text


def _filled(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _email(text: str) -> str:
    if not _EMAIL.fullmatch(text):
        raise ValueError("must be an e-mail address in ASCII, like name@example.com")
    return text


def _currency(text: str) -> str:
    if text not in CURRENCIES:
        raise ValueError("must be a currency code of ISO 4217 in capitals, like EUR")
    return text


def _date_text(value: object) -> object:
    """Only YYYY-MM-DD is a date here: no timestamps, no numbers."""
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return value
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        raise ValueError("must be a date like 2026-01-31")
    try:
        return dt.date.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{value} is not a day of the calendar") from error


def _day(value: dt.date) -> dt.date:
    if not FIRST_DAY <= value <= LAST_DAY:
        raise ValueError(f"must lie between {FIRST_DAY} and {LAST_DAY}")
    return value


def _uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise ValueError("must be an id like 123e4567-e89b-12d3-a456-426614174000")
    return text.lower()


Text = Annotated[str, Field(strict=True), AfterValidator(_storable)]
Name = Annotated[Text, Field(min_length=1, max_length=200), AfterValidator(_filled)]
Description = Annotated[Text, Field(min_length=1, max_length=4000), AfterValidator(_filled)]
Reason = Annotated[Text, Field(min_length=1, max_length=1000), AfterValidator(_filled)]
Email = Annotated[Text, Field(max_length=254), AfterValidator(_email)]
Password = Annotated[Text, Field(min_length=10, max_length=200)]
Currency = Annotated[Text, AfterValidator(_currency)]
Minor = Annotated[int, Field(strict=True, ge=1, le=MAX_MINOR)]  # an amount in the currency's smallest unit
Day = Annotated[dt.date, BeforeValidator(_date_text), AfterValidator(_day)]
Id = Annotated[Text, AfterValidator(_uuid)]


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id; anything else in a path names nothing."""
    return _UUID.fullmatch(text) is not None
