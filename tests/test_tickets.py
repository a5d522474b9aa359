"""Tickets: what they open, for how long, and for whom."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.db import SessionStore
from django.core import signing
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from events import InvalidChannelName, InvalidTicket, TicketExpired, amake_ticket, make_ticket, tickets
from events.access import Question, Visitor, answers, auth_tags, session_tag
from events.channels import channel_table
from events.tickets import PURPOSE, read_ticket

if TYPE_CHECKING:
    from events.models import Channel

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def channel(make_channel) -> Channel:
    channel: Channel = make_channel("news", access="staff")
    return channel


@pytest.fixture
def user(make_user) -> User:
    user: User = make_user("ann", is_staff=True)
    return user


def visitor_of(user: User) -> Visitor:
    return Visitor(user_id=str(user.pk), auth=auth_tags(user)[0])


def parts(ticket: str) -> dict[str, Any]:
    found: dict[str, Any] = signing.Signer(salt=PURPOSE).unsign_object(ticket)
    return found


class TestMaking:
    def test_it_names_its_user_and_channels_and_its_end(self, channel, make_channel, user) -> None:
        """And nothing else: a name twice is one."""  # promise 23
        make_channel("talk")
        before = int(time.time())
        ticket = parts(make_ticket(user, ["news", "talk", "news"]))
        until = ticket.pop("until")
        assert ticket == {"user": str(user.pk), "channels": ["news", "talk"], "auth": auth_tags(user)[0]}
        assert before + 300 <= until <= time.time() + 300
        assert parts(make_ticket(user, ["news"], 20))["until"] <= time.time() + 20

    def test_a_session_can_end_it(self, channel, user) -> None:
        """It has the session's tag, and not its key."""
        session = SessionStore()
        session.create()
        ticket = make_ticket(user, ["news"], session=session)
        visitor = read_ticket(ticket)[0]
        assert visitor == replace(visitor_of(user), session=session_tag(str(session.session_key)))
        assert str(session.session_key) not in str(parts(ticket))
        # One that was never saved is nobody's.
        assert read_ticket(make_ticket(user, ["news"], session=SessionStore()))[0] == visitor_of(user)

    async def test_it_is_made_from_async_code_too(self, make_channel, user) -> None:
        """The groups of its user are asked for on a thread."""
        from asgiref.sync import sync_to_async

        await sync_to_async(make_channel)("news", access="groups")
        user.is_superuser = True
        ticket = await amake_ticket(user, ["news"], max_age=5)
        assert read_ticket(ticket) == (visitor_of(user), ["news"])

    def test_for_who_is_nobody_it_opens_what_anybody_may_read(self, channel, make_channel) -> None:
        """And nothing more."""
        make_channel("talk")
        assert read_ticket(make_ticket(AnonymousUser(), ["talk"])) == (Visitor(), ["talk"])
        with pytest.raises(PermissionDenied):
            make_ticket(AnonymousUser(), ["news"])

    def test_who_may_not_read_gets_none(self, channel, user, make_user) -> None:
        """Unknown and switched-off channels are refused alike."""  # promise 20
        with pytest.raises(PermissionDenied, match="There is no such channel, or bob may not read it: news"):
            make_ticket(make_user("bob"), ["news"])
        with pytest.raises(PermissionDenied, match="There is no such channel, or ann may not read it: news, other"):
            make_ticket(user, ["news", "other"])
        user.is_active = False
        with pytest.raises(PermissionDenied):
            make_ticket(user, ["news"])
        user.is_active = True
        channel.is_active = False
        channel.save()
        with pytest.raises(PermissionDenied):
            make_ticket(user, ["news"])

    @pytest.mark.parametrize("max_age", [0, -1, 3601, float("nan"), True, 0.5])
    def test_it_lives_for_an_hour_at_most(self, channel, user, max_age) -> None:
        """A URL is copied, logged and remembered."""  # promise 23
        with pytest.raises(ValueError, match=f"max_age is {max_age!r}: a ticket lives for 1 to 3600 seconds"):
            make_ticket(user, ["news"], max_age)

    def test_names_that_cannot_be(self, channel, user, settings) -> None:
        """None, too many, and no name."""
        settings.EVENTS = {"MAX_CHANNELS_PER_STREAM": 2}
        for names in ([], ["a", "b", "c"]):
            with pytest.raises(InvalidChannelName) as caught:
                make_ticket(user, names)
            said = f"a ticket is for 1 to 2 channels (EVENTS['MAX_CHANNELS_PER_STREAM']), not {len(names)}"
            assert str(caught.value) == said
        with pytest.raises(InvalidChannelName, match=r"'news\*' is not a channel name"):
            make_ticket(user, ["news*"])


class TestReading:
    def test_no_query_is_made(self, channel, user) -> None:
        """A signature and a clock are enough."""
        ticket = make_ticket(user, ["news"])
        with CaptureQueriesContext(connection) as made:
            read_ticket(ticket)
        assert len(made) == 0

    def test_when_its_time_is_over_it_says_so(self, channel, user, monkeypatch) -> None:
        """To the second."""  # promise 23
        ticket = make_ticket(user, ["news"], 60)
        until = parts(ticket)["until"]
        monkeypatch.setattr(tickets, "time", SimpleNamespace(time=lambda: until))
        read_ticket(ticket)
        monkeypatch.setattr(tickets, "time", SimpleNamespace(time=lambda: until + 1))
        with pytest.raises(TicketExpired, match="This ticket has expired: get a new one"):
            read_ticket(ticket)

    def test_a_site_may_change_its_key(self, channel, user, settings) -> None:
        """Old tickets are good while the old key is among the fallbacks."""
        ticket = make_ticket(user, ["news"])
        settings.SECRET_KEY, old = "another", settings.SECRET_KEY
        with pytest.raises(InvalidTicket):
            read_ticket(ticket)
        settings.SECRET_KEY_FALLBACKS = [old]
        assert read_ticket(ticket)[1] == ["news"]

    def test_what_was_signed_for_something_else_is_no_ticket(self, channel, user) -> None:
        """Session data, password reset links and cookies are signed with the same key."""  # promise 23
        ticket = parts(make_ticket(user, ["news"]))
        for signed in (
            signing.dumps(ticket),
            signing.dumps(ticket, salt=PURPOSE),
            signing.Signer().sign_object(ticket),
            signing.Signer(salt="django.contrib.sessions.SessionStore").sign_object(ticket),
            SessionStore().encode({"_auth_user_id": str(user.pk)}),
        ):
            with pytest.raises(InvalidTicket, match="This is not a ticket of this site"):
                read_ticket(signed)

    def test_one_changed_character_is_too_much(self, channel, user) -> None:
        """Wherever it stands."""
        ticket = make_ticket(user, ["news"])
        for place in range(len(ticket) - 1):
            changed = ticket[:place] + ("A" if ticket[place] != "A" else "B") + ticket[place + 1 :]
            with pytest.raises(InvalidTicket):
                read_ticket(changed)

    @given(st.text(max_size=200) | st.binary(max_size=100).map(lambda raw: raw.decode("latin-1")))
    def test_garbage_is_no_ticket(self, text: str) -> None:
        """And no other error."""  # promise 16
        with pytest.raises(InvalidTicket):
            read_ticket(text)

    def test_ten_megabytes_are_not_hashed(self, channel, user) -> None:
        """What is too long is no ticket, whatever it begins with."""
        ticket = make_ticket(user, ["news"])
        with pytest.raises(InvalidTicket):
            read_ticket(ticket + "x" * 10_000_000)
        with pytest.raises(InvalidTicket):
            read_ticket("x" * 10_000_000)


class TestUsers:
    """What ends a ticket's streams."""

    def may_read(self, ticket: str) -> bool:
        visitor, channels = read_ticket(ticket)
        [answer] = answers([Question(visitor, channels)])
        return answer.refusal is None

    def test_a_password_that_is_changed(self, channel, user) -> None:
        """As it ends sessions: who has stolen a ticket has it no longer."""
        ticket = make_ticket(user, ["news"])
        assert self.may_read(ticket)
        user.set_password("another")
        user.save()
        assert not self.may_read(ticket)

    def test_a_key_of_the_site_that_is_changed_is_no_such_change(self, channel, user, settings) -> None:
        """While the old one is among the fallbacks."""
        ticket = make_ticket(user, ["news"])
        settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
        settings.SECRET_KEY = "another"
        assert self.may_read(ticket)

    def test_a_user_model_without_sessions(self, make_channel) -> None:
        """A site's own may know nothing of hashes."""
        make_channel("news", access="authenticated")
        user = SimpleNamespace(pk=5, is_authenticated=True, is_active=True)
        assert read_ticket(make_ticket(user, ["news"])) == (Visitor(user_id="5"), ["news"])

    def test_a_user_who_is_deactivated(self, channel, user) -> None:
        """Or deleted, or nobody that may read any more."""
        ticket = make_ticket(user, ["news"])
        User.objects.update(is_staff=False)
        assert not self.may_read(ticket)
        User.objects.update(is_staff=True, is_active=False)
        assert not self.may_read(ticket)
        User.objects.all().delete()
        assert not self.may_read(ticket)


def test_many_channels_with_long_names_fit_in_a_url(make_channel, user) -> None:
    """What a stream may follow at most, of names as long as may be, is a ticket that is still read."""
    make_channel("*")
    names = [f"{number:02}" + "x" * 98 for number in range(50)]
    ticket = make_ticket(user, names)
    assert read_ticket(ticket)[1] == names
    assert len(ticket) < tickets.MAX_LENGTH
    assert channel_table.find(names[0]) is not None
