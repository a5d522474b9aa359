"""Everything that django-live-events raises on purpose."""


class EventsError(Exception):
    """Base of all errors of this app."""


class InvalidChannelName(EventsError, ValueError):
    """A channel name breaks the rules of `events.wire.validate_channel_name`."""


class InvalidEvent(EventsError, ValueError):
    """An event's data, type, id or key cannot be written to a stream unchanged."""


class EventTooLarge(InvalidEvent):
    """An event's encoded data is larger than the `MAX_EVENT_BYTES` setting."""


class ChannelNotFound(EventsError, LookupError):
    """No channel in the admin configures this name."""


class BackendUnavailable(EventsError):
    """
    The log could not be reached.

    Of an event that was to be published the message says whether it was not, or whether nobody knows: the answer of a
    server is missing, or of a replica. With a key it is safe to publish again.
    """


class InvalidEventBackend(EventsError):
    """`EVENTS["BACKENDS"]` names a backend that cannot be built."""


class InvalidTicket(EventsError, ValueError):
    """A ticket that was not made here, or was changed."""


class TicketExpired(InvalidTicket):
    """A ticket whose time is over."""
