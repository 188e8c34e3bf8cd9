"""What the Python client raises, by what its caller can do about it.

| error | do |
|---|---|
| `BadMessage` (of `messages`) | correct the argument; nothing was sent |
| `NoBroker` | start a broker, or name the one there is |
| `NotPublished` | publish it again, with the same event id |
| `RecallTimeout` | look at the workers, ask again |
| `RequestRejected` | correct the request, or ask again later if the worker is overloaded |
| `RequestExpired` | ask with more time (`deadline_ms`), or with `reads="any"` |
| `ClientError` | any of the five above; alone: read the sentence |
"""

from headwater.errors import HeadwaterError, Unreachable
from headwater.messages import Response


class ClientError(HeadwaterError):
    """Something between this program and the workers failed. The message is one sentence with the remedy."""


class NoBroker(ClientError, Unreachable):
    """No broker let the client in. The message says what was tried, and the remedy."""


class NotPublished(ClientError, Unreachable):
    """The broker did not acknowledge a message in time. It may have been stored all the same.

    A click is published again under the same event id, so that it counts once whatever became of the first:

        try:
            await client.click("ann", "coffee-1", timeout_s=2)
        except NotPublished as error:
            await client.click("ann", "coffee-1", event_id=error.event_id)

    Attributes:
        event_id: Of the click; None where an item or a request was not published. Those may be sent again as they are.
    """

    def __init__(self, message: str, event_id: str | None = None) -> None:
        super().__init__(message)
        self.event_id = event_id


class RecallTimeout(ClientError, Unreachable):
    """No answer came within the time limit. The message says which limit, and what was waited for."""


class RequestRejected(ClientError):
    """The request is invalid, or the worker is overloaded.

    Attributes:
        response: The answer; its ``error`` says what is allowed.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(f"request {response.request_id} was rejected: {_reason(response)}")
        self.response = response


class RequestExpired(ClientError):
    """The demanded click was not applied by the deadline.

    Attributes:
        response: The answer, without items; its ``reflects`` says how far the worker is.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(f"request {response.request_id} expired: {_reason(response)}")
        self.response = response


def not_connected() -> ClientError:
    """For a client that was not entered, or is closed."""
    return ClientError("the client is not connected: expected `async with Client() as client`")


def _reason(response: Response) -> str:
    return response.error.message if response.error else "the worker gave no reason"
