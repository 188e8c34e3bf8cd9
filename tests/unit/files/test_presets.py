"""Each format of the trade by its name, on a small file of our own making."""

from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headwater.files.contents import ImportFileError
from headwater.files.events import EventForm, events_of
from headwater.files.items import ItemForm, items_of
from headwater.files.presets import PRESETS, PresetName, opened
from headwater.messages import Item

NOW_MS = 1_760_000_000_000
AT_S = 1_700_000_000
AT_MS = AT_S * 1000
AT = "2023-11-14T22:13:20Z"


def clicks(path: Path, preset: PresetName, content: str | None = None) -> list[tuple[str, str, str, int]]:
    if content is not None:
        path.write_text(content)
    usual = PRESETS[preset]
    form = EventForm(actions=usual.actions, like_from=usual.like_from, dislike_to=usual.dislike_to)
    found = events_of(*opened(path, "clicks", preset=preset), form, now_ms=NOW_MS)
    assert not found.bad
    return list(found.rows.select("user_id", "item_id", "action", "at_ms").iter_rows())


def catalog(path: Path, preset: PresetName, content: str | None = None) -> list[Item]:
    if content is not None:
        path.write_text(content)
    shape = PRESETS[preset].catalog
    assert shape is not None
    found = items_of(*opened(path, "catalog", preset=preset), ItemForm(list_separator=shape.list_separator))
    assert not found.bad
    return [row.item for row in found.rows]


def lines(*objects: Any) -> str:
    return "".join(msgspec.json.encode(each).decode() + "\n" for each in objects)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize(
    "content",
    [
        f"userId,movieId,rating,timestamp\n1,31,4.0,{AT_S}\n1,32,2.0,{AT_S}\n1,33,3.0,{AT_S}\n",
        f"1::31::5::{AT_S}\n1::32::1::{AT_S}\n1::33::3::{AT_S}\n",
        f"1\t31\t5\t{AT_S}\n1\t32\t1\t{AT_S}\n1\t33\t3\t{AT_S}\n",
    ],
    ids=["csv", "dat", "100k"],
)
def test_movielens_ratings(file: Path, content: str) -> None:
    assert clicks(file, "movielens", content) == [
        ("1", "31", "like", AT_MS),
        ("1", "32", "dislike", AT_MS),
        ("1", "33", "click", AT_MS),
    ]


def test_movielens_films(file: Path) -> None:
    heat = [Item("6", "Heat, The (1995)", tags=["Action", "Crime"]), Item("7", "Odd (1996)")]
    csv = 'movieId,title,genres\n6,"Heat, The (1995)",Action|Crime\n7,Odd (1996),(no genres listed)\n'
    assert catalog(file, "movielens", csv) == heat
    assert catalog(file, "movielens", "6::Heat, The (1995)::Action|Crime\n7::Odd (1996)::\n") == heat
    flags = ["0"] * 19
    action_crime = ["0", "1", "0", "0", "0", "0", "1", *["0"] * 12]
    old = [
        "|".join([*start, "01-Jan-1995", "", "http://x", *which])
        for start, which in (
            (["6", "Café (1995)"], action_crime),
            (["7", "Odd (1996)"], flags),
        )
    ]
    file.write_bytes("\n".join(old).encode("latin-1"))
    assert catalog(file, "movielens") == [
        Item("6", "Café (1995)", tags=["Action", "Crime"]),
        Item("7", "Odd (1996)"),
    ]


def test_amazon_reviews(file: Path) -> None:
    old = {
        "reviewerID": "A1",
        "asin": "B000000001",
        "overall": 5.0,
        "unixReviewTime": AT_S,
        "reviewText": "good",
    }
    assert clicks(file, "amazon-reviews", lines(old)) == [("A1", "B000000001", "like", AT_MS)]
    new = {
        "user_id": "A1",
        "asin": "B0",
        "parent_asin": "B1",
        "rating": 1.0,
        "timestamp": AT_MS,
        "text": "bad",
    }
    assert clicks(file, "amazon-reviews", lines(new)) == [("A1", "B1", "dislike", AT_MS)]
    for row in (f"A1234567890123,B000000001,3.0,{AT_S}\n", f"B000000001,A1234567890123,3.0,{AT_S}\n"):
        assert clicks(file, "amazon-reviews", row) == [("A1234567890123", "B000000001", "click", AT_MS)]


def test_amazon_items(file: Path) -> None:
    expected = [
        Item(
            "B1",
            "Salt & Pepper",
            "Fine. Very",
            ["Kitchen", "Salt"],
            "Kitchen",
            5.5,
            attributes={"brand": "Acme"},
            image="http://i",
        )
    ]
    loose = (
        "{'asin': 'B1', 'title': 'Salt &amp; Pepper', 'description': 'Fine. <b>Very</b>', 'price': 5.5, 'brand': 'Acme', "
        "'categories': [['Kitchen', 'Salt']], 'imUrl': 'http://i'}\n"
    )
    assert catalog(file, "amazon-items", loose) == expected
    of_2018 = {
        "asin": "B1", "title": "Salt &amp; Pepper", "description": ["Fine.", "Very"], "price": "$5.50", "brand": "Acme",
        "category": ["Kitchen", "Salt"], "imageURLHighRes": ["http://i"],
    }  # fmt: skip
    assert catalog(file, "amazon-items", lines(of_2018)) == expected
    of_2023 = {
        "parent_asin": "B1", "main_category": "Kitchen", "title": "Salt & Pepper", "features": ["Fine."], "description": ["Very"],
        "price": 5.5, "store": "Acme", "categories": ["Kitchen", "Salt"], "images": [{"large": "http://i"}],
    }  # fmt: skip
    assert catalog(file, "amazon-items", lines(of_2023, {**of_2023, "price": "from 3"})) == [
        *expected,
        msgspec.structs.replace(expected[0], price=None),
    ]


def test_retailrocket(file: Path) -> None:
    events = f"timestamp,visitorid,event,itemid,transactionid\n{AT_MS},1,view,7,\n{AT_MS},1,addtocart,7,\n{AT_MS},1,transaction,7,4\n"
    assert [action for _, _, action, _ in clicks(file, "retailrocket", events)] == [
        "view",
        "add_to_cart",
        "purchase",
    ]
    properties = (
        "timestamp,itemid,property,value\n"
        f"{AT_MS + 1},7,categoryid,12\n{AT_MS},7,categoryid,11\n{AT_MS},7,available,0\n{AT_MS},8,790,n5.000\n{AT_MS},9,categoryid,3\n"
    )
    assert catalog(file, "retailrocket", properties) == [
        Item("7", category="12", available=False),
        Item("9", category="3"),
    ]


def test_yelp(file: Path) -> None:
    review = {
        "review_id": "r1",
        "user_id": "u",
        "business_id": "b",
        "stars": 4.0,
        "date": "2023-11-14 22:13:20",
    }
    assert clicks(file, "yelp", lines(review)) == [("u", "b", "like", AT_MS)]
    business = {
        "business_id": "b", "name": "Cafe", "categories": "Coffee & Tea, Food", "is_open": 0, "city": "Tampa", "stars": 3.5,
        "attributes": {"WiFi": "u'free'"},
    }  # fmt: skip
    (item,) = catalog(file, "yelp", lines(business))
    assert (item.title, item.tags, item.available) == ("Cafe", ["Coffee & Tea", "Food"], False)
    assert item.attributes == {"city": "Tampa", "stars": 3.5, "WiFi": "u'free'"}


def test_lastfm(file: Path) -> None:
    rows = f"user_1\t{AT}\ta1\tDeep \"Dish\tt1\tFuck's Sake\nuser_1\t{AT}\ta1\tUnderworld\t\tBoy, Boy\n"
    assert clicks(file, "lastfm", rows) == [
        ("user_1", "t1", "click", AT_MS),
        ("user_1", "Underworld - Boy, Boy", "click", AT_MS),
    ]
    assert catalog(file, "lastfm", rows)[1] == Item("Underworld - Boy, Boy", "Boy, Boy", "Underworld")


def test_shopify(file: Path) -> None:
    expected = [
        Item(
            "tee",
            "Tee",
            "A tee.",
            ["cotton", "red"],
            "Shirts",
            9.5,
            available=True,
            image="http://i",
            attributes={"brand": "Acme"},
        )
    ]
    export = (
        "Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Variant SKU,Variant Price,Image Src,Status\n"
        'tee,Tee,<p>A tee.</p>,Acme,Shirts,"cotton, red",true,S,9.50,http://i,active\n'
        "tee,,,,,,,M,9.50,http://j,\n"
    )
    assert catalog(file, "shopify", export) == expected
    product = {
        "id": 1, "handle": "tee", "title": "Tee", "body_html": "<p>A tee.</p>", "vendor": "Acme", "product_type": "Shirts",
        "tags": ["cotton", "red"], "variants": [{"price": "9.50", "available": True}, {"price": "12.00", "available": False}],
        "images": [{"src": "http://i"}],
    }  # fmt: skip
    file.write_bytes(msgspec.json.encode({"products": [product]}))
    assert catalog(file, "shopify") == expected


SHOPIFY_VARIANTS = (
    "Handle,Title,Body (HTML),Tags,Option1 Value,Variant SKU,Variant Price,Image Src,Status\n"
    'tee,Tee,"<p>A ""fine"" tee.</p>\n<ul>\n<li>Cotton &amp; silk</li>\n</ul>","a, b",S,TEE-S,19.00,http://i,active\n'
    "tee,,,,M,TEE-M,21.00,,\ntee,,,,,,,http://j,\nmug,Mug,,,Default Title,MUG,8.00,,draft\n"
)


def test_shopify_rows_of_a_product_are_one_item_or_one_for_each_variant(file: Path) -> None:
    tee, mug = catalog(file, "shopify", SHOPIFY_VARIANTS)
    assert (tee.item_id, tee.description, tee.price) == ("tee", 'A "fine" tee. Cotton & silk', 19)
    assert (mug.item_id, mug.available) == ("mug", False)
    found = items_of(*opened(file, "catalog", ["item_id=Variant SKU"], preset="shopify"), ItemForm())
    assert [(row.item.item_id, row.item.title, row.item.price, row.item.tags) for row in found.rows] == [
        ("TEE-S", "Tee - S", 19, ["a", "b"]),
        ("TEE-M", "Tee - M", 21, ["a", "b"]),
        ("MUG", "Mug", 8, []),
    ]


def test_shopify_orders_are_purchases_of_each_line(file: Path) -> None:
    orders = (
        "Name,Email,Paid at,Created at,Lineitem name,Lineitem sku\n"
        "#1,ann@x.de,2023-11-14 23:13:20 +0100,2023-11-14 23:13:20 +0100,Tee - S,TEE-S\n"
        "#1,,,,Mug,MUG\n"
    )
    assert clicks(file, "shopify", orders) == [
        ("ann@x.de", "TEE-S", "purchase", AT_MS),
        ("ann@x.de", "MUG", "purchase", AT_MS),
    ]
    assert any(
        "publish the catalog with --map item_id='Variant SKU'" in note
        for note in opened(file, "clicks", preset="shopify").table.notes
    )


def test_woocommerce_variations_belong_to_their_product(file: Path) -> None:
    export = (
        '\ufeffID,Type,SKU,Name,Published,"Short description",Description,"In stock?","Sale price","Regular price",Categories,Tags,'
        'Images,Parent,"Attribute 1 name","Attribute 1 value(s)"\n'
        '12,variable,H,Hoodie,1,Soft.,"<p>Warm\\n &amp; nice</p>",0,,45,"Clothing > Hoodies, Sale",warm,"http://a, http://b",,Color,"Red, Blue"\n'
        "13,variation,H-R,Hoodie - Red,1,,,1,40,45,,,,id:12,Color,Red\n"
        "14,variation,H-B,Hoodie - Blue,1,,,0,,1,,,,H,Color,Blue\n"
        "15,simple,CAP,Cap,-1,,,1,,9,Clothing,,,,,\n"
    )
    assert catalog(file, "woocommerce", export) == [
        Item(
            "12", "Hoodie", "Soft. Warm & nice", ["Clothing", "Hoodies", "Sale", "warm"], "Clothing > Hoodies", 1.0, True,
            {"Color": "Red, Blue"}, "http://a",
        ),
        Item("15", "Cap", "", ["Clothing"], "Clothing", 9.0, False),
    ]  # fmt: skip


def test_woocommerce_in_another_language_has_its_own_prices_and_its_own_columns(file: Path) -> None:
    export = (
        "ID,Type,SKU,Name,Regular price,Sale price,Parent\n"
        '1,variable,,Sofa,,,\n2,variation,,Sofa S,"1.234,50",,id:1\n3,variation,,Sofa M,"999,90",,id:1\n4,simple,,Lamp,"1.199,00",,\n'
        "5,simple,,Rug,soon,,\n"
    )
    file.write_text(export)
    found = items_of(*opened(file, "catalog", preset="woocommerce"), ItemForm())
    assert [row.item for row in found.rows] == [
        Item("1", "Sofa", price=999.9),
        Item("4", "Lamp", price=1199.0),
    ]
    assert [row.reason for row in found.bad] == [
        "price: got 'soon', expected a number, such as 15.00 or 15.00 USD"
    ]
    file.write_text("ID,Typ,Name,Regulärer Preis,Vorrätig?\n1,simple,Tee,3,1\n")
    with pytest.raises(
        ImportFileError, match="no column for item_id: the file has ID, Typ, Name, Regulärer Preis"
    ):
        opened(file, "catalog", preset="woocommerce")


def test_magento_has_one_item_a_product_that_customers_see(file: Path) -> None:
    export = (
        "sku,store_view_code,categories,name,description,product_online,visibility,price,special_price,is_in_stock,base_image,"
        "additional_attributes,configurable_variations\n"
        'B,,"Default Category/Gear/Bags,Default Category/Sale",Bag,<p>Big</p>,1,"Catalog, Search",0.0,,1,/a.jpg,'
        '"activity=Gym|Hiking,material=Nylon, soft","sku=B-S,size=S|sku=B-M,size=M"\n'
        "B,de,,Tasche,,,,,,,,,\n"
        "B-S,,,Bag S,,1,Not Visible Individually,34.0,,1,,,\nB-M,,,Bag M,,1,Not Visible Individually,39.0,30.0,1,,,\n"
        'C,,,Cup,,2,"Catalog, Search",5.0,,1,,,\n'
    )
    assert catalog(file, "magento", export) == [
        Item(
            "B", "Bag", "Big", ["Gear", "Bags", "Sale"], "Gear > Bags", 30.0, True,
            {"activity": "Gym, Hiking", "material": "Nylon, soft"}, "/a.jpg",
        ),
        Item("C", "Cup", price=5.0, available=False),
    ]  # fmt: skip
    assert opened(file, "catalog", preset="magento").table.notes == ["5 rows are put together as 2"]


def test_a_format_has_no_other_files(file: Path) -> None:
    file.write_text("id,title\n1,a\n")
    with pytest.raises(
        ImportFileError,
        match="woocommerce is a format of a catalog file: expected `headwater import catalog`",
    ):
        opened(file, "clicks", preset="woocommerce")


def test_google_merchant(file: Path) -> None:
    feed = (
        "id\ttitle\tdescription\tlink\timage_link\tavailability\tprice\tproduct_type\tbrand\tgoogle_product_category\n"
        '1\t19" monitor\tBig\thttp://l\thttp://i\tin stock\t15.00 USD\tHome > Screens\tAcme\tElectronics > Video\n'
        "2\tCable\tLong\thttp://l\thttp://i\tout_of_stock\t1.50 USD\tHome\tAcme\tElectronics\n"
    )
    assert catalog(file, "google-merchant", feed) == [
        Item(
            "1",
            '19" monitor',
            "Big",
            ["Home", "Screens"],
            "Electronics > Video",
            15.0,
            True,
            {"brand": "Acme"},
            "http://i",
        ),
        Item("2", "Cable", "Long", ["Home"], "Electronics", 1.5, False, {"brand": "Acme"}, "http://i"),
    ]


GOOGLE = 'xmlns:g="http://base.google.com/ns/1.0"'
ITEM = (
    "<item><title>Shop title</title><g:title>LG &amp; TV</g:title><g:id>1</g:id><g:description><![CDATA[<p>Big</p>]]></g:description>"
    "<g:price>15.00 USD</g:price><g:availability>in stock</g:availability><g:image_link>http://i</g:image_link><link>http://l</link>"
    "<g:shipping><g:price>3 USD</g:price></g:shipping><g:shipping><g:price>4 USD</g:price></g:shipping>"
    "<g:product_type>TV &gt; Flat</g:product_type><g:product_type>Sale</g:product_type><g:brand>LG</g:brand></item>"
)


def test_google_merchant_as_rss_and_atom(file: Path) -> None:
    television = Item(
        "1", "LG & TV", "Big", ["TV", "Flat", "Sale"], "", 15.0, True, {"brand": "LG"}, "http://i"
    )
    rss = f'<?xml version="1.0"?>\n<rss version="2.0" {GOOGLE}><channel><title>Shop</title>{ITEM}</channel></rss>'
    assert catalog(file, "google-merchant", rss) == [television]
    atom = f'<feed xmlns="http://www.w3.org/2005/Atom" {GOOGLE}><title>S</title>{ITEM.replace("item>", "entry>")}</feed>'
    assert catalog(file, "google-merchant", atom) == [television]


def test_segment(file: Path) -> None:
    shared = {"userId": None, "anonymousId": "anon", "timestamp": AT}
    rows = lines(
        {**shared, "type": "page", "messageId": "m0", "properties": {"url": "/"}},
        {**shared, "type": "track", "messageId": "m1", "event": "Product Viewed", "properties": {"product_id": "p1"}},
        {
            **shared, "type": "track", "messageId": "m2", "event": "Order Completed",
            "properties": {"products": [{"product_id": "p1"}, {"product_id": "p2"}]},
        },
    )  # fmt: skip
    assert clicks(file, "segment", rows) == [
        ("anon", "p1", "view", AT_MS),
        ("anon", "p1", "purchase", AT_MS),
        ("anon", "p2", "purchase", AT_MS),
    ]


def test_segment_batches(file: Path) -> None:
    call = {
        "type": "track",
        "userId": "u",
        "event": "Product Viewed",
        "properties": {"product_id": "p1"},
        "messageId": "m1",
    }
    batch = {
        "batch": [call, {"type": "identify", "userId": "u"}],
        "sentAt": AT,
        "context": {"library": {"name": "x"}},
    }
    file.write_bytes(msgspec.json.encode(batch))
    assert clicks(file, "segment") == [("u", "p1", "view", AT_MS)]
    assert clicks(file, "segment", lines(batch, batch)) == [("u", "p1", "view", AT_MS)]
    table = f"anonymous_id,event,product_id,timestamp\nanon,Product Added,p2,{AT}\n"
    assert clicks(file, "segment", table) == [("anon", "p2", "add_to_cart", AT_MS)]


def test_ga4(file: Path) -> None:
    def event(name: str, *items: str) -> dict[str, object]:
        return {
            "event_name": name,
            "event_timestamp": f"{AT_MS}000",
            "user_pseudo_id": "1.2",
            "items": [{"item_id": item, "item_name": f"Item {item}"} for item in items],
        }

    events = [event("page_view"), event("view_item", "a"), event("purchase", "a", "b")]
    expected = [("1.2", "a", "view", AT_MS), ("1.2", "a", "purchase", AT_MS), ("1.2", "b", "purchase", AT_MS)]
    assert clicks(file, "ga4", lines(*events)) == expected
    pl.DataFrame(events).write_parquet(file)
    assert clicks(file, "ga4") == expected


def test_ga4_parameters_are_columns(file: Path) -> None:
    event = {
        "event_name": "view_item", "event_timestamp": f"{AT_MS}000", "user_pseudo_id": "1.2", "items": [],
        "event_params": [
            {"key": "ga_session_id", "value": {"int_value": "17"}},
            {"key": "item_id", "value": {"string_value": "p9", "int_value": None}},
        ],
    }  # fmt: skip
    assert clicks(file, "ga4", lines(event)) == [("1.2", "p9", "view", AT_MS)]
    found = events_of(
        *opened(file, "clicks", ["context.session=event_params.ga_session_id"], preset="ga4"),
        EventForm(actions=PRESETS["ga4"].actions), now_ms=NOW_MS,
    )  # fmt: skip
    assert found.rows["context"].to_list() == ['{"session":"17"}']


def test_recbole(file: Path) -> None:
    inter = f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t3\t{AT_S}.0\n"
    assert clicks(file, "recbole", inter) == [("1", "10", "click", AT_MS)]
    item = 'item_id:token\tmovie_title:token_seq\tclass:token_seq\n10\tToy "Story"\tComedy Drama\n'
    assert catalog(file, "recbole", item) == [Item("10", 'Toy "Story"', tags=["Comedy", "Drama"])]


def test_what_is_mapped_by_hand_wins(file: Path) -> None:
    file.write_text(f"userId,movieId,rating,timestamp,session\n1,31,4.0,{AT_S},s1\n")
    assert (
        opened(file, "clicks", ["user_id=session"], preset="movielens").chosen.columns["user_id"] == "session"
    )


def test_every_preset_has_a_test_of_its_name() -> None:
    tests = " ".join(name for name in globals() if name.startswith("test_"))
    assert not [name for name in PRESETS if name.replace("-", "_") not in tests]


# What a format's own names may hold, and other things too.
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from(["", "a", "id:1", "1", "1,5", "[x", '["x"]', "a > b"]),
)
_VALUES = st.one_of(_SCALARS, st.lists(_SCALARS, max_size=2), st.lists(st.dictionaries(st.sampled_from(
    ["key", "value", "price", "src", "element", "product_id", "inventory_quantity", "large"]
), _SCALARS, max_size=2), max_size=2), st.dictionaries(st.sampled_from(["list", "product_id", "products", "name"]), _SCALARS, max_size=2))  # fmt: skip
_NAMES = [
    "handle", "variants", "images", "tags", "body_html", "id", "batch", "properties", "event", "items", "event_params", "asin",
    "categories", "features", "images", "price", "ID", "Name", "Parent", "SKU", "Images", "Categories", "sku", "name", "visibility",
    "additional_attributes", "configurable_variations", "product_type", "Handle", "Variant SKU", "Title", "Email", "Created at",
    "property", "itemid", "timestamp", "value", "traid", "title", "genres", "Action",
]  # fmt: skip


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(st.sampled_from(_NAMES), _VALUES, min_size=1, max_size=8), min_size=1, max_size=3
    ),
    st.data(),
)
def test_a_file_of_anything_ends_in_rows_or_in_one_sentence(
    file: Path, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    preset = data.draw(st.sampled_from(sorted(PRESETS)))
    file.write_text(lines(*rows))
    for kind in ("catalog", "clicks"):
        try:
            table, chosen = opened(file, kind, preset=preset)
            if kind == "clicks":
                events_of(table, chosen, EventForm(actions=PRESETS[preset].actions), now_ms=NOW_MS)
            else:
                items_of(table, chosen, ItemForm())
        except ImportFileError:
            continue
        assert len(table.lines) == len(table.frame)
