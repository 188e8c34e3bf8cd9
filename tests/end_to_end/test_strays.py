"""Records on a partition that murmur2 would not have chosen, as librdkafka publishes them by default."""

import json

from tests.end_to_end.outside import Outside
from tests.end_to_end.shop import theme_of


async def test_a_stray_click_reaches_its_user_and_the_barrier_holds_in_its_own_coordinates(
    outside: Outside,
) -> None:
    user = outside.stray_user("stray")
    for number in range(5):
        event = f"{user}-{number}"
        after = await outside.click(
            user, f"coffee-{number}", partition=outside.wrong_home(user), event_id=event
        )
        assert after["partition"] == outside.wrong_home(user)
        answer = await outside.ask(user, after=after, limit=3)
        assert answer["status"] == "ok", answer
        assert answer["reflects"]["partition"] == outside.home(user)
        assert (answer["reflects"]["events"], answer["reflects"]["last_event_id"]) == (number + 1, event)
    assert theme_of(answer["items"][0]["item_id"]) == "coffee"


async def test_strays_and_others_of_one_user_meet_in_one_profile(outside: Outside) -> None:
    user = outside.stray_user("both")
    stray = await outside.click(user, "coffee-1", partition=outside.wrong_home(user))
    straight = await outside.click(user, "coffee-2")
    assert straight["partition"] != stray["partition"]
    for after in (stray, straight):
        assert (await outside.ask(user, after=after))["status"] == "ok"
    assert (await outside.ask(user, after=stray))["reflects"]["events"] == 2


async def test_a_stray_request_is_answered_by_the_owner_of_its_user(outside: Outside) -> None:
    user = outside.stray_user("asker")
    after = await outside.click(user, "coffee-1", event_id=f"{user}-1")
    headers = [("correlation_id", b"c1"), ("reply_to", outside.topics.responses.encode())]
    asked = await outside.request(user, after=after, partition=outside.wrong_home(user), headers=headers)
    record = await outside.answer_record(asked)
    answer = json.loads(record.value)
    assert (answer["status"], answer["reflects"]["last_event_id"]) == ("ok", f"{user}-1")
    assert answer["reflects"]["partition"] == outside.home(user)
    assert list(record.headers) == [("correlation_id", b"c1")]


async def test_the_deadline_of_a_stray_request_counts_from_its_first_publishing(outside: Outside) -> None:
    user = outside.stray_user("late")
    after = {"partition": outside.home(user), "offset": 10**9}
    answer = await outside.answer(
        await outside.request(user, after=after, partition=outside.wrong_home(user), deadline_ms=300)
    )
    assert answer["status"] == "expired"


async def test_a_forwarded_record_that_is_still_wrong_goes_to_the_dead_letters(outside: Outside) -> None:
    user = outside.stray_user("lost")
    origin = [("headwater-origin", json.dumps([outside.home(user), 1, outside.next_ms()]).encode())]
    wrong = outside.wrong_home(user)
    value = json.dumps(outside.click_message(user, "coffee-1")).encode()
    sent = await outside.send(
        outside.topics.clicks, value, key=user.encode(), partition=wrong, headers=origin
    )
    headers, record = await outside.dead_letter(outside.topics.clicks, sent)
    assert headers["reason"] == "misrouted"
    assert f"partition {wrong}" in headers["message"]
    assert record.value == value
    request = json.dumps({"request_id": outside.own("r"), "user_id": user}).encode()
    sent = await outside.send(
        outside.topics.requests, request, key=user.encode(), partition=wrong, headers=origin
    )
    headers, _ = await outside.dead_letter(outside.topics.requests, sent)
    assert headers["reason"] == "misrouted"
    assert (await outside.ask(user))["reflects"]["events"] == 0


async def test_clicks_without_a_key_belong_to_the_user_in_them(outside: Outside) -> None:
    users = [outside.own(f"keyless{number}") for number in range(8)]
    for number, user in enumerate(users):
        value = json.dumps(outside.click_message(user, "dog-1", event_id=f"{user}-1")).encode()
        sent = await outside.send(outside.topics.clicks, value, partition=number % 4)
        after = {"partition": sent.partition, "offset": sent.offset}
        answer = await outside.ask(user, after=after)
        assert (answer["status"], answer["reflects"]["last_event_id"]) == ("ok", f"{user}-1")
