"""The end of a TLS connection to a broker."""

import ssl
from contextlib import suppress


class EndsAtOnce(ssl.SSLObject):
    """A TLS connection that says goodbye when it is closed, and does not wait for the peer to say it too.

    RFC 5246, 7.2.1, and RFC 8446, 6.1, ask for no more. A broker with requests in flight may answer late, or not at all:
    event loops wait for 30 s, and aiokafka's clients with them when they are stopped.
    """

    def unwrap(self) -> None:
        """Called by event loops until it does not ask to be called again."""
        with suppress(ssl.SSLWantReadError):  # says that the peer's goodbye has not come
            super().unwrap()
