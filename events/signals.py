"""The signals by which the parts of the app tell each other what happened in this process."""

from django.dispatch import Signal

#: This process writes a channel, in a transaction that may be open. Arguments: `using`, the alias of the database.
channel_written = Signal()

#: A channel was changed, by this process or another: what is known of the channels is out of date. No arguments.
channels_changed = Signal()

#: This process's copy of the channels was read anew and differs from the one before. No arguments.
channels_refreshed = Signal()

#: The first stream of a channel was opened in this process. Arguments: `channel`, the name.
feed_opened = Signal()

#: The last stream of a channel was closed in this process. Arguments: `channel`, the name.
feed_closed = Signal()

#: A limit was reached (`events.limits`). Arguments: `limit`, its name, and `channels`, the names of the channels.
limit_reached = Signal()
