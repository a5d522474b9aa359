"""By what right streams go on: who is asked for, when, how often; and what happens where there is no answer."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError

from events import rights
from events.access import Answer, Question, Visitor, session_tag
from events.channels import channel_table
from events.hub import recheck_streams
from events.rights import BATCH, UNCHECKED, Rights, moment, pass_moment
from events.wire import covers

from .hubs import hub_with, reading, settled
from .waiting import GUARD, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from events.hub import Hub

    from .hubs import Log

pytestmark = pytest.mark.django_db(transaction=True)


class Asked:
    """In the place of the database: what it was asked, and what it says."""

    def __init__(self) -> None:
        self.batches: list[list[Question]] = []
        #: Whom it refuses.
        self.refused: set[Visitor | None] = set()
        #: What it raises.
        self.error: Exception | None = None
        self.users: dict[Visitor | None, str] = {}
        #: Answers wait for it.
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self, questions: list[Question]) -> list[Answer]:
        self.batches.append(questions)
        found = [
            Answer("revoked" if asked.visitor in self.refused else None, self.users.get(asked.visitor))
            for asked in questions
        ]
        error = self.error
        await self.answers.wait()
        if error is not None:
            raise error
        return found

    @property
    def visitors(self) -> list[list[Visitor | None]]:
        return [[asked.visitor for asked in batch] for batch in self.batches]


class Follower:
    """In the place of a stream: what it was told."""

    def __init__(self, *channels: str) -> None:
        self.channels = channels or ("staff",)
        self.is_held = self.has_ended = False
        self.reason = ""
        self.right: Any = None

    def hold(self) -> None:
        self.is_held = True

    def release(self) -> None:
        self.is_held = False

    def refuse(self, reason: str) -> None:
        self.reason = reason

    def end(self) -> None:
        self.has_ended = True


ANN, BOB = Visitor("session-of-ann", "1"), Visitor("session-of-bob", "2")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr(rights, "_in_thread", asked)
    monkeypatch.setattr(rights, "RETRY", 0.01)
    return asked


@pytest.fixture
async def table(settings) -> Any:
    """The rights of one hub."""
    settings.EVENTS = {"RECHECK": 1000}
    table = Rights(contextvars.Context())
    yield table
    table.close()


@pytest.fixture
def join(table: Rights) -> Callable[..., Follower]:
    def join(allowed: Any, *channels: str, checked: int | None = None, user: str | None = None) -> Follower:
        follower = Follower(*channels)
        now = moment() if checked is None else checked
        follower.right = table.join(follower, allowed, user, now)  # type: ignore[arg-type]
        return follower

    return join


def leave(table: Rights, *followers: Follower) -> None:
    for follower in followers:
        table.leave(follower, follower.right)  # type: ignore[arg-type]


class TestJoining:
    async def test_who_was_just_let_in_is_not_asked_for(self, asked, table, join) -> None:
        """Nor held."""
        assert not join(ANN).is_held
        assert asked.batches == []

    async def test_streams_of_one_visitor_and_the_same_channels_share_a_right(self, table, join) -> None:
        """It goes with the last of them."""
        one, two = join(ANN), join(Visitor("session-of-ann", "1"))
        assert one.right is two.right
        assert join(BOB).right is not one.right
        assert join(ANN, "staff", "other").right is not one.right
        leave(table, one)
        assert join(ANN).right is two.right
        leave(table, *two.right.streams.copy())
        assert join(ANN).right is not two.right

    async def test_what_was_checked_before_something_changed_is_asked_again(self, asked, table, join) -> None:
        """Between the check and the stream somebody may have lost the right: it is held until that is known."""
        checked = moment()
        pass_moment()
        asked.refused.add(BOB)
        good, bad = join(ANN, checked=checked), join(BOB, checked=checked)
        assert good.is_held
        assert bad.is_held
        await until(lambda: bad.reason == "revoked" and not good.is_held)
        assert asked.visitors == [[ANN, BOB]]

    async def test_whom_nobody_has_checked_is_asked_for_once(self, asked, table, join) -> None:
        """A ticket was looked at without a query. Its second stream goes by what is known of the first."""
        asked.answers.clear()
        first, second = join(ANN, checked=UNCHECKED), join(ANN, checked=UNCHECKED)
        await until(lambda: asked.batches)
        assert first.is_held
        assert second.is_held
        asked.answers.set()
        await until(lambda: not first.is_held and not second.is_held)
        assert not join(ANN, checked=UNCHECKED).is_held
        leave(table, *first.right.streams.copy())
        # Nothing is known any more.
        assert join(ANN, checked=UNCHECKED).is_held

    async def test_a_signal_counts_from_the_moment_it_is_sent(self) -> None:
        """Not from when a loop comes to it: who is being let in meanwhile was checked against what was before."""
        before = moment()
        recheck_streams()
        assert moment() != before


class TestAsking:
    async def test_all_or_who_is_meant(self, asked, table, join, make_channel) -> None:
        """By user, by channel, or both; prefixes too."""
        asked.users = {ANN: "1", BOB: "2"}
        ann, bob, room = join(ANN), join(BOB), join(ANN, "room.1")
        nobody, own = join(Visitor(), "talk"), []

        async def allowed() -> bool:
            own.append(True)
            return True

        join(allowed)

        async def held(**kwargs: Any) -> list[Follower]:
            before = len(asked.batches)
            table.ask(**kwargs)
            found = [follower for follower in (ann, bob, room, nobody) if follower.is_held]
            if found:
                await until(lambda: len(asked.batches) > before and not any(follower.is_held for follower in found))
            return found

        assert await held() == [ann, bob, room, nobody]
        assert await held(users=["2"]) == [bob]
        assert await held(users=["1"]) == [ann, room]
        assert await held(users=["1"], channels=["room.*"]) == [room]
        assert await held(channels=["staff"]) == [ann, bob]
        assert await held(channels=["*"]) == [ann, bob, room, nobody]
        assert await held(users=["3"]) == []
        assert await held(session=session_tag("session-of-bob")) == [bob]
        # Whom a function of the site's own lets in, only that knows: all but the last two may have meant it.
        await until(lambda: len(own) == 6)

    async def test_who_has_logged_out_is_nobody_from_then_on(self, asked, table, join) -> None:
        """Whatever is still in the session."""
        ann = join(ANN, "talk")
        table.ask(session=session_tag("session-of-ann"))
        await until(lambda: not ann.is_held)
        table.ask()
        await until(lambda: len(asked.batches) == 2)
        assert asked.visitors == [[Visitor()], [Visitor()]]

    async def test_many_are_asked_for_at_once(self, asked, table, join) -> None:
        """A batch is one trip to a thread, and a few queries."""
        followers = [join(Visitor(user_id=str(number))) for number in range(BATCH + 1)]
        table.ask()
        await until(lambda: not any(follower.is_held for follower in followers))
        assert [len(batch) for batch in asked.batches] == [BATCH, 1]

    async def test_what_anybody_may_read_is_answered_first(self, asked, table, join, make_channel) -> None:
        """Its streams do not wait for the users of others."""
        await sync_to_async(make_channel)("talk")
        await sync_to_async(channel_table.refresh)()
        followers = [join(ANN), join(Visitor(), "talk"), join(BOB), join(None)]
        table.ask()
        await until(lambda: not any(follower.is_held for follower in followers))
        assert asked.visitors == [[Visitor(), None], [ANN, BOB]]

    async def test_channels_that_were_read_anew_ask_for_what_is_not_asked_anyway(self, asked, table, join) -> None:
        """What waits for its turn will be answered by what was read; what is being asked may be not."""
        asked.answers.clear()
        ann, bob = join(ANN), join(BOB)
        table.ask(users=["1"])
        await until(lambda: asked.batches)
        table.ask(users=["2"])
        number = bob.right.asked
        table.ask_anew()
        assert (ann.right.asked, bob.right.asked) == (2, number)
        asked.answers.set()
        await until(lambda: not ann.is_held and not bob.is_held)
        assert asked.visitors == [[ANN], [BOB, ANN]]

    async def test_an_answer_of_before_the_question_counts_for_nothing(self, asked, table, join) -> None:
        """Something has changed again, while the database was looking."""
        asked.answers.clear()
        ann = join(ANN)
        table.ask()
        await until(lambda: asked.batches)
        asked.refused.add(ANN)
        table.ask()
        asked.answers.set()
        await until(lambda: ann.reason)
        assert len(asked.batches) == 2

    async def test_who_has_gone_is_not_asked_for(self, asked, table, join) -> None:
        """Nor is it an error that an answer comes too late."""
        asked.answers.clear()
        ann, bob = join(ANN), join(BOB)
        table.ask(users=["1"])
        await until(lambda: asked.batches)
        table.ask(users=["2"])
        leave(table, ann, bob)
        asked.answers.set()
        await until(lambda: table._task is None)
        assert asked.visitors == [[ANN]]

    async def test_a_view_that_lets_in_for_good(self, asked, table, join) -> None:
        """`EventStreamResponse` without `allowed`: nobody is asked for, but whether the channel is still on."""
        stays = join(None)
        table.ask()
        await until(lambda: not stays.is_held)
        assert [[question.visitor for question in batch] for batch in asked.batches] == [[None]]

    async def test_who_has_closed_asks_again(self, asked, table, join) -> None:
        """As a hub does that begins again: whether what was about to ask had begun or not."""
        asked.answers.clear()
        ann = join(ANN)
        table.ask()
        table.close()
        table.ask()
        await until(lambda: asked.batches)
        table.close()
        table.ask()
        task = table._task
        # What was ended ends, and takes nothing of its successor's along.
        await until(lambda: len(asked.batches) == 2)
        assert table._task is task
        asked.answers.set()
        await until(lambda: not ann.is_held)
        assert table._task is None


class TestDisconnecting:
    async def test_the_streams_of_one_user_end(self, asked, table, join) -> None:
        """And those of no other, whoever let them in."""

        async def allowed() -> bool:
            return True

        ann, bob, own, others = join(ANN), join(BOB), join(allowed, user="1"), join(allowed, user="2")
        table.disconnect("1")
        assert [ann.reason, bob.reason, own.reason, others.reason] == ["disconnected", "", "disconnected", ""]
        assert asked.batches == []

    async def test_whose_session_it_is_is_found_out(self, asked, table, join) -> None:
        """Of a public channel's stream nobody has asked before. It is not held meanwhile: it may be anybody's."""
        visitors = [Visitor("session-of-ann"), Visitor("session-of-bob"), Visitor()]
        asked.users = {visitors[0]: "1", visitors[1]: "2"}
        followers = [join(visitor, "talk") for visitor in visitors]
        table.disconnect("1")
        assert not any(follower.is_held for follower in followers)
        await until(lambda: followers[0].reason == "disconnected")
        assert [follower.reason for follower in followers] == ["disconnected", "", ""]
        assert [[question.wants_user for question in batch] for batch in asked.batches] == [[True, True]]
        table.ask()
        await until(lambda: len(asked.batches) == 2)
        # Once it was known, and for that message alone.
        assert not any(question.wants_user for question in asked.batches[1])


@pytest.fixture
def soon(settings) -> None:
    settings.EVENTS = {"RECHECK": 0.1}


class TestIntervals:
    @contextmanager
    def rights(self) -> Iterator[Rights]:
        table = Rights(contextvars.Context())
        try:
            yield table
        finally:
            table.close()

    async def test_every_right_is_asked_for_and_nobody_is_held(self, asked, soon) -> None:
        """Once for all streams of it, and again at the next interval."""  # promise 21
        with self.rights() as table:
            followers = [Follower() for _ in range(10)]
            held: list[bool] = []
            for number, follower in enumerate(followers):
                follower.hold = lambda: held.append(True)  # type: ignore[method-assign]
                table.join(follower, (ANN, BOB)[number % 2], None, moment())  # type: ignore[arg-type]
            await until(lambda: len(asked.batches) >= 3)
            assert asked.visitors[:3] == [[ANN, BOB]] * 3
            asked.refused.add(ANN)
            await until(lambda: all(follower.reason for follower in followers[::2]))
            assert not any(follower.reason for follower in followers[1::2])
            assert held == []

    async def test_what_anybody_may_read_is_not_asked_for(self, asked, soon, make_channel) -> None:
        """A change of the channels is told."""
        await sync_to_async(make_channel)("talk")
        await sync_to_async(channel_table.refresh)()
        with self.rights() as table:
            table.join(Follower("talk"), Visitor("session"), None, moment())  # type: ignore[arg-type]
            table.join(Follower(), None, None, moment())  # type: ignore[arg-type]
            table.join(Follower(), ANN, None, moment())  # type: ignore[arg-type]
            await until(lambda: len(asked.batches) >= 2)
        assert asked.visitors[0] == [ANN]

    async def test_what_is_not_answered_within_an_interval_is_held(self, asked, soon) -> None:
        """A database that says nothing has not said yes."""  # promise 21
        with self.rights() as table:
            ann = Follower()
            table.join(ann, ANN, None, moment())  # type: ignore[arg-type]
            asked.answers.clear()
            await until(lambda: ann.is_held)
            asked.answers.set()
            await until(lambda: not ann.is_held)

    async def test_the_timer_ends_with_the_last_stream(self, asked, soon) -> None:
        """However often streams come and go, there is one."""
        with self.rights() as table:
            for _ in range(20):
                ann = Follower()
                right = table.join(ann, ANN, None, moment())  # type: ignore[arg-type]
                table.leave(ann, right)  # type: ignore[arg-type]
            timer = table._timer
            assert timer is not None
            await until(lambda: table._timer is None)
            assert asked.batches == []

    async def test_a_stream_that_has_gone_before_its_turn(self, asked, table, join) -> None:
        """It is passed over."""
        ann, bob = join(ANN), join(BOB)
        leave(table, bob)
        table._ask_in_turn([ann.right, bob.right])
        await until(lambda: asked.batches)
        assert asked.visitors == [[ANN]]


class TestNoAnswer:
    async def test_streams_are_held_until_there_is_one(self, asked, table, join, caplog) -> None:
        """Also those that were not, as at an interval; the log says so once, and once that it is over."""  # promise 21
        caplog.set_level(logging.INFO, "events.rights")
        asked.error = ConnectionError("gone")
        ann = join(ANN)
        table._ask([ann.right], hold=False)
        await until(lambda: len(asked.batches) >= 3)
        assert ann.is_held
        asked.error = None
        await until(lambda: not ann.is_held)
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            "rights cannot be checked, and streams are held until they can be",
            "rights can be checked again",
        ]

    async def test_one_that_cannot_be_asked_for_holds_up_no_other(self, asked, table, join, monkeypatch) -> None:
        """The user is in a directory that does not answer, and the others are not."""
        bad = Visitor(user_id="bad")

        async def find(questions: list[Question]) -> list[Answer]:
            if bad in [question.visitor for question in questions]:
                raise ConnectionError("gone")
            return [Answer(None) for _ in questions]

        monkeypatch.setattr(rights, "_in_thread", find)
        good, lost = [join(Visitor(user_id=str(number))) for number in range(20)], join(bad)
        more = [join(Visitor(user_id=str(number))) for number in range(20, 40)]
        table.ask()
        await until(lambda: not any(follower.is_held for follower in [*good, *more]))
        assert lost.is_held
        leave(table, lost)
        await until(lambda: table._task is None)

    async def test_who_comes_meanwhile_waits_too(self, asked, table, join) -> None:
        """And who goes is not asked for any more."""
        asked.error = ConnectionError("gone")
        ann = join(ANN, checked=UNCHECKED)
        await until(lambda: asked.batches)
        bob = join(BOB, checked=UNCHECKED)
        leave(table, ann)
        asked.error = None
        await until(lambda: not bob.is_held)
        assert asked.visitors[-1] == [BOB]

    async def test_a_function_of_the_sites_own_that_cannot_say(self, table, join, caplog, monkeypatch) -> None:
        """What it asks is away: it is asked until it answers, and nobody reads meanwhile."""
        monkeypatch.setattr(rights, "RETRY", 0.01)
        answers: list[Any] = [OperationalError("gone"), ConnectionError("gone"), True]

        async def allowed() -> bool:
            if isinstance(answer := answers.pop(0), Exception):
                raise answer
            return bool(answer)

        ann = join(allowed)
        table._ask([ann.right], hold=False)
        await until(lambda: ann.is_held)
        await until(lambda: not ann.is_held)
        assert answers == []
        assert caplog.text.count("rights cannot be checked") == 1

    async def test_a_function_of_the_sites_own_that_has_a_fault(self, table, join, caplog) -> None:
        """It is logged and ends its streams; their clients come back, and the view decides."""  # promise 14

        async def allowed() -> bool:
            raise ZeroDivisionError

        ann, bob = join(allowed), join(BOB)
        table.ask()
        await until(lambda: ann.has_ended)
        assert not bob.has_ended
        assert "a stream ended by a fault: channels=staff" in caplog.text
        assert "ZeroDivisionError" in caplog.text

    async def test_nobody_asks_for_a_stream_that_has_gone(self, table, join, monkeypatch) -> None:
        """A function of the site's own fails, and meanwhile the client goes."""
        monkeypatch.setattr(rights, "RETRY", 0.01)
        failed = asyncio.Event()

        async def allowed() -> bool:
            failed.set()
            raise OperationalError("gone")

        ann = join(allowed)
        table.ask()
        await asyncio.wait_for(failed.wait(), GUARD)
        leave(table, ann)
        await until(lambda: not table._tasks)

    async def test_a_function_of_the_sites_own_that_answers_too_late(self, table, join, make_channel) -> None:
        """The question was asked again: what is found then counts. A switch comes before it."""
        started = asyncio.Event()
        answer = asyncio.Event()
        say = [False, True, True]

        async def allowed() -> bool:
            started.set()
            found = say.pop(0)
            await answer.wait()
            return found

        ann = join(allowed)
        table.ask()
        await asyncio.wait_for(started.wait(), GUARD)
        table.ask()
        answer.set()
        await until(lambda: not ann.is_held)
        assert ann.reason == ""
        await sync_to_async(make_channel)("staff", is_active=False)
        await sync_to_async(channel_table.refresh)()
        table.ask()
        await until(lambda: ann.reason == "switched-off")
        assert say == []

    async def test_closing_ends_what_is_being_asked(self, asked, table, join) -> None:
        """A hub that stops leaves no task behind."""
        asked.answers.clear()

        async def allowed() -> bool:
            await asyncio.Event().wait()
            return True

        join(ANN), join(allowed)
        table.ask()
        await until(lambda: asked.batches)
        tasks = set(table._tasks)
        assert len(tasks) == 2
        table.close()
        await asyncio.wait(tasks, timeout=GUARD)
        assert table._timer is None
        table.close()


class TestStreams:
    """What a stream does while it is held."""

    async def test_nothing_published_after_the_question_comes_before_the_answer(self, hub: Hub, log: Log) -> None:
        """Keep-alives do."""
        async with hub_with(log, KEEPALIVE=0.05) as hub:
            async with reading(hub) as reader:
                await settled(hub, reader)
                # The hub's first look at the log asks for all rights: that answer would release it.
                await until(lambda: reader.stream._right.is_answered)
                reader.stream.hold()
                log.publish(data="after")
                await until(lambda: hub.head == log.head())
                body = len(reader.body)
                await until(lambda: reader.body[body:].count(b":\n") >= 2)
                assert not reader.pending.done()
                reader.stream.release()
                assert (await reader.pending).data == "after"

    async def test_a_stream_that_is_not_held_has_nothing_to_be_released_from(self, hub: Hub, log: Log) -> None:
        """Its right may be shared with one that is."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            await until(lambda: reader.stream._right.is_answered and not reader.stream._todo)
            reader.stream.release()
            assert not reader.stream._todo
            log.publish(data="1")
            assert (await reader.pending).data == "1"

    async def test_a_stream_that_stands_in_the_log_reads_nothing(self, hub: Hub, log: Log) -> None:
        """Nor where the question came between its look at the rings and its look at the log."""
        first = log.publish(data="1")
        log.publish(data="2")
        async with reading(hub, resume=str(first)) as reader:
            await until(lambda: hub.head == log.head())
            # It begins, and stands in the log then.
            assert await reader.stream._find_out() == b""
            reads = len(log.reads)
            reader.stream.hold()
            assert await reader.stream._find_out() == b""
            assert len(log.reads) == reads
            reader.stream.release()
            assert (await reader.next()).data == "2"

    async def test_the_first_bytes_do_not_wait(self, log: Log, asked: Asked) -> None:
        """A client is told at once that it is connected; what is replayed waits for the answer."""
        asked.answers.clear()
        log.publish(data="old")
        async with hub_with(log) as hub, reading(hub, allowed=ANN, checked=UNCHECKED, earliest=True) as reader:
            assert reader.body.startswith(b"retry: ")
            task = asyncio.ensure_future(reader.next())
            await until(lambda: asked.batches)
            assert log.reads == []
            asked.answers.set()
            assert (await asyncio.wait_for(task, GUARD)).data == "old"

    async def test_who_is_refused_while_held_gets_the_reason_and_nothing_else(self, hub: Hub, log: Log) -> None:
        """And the stream ends."""
        async with reading(hub) as reader:
            await settled(hub, reader)
            reader.stream.hold()
            log.publish(data="secret")
            await until(lambda: hub.head == log.head())
            reader.stream.refuse("revoked")
            assert (await reader.pending).json() == {"reason": "revoked"}
            with pytest.raises(StopAsyncIteration):
                await reader.next()
            assert b"secret" not in reader.body

    async def test_a_hub_that_starts_asks_for_those_who_came_before(self, log: Log, asked: Asked) -> None:
        """What was told before it followed the log, it has not heard."""
        async with hub_with(log) as hub, reading(hub, allowed=ANN) as reader:
            await settled(hub, reader)
            assert asked.visitors == [[ANN]]

    async def test_a_hub_that_has_missed_something_asks_for_all(self, hub: Hub, log: Log, asked: Asked) -> None:
        """It may have been a message: of another life of the log, or trimmed."""
        async with reading(hub, allowed=ANN) as reader:
            await settled(hub, reader)
            before = len(asked.batches)
            log.new_life()
            assert (await reader.pending).event == "stream-reset"
            assert len(asked.batches) == before + 1


def test_what_stands_for_which_channel() -> None:
    """A name for itself, a prefix for all that begin so."""
    assert covers("news", "news")
    assert not covers("news", "news.1")
    assert covers("news.*", "news.1")
    assert not covers("news.*", "news")
    assert covers("*", "news")
