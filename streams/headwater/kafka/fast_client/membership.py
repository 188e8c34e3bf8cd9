"""Whether aiokafka has given up on its group, which it tells only a caller that asks for records."""

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
