"""A broker that wants a login, or TLS: who comes with the right one works, everybody else is told what is wrong."""

import asyncio
import secrets
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from headwater.commands.findings import System
from headwater.kafka import rights, topics
from headwater.kafka.topics import Topics, TopicsError
from headwater.settings import Settings
from tests.conftest import skipping_where_no_kafka_can_run
from tests.end_to_end.outside import PATIENCE_S, Outside
from tests.end_to_end.test_start import check_refused
from tests.end_to_end.worker_process import WorkerProcess, finished
from tests.support.kafka_server import KafkaNode, Listener, java_tool, own_node

pytestmark = pytest.mark.kafka

USER, PASSWORD, WRONG_PASSWORD = "shop", secrets.token_hex(12), secrets.token_hex(12)
SCRAM_PASSWORD = secrets.token_hex(12)
KEYSTORE_PASSWORD = secrets.token_hex(12)
Given = Mapping[str, str]


class OwnCertificate(NamedTuple):
    """What a client proves itself with; the broker trusts nobody else on its listener MUTUAL."""

    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> OwnCertificate:
    """With a key that is encrypted by `KEYSTORE_PASSWORD`."""
    if shutil.which("openssl") is None:
        pytest.skip("no `openssl` to make a client's certificate with")
    folder = tmp_path_factory.mktemp("client")
    made = OwnCertificate(folder / "client.pem", folder / "client.key")
    making = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=worker"]
    kept = ["-passout", f"pass:{KEYSTORE_PASSWORD}", "-keyout", str(made.key), "-out", str(made.certificate)]
    done = subprocess.run([*making, *kept], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, client: OwnCertificate) -> Iterator[KafkaNode]:
    keystore = tmp_path_factory.mktemp("keys") / "broker.p12"
    modules = "org.apache.kafka.common.security"
    plain, scram = f"{modules}.plain.PlainLoginModule required", f"{modules}.scram.ScramLoginModule required"
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
        "super.users": "User:ANONYMOUS",  # who comes in by the plain listener, the broker itself among them
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.login.plain.sasl.jaas.config": f'{plain} user_{USER}="{PASSWORD}";',
        "listener.name.login.scram-sha-512.sasl.jaas.config": f"{scram};",
        "ssl.keystore.location": keystore,
        "ssl.keystore.password": KEYSTORE_PASSWORD,
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.mutual.ssl.truststore.type": "PEM",
        "listener.name.mutual.ssl.truststore.location": client.certificate,
    }
    listeners = [Listener("LOGIN", "SASL_PLAINTEXT"), Listener("TLS", "SSL"), Listener("MUTUAL", "SSL")]
    login = f"SCRAM-SHA-512=[name={USER},password={SCRAM_PASSWORD}]"
    with skipping_where_no_kafka_can_run():
        _make_keystore(keystore)
        with own_node(listeners, properties, [login]) as node:
            yield node


def _make_keystore(path: Path) -> None:
    """A key, and a certificate for this address that nobody but the key itself has signed."""
    making = [java_tool("keytool"), "-genkeypair", "-alias", "broker", "-keyalg", "RSA", "-validity", "2"]
    named = ["-dname", "CN=127.0.0.1", "-ext", "SAN=ip:127.0.0.1"]
    kept = ["-storetype", "PKCS12", "-keystore", str(path), "-storepass", KEYSTORE_PASSWORD]
    done = subprocess.run([*making, *named, *kept], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def broker(node: KafkaNode) -> str:
    return node.servers


@pytest.fixture(scope="module")
def certificate(node: KafkaNode, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trusted") / "broker.pem"
    path.write_text(ssl.get_server_certificate(("127.0.0.1", node.port("TLS"))))
    return str(path)


def with_login(node: KafkaNode, password: str, **more: str) -> Given:
    login = {"kafka_sasl_username": USER, "kafka_sasl_password": password}
    return {**to(node, "LOGIN", "SASL_PLAINTEXT"), **login, **more}


def with_tls(node: KafkaNode, certificate: str) -> Given:
    return {**to(node, "TLS", "SSL"), "kafka_ssl_ca_file": certificate}


def with_scram(node: KafkaNode, password: str) -> Given:
    return with_login(node, password, kafka_sasl_mechanism="SCRAM-SHA-512")


def with_own_certificate(node: KafkaNode, certificate: str, client: OwnCertificate) -> Given:
    proof = {"kafka_ssl_cert_file": str(client.certificate), "kafka_ssl_key_file": str(client.key)}
    trusted = {"kafka_ssl_ca_file": certificate, "kafka_ssl_key_password": KEYSTORE_PASSWORD}
    return {**to(node, "MUTUAL", "SSL"), **proof, **trusted}


def to(node: KafkaNode, listener: str, protocol: str) -> Given:
    return {"kafka_bootstrap_servers": node.address(listener), "kafka_security_protocol": protocol}


# Who comes, and what has to be said to them.
Wrong = Callable[[KafkaNode], Given]
REFUSED: Mapping[str, tuple[Wrong, tuple[str, ...]]] = {
    "a wrong password": (
        lambda node: with_login(node, WRONG_PASSWORD),
        ("refused the login", "HEADWATER_KAFKA_SASL_USERNAME", "HEADWATER_KAFKA_SASL_PASSWORD"),
    ),
    "plaintext to TLS": (
        lambda node: to(node, "TLS", "PLAINTEXT"),
        ("closed the connection", "HEADWATER_KAFKA_SECURITY_PROTOCOL", "other than PLAINTEXT"),
    ),
}
ALSO_REFUSED: Mapping[str, tuple[Wrong, tuple[str, ...]]] = {
    "a mechanism that the broker has not": (
        lambda node: with_login(node, PASSWORD, kafka_sasl_mechanism="SCRAM-SHA-256"),
        ("refused the login", "HEADWATER_KAFKA_SASL_MECHANISM", "now SCRAM-SHA-256"),
    ),
    "the password of another mechanism": (
        lambda node: with_scram(node, PASSWORD),
        ("refused the login", "HEADWATER_KAFKA_SASL_PASSWORD", "now SCRAM-SHA-512"),
    ),
    "no login where one is wanted": (
        lambda node: to(node, "LOGIN", "PLAINTEXT"),
        ("closed the connection", "HEADWATER_KAFKA_SECURITY_PROTOCOL", "other than PLAINTEXT"),
    ),
    "a login where none is wanted": (
        lambda node: {**with_login(node, PASSWORD), "kafka_bootstrap_servers": node.servers},
        ("closed the connection", "HEADWATER_KAFKA_SECURITY_PROTOCOL", "other than SASL_PLAINTEXT"),
    ),
    "a certificate that nobody vouches for": (
        lambda node: to(node, "TLS", "SSL"),
        ("not trusted", "self-signed", "HEADWATER_KAFKA_SSL_CA_FILE"),
    ),
    "TLS to plaintext": (
        lambda node: {**to(node, "TLS", "SSL"), "kafka_bootstrap_servers": node.servers},
        ("closed the connection", "HEADWATER_KAFKA_SECURITY_PROTOCOL", "other than SSL"),
    ),
}


def check_no_secret(*texts: str) -> None:
    for secret in (PASSWORD, WRONG_PASSWORD, SCRAM_PASSWORD, KEYSTORE_PASSWORD):
        assert not any(secret in text for text in texts), "a password is written there"


@pytest.mark.parametrize("command", [("worker",), ("topics", "check")])
@pytest.mark.parametrize("wrong", REFUSED)
def test_a_command_is_refused_with_one_line(
    node: KafkaNode, tmp_path: Path, wrong: str, command: tuple[str, ...]
) -> None:
    given, parts = REFUSED[wrong]
    settings = given(node)
    done = finished(tmp_path, *command, log_level="debug", **settings)
    check_refused(done, f"the Kafka broker at {settings['kafka_bootstrap_servers']}", *parts)
    check_no_secret(done.stdout, done.stderr)


@pytest.mark.parametrize("wrong", {**REFUSED, **ALSO_REFUSED})
async def test_every_wrong_way_in_is_named_with_its_setting(node: KafkaNode, wrong: str) -> None:
    given, parts = {**REFUSED, **ALSO_REFUSED}[wrong]
    with pytest.raises(TopicsError) as refused:
        await topics.check(Settings(**given(node)))
    assert [part for part in parts if part not in str(refused.value)] == [], refused.value
    check_no_secret(str(refused.value))


async def test_without_a_certificate_where_one_is_wanted_a_client_is_refused(
    node: KafkaNode, certificate: str
) -> None:
    settings = {**with_tls(node, certificate), **to(node, "MUTUAL", "SSL")}
    with pytest.raises(TopicsError, match="HEADWATER_KAFKA_SSL_CERT_FILE"):
        await topics.check(Settings(**settings))


async def test_a_click_is_in_the_answer_until_the_group_is_denied_and_no_password_in_the_log(
    node: KafkaNode,
    certificate: str,
    client: OwnCertificate,
    own_topics: Settings,
    new_worker: Callable[..., WorkerProcess],
) -> None:
    """Each part of the system comes in by another way."""
    by_login, by_tls = with_login(node, PASSWORD), with_tls(node, certificate)
    prefix = {"topic_prefix": own_topics.topic_prefix}
    interests = new_worker("interests", log_level="debug", **with_scram(node, SCRAM_PASSWORD))
    catalog = new_worker("catalog", log_level="debug", **with_own_certificate(node, certificate, client))
    catalog.launch()
    await asyncio.to_thread(interests.start)
    async with Outside(Settings(**prefix, **by_tls), interests.check_alive) as outside:
        await outside.put_and_wait("kept", title="garden hose")
        after = await outside.click("ann", "kept")
        answer = await outside.ask("ann", after=after, limit=1, exclude_seen=False)
    assert (answer["status"], answer["reflects"]["events"]) == ("ok", 1)
    assert [item["item_id"] for item in answer["items"]] == ["kept"]
    done = await asyncio.to_thread(finished, interests.home / "cli", "ask", "ann", **prefix, **by_login)
    assert done.returncode == 0, done.stderr
    assert await asyncio.to_thread(catalog.stop) == 0
    await deny_group(node, own_topics.interests_group)
    assert await asyncio.to_thread(interests.exit_code, PATIENCE_S) == 1
    assert "GroupAuthorizationFailed" in interests.last_words()
    for worker in (interests, catalog):
        assert "Traceback" not in worker.log.read_text()
        check_no_secret(worker.log.read_text())
    check_no_secret(done.stdout, done.stderr)


async def test_what_the_user_of_a_role_may_not_do_is_told_by_the_doctor(
    node: KafkaNode, own_topics: Settings, tmp_path: Path
) -> None:
    by_login = {**with_login(node, PASSWORD), "topic_prefix": own_topics.topic_prefix}
    settings, names = Settings(**by_login), Topics.named(own_topics.topic_prefix)

    async def lacking(role: rights.Role) -> list[str] | None:
        async with System(settings, None).admin() as admin:
            found = await rights.lacks(settings, admin, role)
            return None if found is None else list(map(str, found))

    assert [await lacking(role) for role in rights.ROLES] == [[] for _ in rights.ROLES]
    await only_to_read(node, names.trends)
    await deny_group(node, settings.interests_group)
    expected = [
        f"Write and DescribeConfigs on the topic {names.trends}",
        f"Read on the group {settings.interests_group}",
    ]
    for _ in range(300):  # the broker takes a rule at once, and goes by it a little later
        if await lacking("interests") == expected:
            break
        await asyncio.sleep(0.1)
    assert await lacking("interests") == expected
    assert await lacking("catalog") == expected[:1]
    assert await lacking("client") == []
    done = await asyncio.to_thread(finished, tmp_path, "doctor", "--role", "interests", **by_login)
    assert done.returncode == 1
    assert f"WRONG  rights for interests: {USER} may not {'; '.join(expected)}" in done.stdout
    done = await asyncio.to_thread(finished, tmp_path, "doctor", "--role", "client", **by_login)
    assert "ok     rights for client: all that it needs" in done.stdout
    check_no_secret(done.stdout, done.stderr)


class _AclsCreated(Response):
    API_KEY, API_VERSION = 30, 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("results", Array(("error_code", Int16), ("error_message", String("utf-8")))),
    )


class _CreateAcls(RequestStruct):
    API_KEY, API_VERSION, RESPONSE_TYPE = 30, 1, _AclsCreated
    SCHEMA = Schema(
        (
            "creations",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                ("resource_pattern_type", Int8),
                ("principal", String("utf-8")),
                ("host", String("utf-8")),
                ("operation", Int8),
                ("permission_type", Int8),
            ),
        )
    )


class _ToRead(Request[_CreateAcls]):
    API_KEY = 30

    def __init__(self, kind: int, name: str, permission: int) -> None:
        self._kind, self._name, self._permission = kind, name, permission

    def build(self, request_struct_class: type[_CreateAcls]) -> _CreateAcls:
        literally, to_read = 3, 3
        user = f"User:{USER}"
        return request_struct_class(
            [(self._kind, self._name, literally, user, "*", to_read, self._permission)]
        )


async def deny_group(node: KafkaNode, group: str) -> None:
    """From now on the user of the logins may neither commit for that group nor stay in it."""
    a_group, denied = 3, 2
    await _create_acl(node, _ToRead(a_group, group, denied))


async def only_to_read(node: KafkaNode, topic: str) -> None:
    """From now on the user of the logins may read the topic, and nothing else."""
    a_topic, allowed = 2, 3
    await _create_acl(node, _ToRead(a_topic, topic, allowed))


async def _create_acl(node: KafkaNode, creation: "_ToRead") -> None:
    client = AIOKafkaClient(bootstrap_servers=node.servers)
    try:
        await client.bootstrap()
        done = await client.send(client.get_random_node(), creation)
        assert [code for code, _ in done.results] == [0], done
    finally:
        await client.close()
