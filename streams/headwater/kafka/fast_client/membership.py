"""Whether a consumer is a member of its group: as aiokafka believes, and as the broker says."""

from aiokafka import AIOKafkaConsumer


def membership_error(consumer: AIOKafkaConsumer) -> BaseException | None:
    """Why the consumer has left its group for good, or None while it is in it or joins it.

    aiokafka keeps the error for the next poll. A worker without partitions does not poll, and would wait for ever.
    """
    coordinator = consumer._coordinator
    error: BaseException | None = getattr(coordinator, "_pending_exception", None)
    task = getattr(coordinator, "_coordination_task", None)
    if error is None and task is not None and task.done() and not task.cancelled():
        error = task.exception()
    return error


async def is_member(consumer: AIOKafkaConsumer) -> bool:
    """Ask the broker whether the consumer is a member of its group's present generation.

    False as well while a rebalance is under way, and where the broker does not answer.
    """
    coordinator = consumer._coordinator
    return bool(await coordinator._do_heartbeat()) and not coordinator._rejoin_needed_fut.done()
