"""A small shop with themes so far apart that the right recommendation is obvious."""

from typing import Any

THEMES: dict[str, list[str]] = {
    "coffee": [
        "Ground coffee dark roast",
        "Ground coffee medium roast",
        "Whole bean coffee",
        "Instant coffee",
        "Coffee pods",
        "Decaf ground coffee",
        "French vanilla coffee",
        "Colombian coffee beans",
        "Espresso coffee",
        "Breakfast blend coffee",
    ],
    "dog": [
        "Dry dog food chicken",
        "Dry dog food beef",
        "Canned dog food",
        "Puppy dog food",
        "Dog treats bacon",
        "Dog biscuits",
        "Dog chew bones",
        "Senior dog food",
        "Dog food lamb and rice",
        "Small breed dog food",
    ],
    "baby": [
        "Baby diapers size 1",
        "Baby diapers size 2",
        "Baby wipes",
        "Infant formula",
        "Baby diapers newborn",
        "Baby lotion",
        "Baby shampoo",
        "Baby diapers size 4",
        "Baby training pants",
        "Baby powder",
    ],
    "paint": [
        "Interior wall paint white",
        "Exterior house paint",
        "Paint brush set",
        "Paint roller",
        "Wall paint blue",
        "Spray paint black",
        "Paint primer",
        "Paint tray",
        "Wall paint grey",
        "Ceiling paint white",
    ],
    "cheese": [
        "Cheddar cheese sharp",
        "Mozzarella cheese shredded",
        "Swiss cheese slices",
        "Cream cheese",
        "Parmesan cheese grated",
        "Cheddar cheese mild",
        "American cheese slices",
        "Colby jack cheese",
        "Provolone cheese",
        "String cheese",
    ],
    "shampoo": [
        "Shampoo for dry hair",
        "Shampoo anti dandruff",
        "Hair conditioner",
        "Shampoo volume",
        "Hair colour brown",
        "Hair spray",
        "Hair gel",
        "Shampoo for coloured hair",
        "Hair mousse",
        "Shampoo and conditioner",
    ],
}


def items() -> list[dict[str, Any]]:
    """All sixty as catalog messages. The item ids are `<theme>-<number>`, the category is the theme."""
    return [
        {"item_id": f"{theme}-{number}", "title": title, "category": theme, "price": 1.0 + number}
        for theme, titles in THEMES.items()
        for number, title in enumerate(titles)
    ]


def theme_of(item_id: str) -> str:
    return item_id.partition("-")[0]
