"""Why a broker cannot be used, as a sentence with the remedy.

aiokafka logs what each address said, and then raises only that none of them worked. So each is asked once more.
"""

import asyncio
import ssl
from typing import Final

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from headwater.settings import Settings

_ANSWER_S: Final = 3.0
_BAD_LOGIN: Final = (AuthenticationFailedError, SaslAuthenticationFailed, UnsupportedSaslMechanismError)


async def why_unreachable(settings: Settings, failure: str) -> str:
    """A sentence on the brokers that could not be reached: the first refusal, or ``failure`` if none of them refuses.

    Waits at most 3 s. Raises nothing.
    """
    hosts = collect_hosts(settings.bootstrap_servers)
    refusals = await asyncio.gather(*(_refusal(settings, host, port) for host, port, _ in hosts))
    for refusal in filter(None, refusals):
        return refusal
    if "Unable to bootstrap" in failure:  # aiokafka lists the addresses as Python objects
        failure = "no connection"
    return (
        f"no answer from the Kafka broker at {settings.bootstrap_servers} ({failure}): "
        "expected a running broker; start one (`headwater up`), or set HEADWATER_KAFKA_BOOTSTRAP_SERVERS"
    )


async def _refusal(settings: Settings, host: str, port: int) -> str | None:
    """Why this address refuses us. None: it does not, or nothing listens there."""
    broker = f"the Kafka broker at {host}:{port}"
    try:
        async with asyncio.timeout(_ANSWER_S):
            await _ask(settings, host, port)
    except _BAD_LOGIN as error:
        return (
            f"{broker} refused the login ({type(error).__name__}): expected a HEADWATER_KAFKA_SASL_USERNAME and "
            "HEADWATER_KAFKA_SASL_PASSWORD that it knows, by HEADWATER_KAFKA_SASL_MECHANISM "
            f"(now {settings.kafka_sasl_mechanism})"
        )
    except ssl.SSLCertVerificationError as error:
        return (
            f"{broker} has a certificate that is not trusted ({error.verify_message}): expected one of an authority in "
            "HEADWATER_KAFKA_SSL_CA_FILE, made out to this address"
        )
    except (ConnectionRefusedError, TimeoutError):
        return None
    except (ssl.SSLError, ConnectionError, KafkaError) as error:
        proof = "a certificate of ours that it trusts in HEADWATER_KAFKA_SSL_CERT_FILE, or "
        return (
            f"{broker} closed the connection ({type(error).__name__}): expected "
            f"{proof if settings.kafka_security_protocol.endswith('SSL') else ''}HEADWATER_KAFKA_SECURITY_PROTOCOL to "
            f"be what it speaks on this port, other than {settings.kafka_security_protocol}"
        )
    except OSError:
        return None  # no such host, no way to it
    return None


async def _ask(settings: Settings, host: str, port: int) -> None:
    options = settings.kafka_options()
    del options["bootstrap_servers"]
    connection = await create_conn(host, port, request_timeout_ms=int(_ANSWER_S * 1000), **options)
    try:
        await connection.send(MetadataRequest([]))
    finally:
        await connection.close()
