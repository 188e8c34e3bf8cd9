"""Errors by reaction: what a person has to read, what ends the worker, what ends one batch."""


class HeadwaterError(Exception):
    """Something that a person can fix. The message is one sentence: the value seen, the value expected, the remedy."""


class Unreachable(HeadwaterError):
    """No broker or worker answered in time. Trying again later may help."""


class StopWorker(HeadwaterError):
    """The worker must stop without acknowledging: the message says what was found and the remedy."""


class PartitionLost(Exception):
    """The partition of this batch has been revoked: drop the batch, the new owner reads it again."""
