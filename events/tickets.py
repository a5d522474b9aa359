"""Tickets: a signed, short-lived permission to read, in a URL, where cookies cannot go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.core.signing import BadSignature, Signer

from .access import Visitor, auth_tags, id_of, may_read_each, rows_of, session_tag
from .channels import channel_table, names_for_a_stream
from .exceptions import InvalidTicket, TicketExpired

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: What a ticket is for: nothing else that is signed with the site's key passes for one.
PURPOSE = "events.ticket.stream"
#: Seconds for which a ticket is good, unless somebody says otherwise, and at most.
MAX_AGE, MOST = 300, 3600
#: Characters of the longest that is looked at.
MAX_LENGTH = 16_384


def make_ticket(user: Any, channels: Iterable[str], max_age: int = MAX_AGE, *, session: Any = None) -> str:
    """
    A ticket with which `user` can open streams of `channels` for `max_age` seconds, as `stream/?ticket=…`.

    It opens streams of these channels and nothing else, and asks for no session: it is for pages of another origin, for
    native apps, for clients that cannot send cookies. Its user is asked for while a stream is open, as for every
    stream: who is revoked is closed. With `session`, such as `request.session`, a log-out ends its streams too. An
    anonymous user's ticket opens what anybody may read.

    Raises `PermissionDenied` where the user may not read all of the channels now, `InvalidChannelName` for a name that
    cannot be one, no channel, or more than `MAX_CHANNELS_PER_STREAM`, and `ValueError` for a `max_age` that is not a
    number of seconds from 1 to 3600.
    """
    names = names_for_a_stream(channels, "a ticket is for {} channels (EVENTS['MAX_CHANNELS_PER_STREAM'])")
    if isinstance(max_age, bool) or not 1 <= max_age <= MOST:
        raise ValueError(f"max_age is {max_age!r}: a ticket lives for 1 to {MOST} seconds.")
    channel_table.refresh()
    if not may_read_each(user, rows_of(names)):
        raise PermissionDenied(f"There is no such channel, or {user} may not read it: {', '.join(names)}")
    ticket: dict[str, Any] = {"channels": names, "until": int(time.time() + max_age)}
    if (user_id := id_of(user)) is not None:
        ticket["user"] = user_id
        if tags := auth_tags(user):
            ticket["auth"] = tags[0]
    if session is not None and session.session_key is not None:
        ticket["session"] = session_tag(session.session_key)
    return Signer(salt=PURPOSE).sign_object(ticket, compress=True)


async def amake_ticket(user: Any, channels: Iterable[str], max_age: int = MAX_AGE, *, session: Any = None) -> str:
    """`make_ticket` from async code."""
    return await sync_to_async(make_ticket)(user, channels, max_age, session=session)


def read_ticket(text: str) -> tuple[Visitor, list[str]]:
    """
    Whose ticket it is and what channels it is for. No query.

    Raises `TicketExpired`, or `InvalidTicket` for what was not signed here, for this.
    """
    try:
        # What is longer than a ticket can be is not worth a look: its signature would miss what was cut off.
        ticket: Mapping[str, Any] = Signer(salt=PURPOSE).unsign_object(text[:MAX_LENGTH])
    except (BadSignature, ValueError) as error:
        raise InvalidTicket("This is not a ticket of this site: get a new one.") from error
    if ticket["until"] < time.time():
        raise TicketExpired("This ticket has expired: get a new one.")
    visitor = Visitor(user_id=ticket.get("user"), session=ticket.get("session"), auth=ticket.get("auth"))
    return visitor, ticket["channels"]
