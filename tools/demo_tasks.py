"""Seeded tasks with one right answer each, for training and for measuring the bundled models."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

HELD_OUT_ONE_IN = 10
"""One prompt in this many is kept for measuring and never trained on."""

SORT_ITEMS_MAX = 6
REVERSE_LETTERS_MAX = 8
COUNT_ITEMS_MAX = 10
TABLE_PAIRS_MAX = 6
LISTED_NUMBERS_MIN = 20
LISTED_NUMBERS_MAX = 40
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Example:
    """A prompt and the answer that is right for it."""

    family: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Animal:
    """What the English sentences know about one animal."""

    home: str
    food: str
    skill: str


@dataclass(frozen=True)
class Mood:
    """What an adjective makes an animal do."""

    wish: str
    ending: str


ANIMALS: Mapping[str, Animal] = {
    "cat": Animal("a warm house", "fresh fish", "climb the wall"),
    "dog": Animal("a big garden", "old bones", "guard the gate"),
    "fox": Animal("a deep den", "ripe berries", "find the path"),
    "owl": Animal("a hollow tree", "small mice", "see in the dark"),
    "bear": Animal("a dark cave", "sweet honey", "lift a rock"),
    "frog": Animal("a green pond", "quick flies", "jump over a log"),
    "hen": Animal("a red barn", "yellow corn", "wake the farm"),
    "horse": Animal("a wide field", "green grass", "carry a heavy load"),
    "mouse": Animal("a small hole", "hard cheese", "hide under a leaf"),
    "duck": Animal("a calm lake", "soft bread", "swim to the island"),
    "crab": Animal("a wet beach", "salty weed", "dig in the sand"),
    "bee": Animal("a busy hive", "golden pollen", "dance in the air"),
    "wolf": Animal("a cold forest", "fat geese", "run all night"),
    "goat": Animal("a steep hill", "dry leaves", "cross the bridge"),
    "whale": Animal("a blue sea", "tiny shrimp", "sing a long song"),
    "ant": Animal("a sandy nest", "bread crumbs", "build a tower"),
}

MOODS: Mapping[str, Mood] = {
    "brave": Mood("cross the river", "told everyone about the journey"),
    "shy": Mood("sit alone", "smiled without a word"),
    "sleepy": Mood("rest in the sun", "slept until the morning"),
    "hungry": Mood("eat a big meal", "shared a warm supper"),
    "clever": Mood("read an old map", "found a hidden door"),
    "happy": Mood("dance in the rain", "laughed for an hour"),
    "lonely": Mood("meet a new friend", "stayed friends for life"),
    "curious": Mood("look behind the hill", "learned a great secret"),
    "proud": Mood("win a race", "hung a medal on the wall"),
    "gentle": Mood("help a child", "planted a flower"),
    "noisy": Mood("play a drum", "woke the whole village"),
    "young": Mood("see the world", "came home before dark"),
}


def addition(chance: random.Random) -> tuple[str, str]:
    """Two numbers of at most two digits and their sum."""
    first, second = chance.randint(1, 99), chance.randint(1, 99)
    return f"add {first} {second} =", f" {first + second}"


def sorting(chance: random.Random) -> tuple[str, str]:
    """Two to six letters or numbers, put in order."""
    length = chance.randint(2, SORT_ITEMS_MAX)
    if chance.random() < 0.5:
        items = chance.choices(LETTERS, k=length)
        return f"sort {' '.join(items)} =", f" {' '.join(sorted(items))}"
    numbers = chance.choices(range(chance.choice((10, 100))), k=length)
    before, after = (" ".join(map(str, order)) for order in (numbers, sorted(numbers)))
    return f"sort {before} =", f" {after}"


def reversing(chance: random.Random) -> tuple[str, str]:
    """A word of two to eight capitals, read from its end."""
    word = "".join(chance.choices(LETTERS, k=chance.randint(2, REVERSE_LETTERS_MAX)))
    return f"reverse {word} =", f" {word[::-1]}"


def counting(chance: random.Random) -> tuple[str, str]:
    """How often one letter stands in a word, or one animal in a list."""
    length = chance.randint(3, COUNT_ITEMS_MAX)
    in_word = chance.random() < 0.5
    pool = chance.sample(LETTERS if in_word else list(ANIMALS), 3)
    wanted = pool[0]
    share = chance.random() * 0.8
    items = [wanted if chance.random() < share else chance.choice(pool[1:]) for _ in range(length)]
    listed = ("" if in_word else " ").join(items)
    return f"count {wanted} in {listed} =", f" {items.count(wanted)}"


def look_up(chance: random.Random) -> tuple[str, str]:
    """The number that stands after one animal in a table given by the prompt."""
    names = chance.sample(list(ANIMALS), chance.randint(2, TABLE_PAIRS_MAX))
    table = {name: chance.randint(1, 99) for name in names}
    wanted = chance.choice(names)
    listed = " ".join(f"{name} {number}" for name, number in table.items())
    return f"find {wanted} in {listed} =", f" {table[wanted]}"


def tell(mood: str, name: str) -> tuple[str, str]:
    """Three sentences about one animal."""
    animal = ANIMALS[name]
    answer = (
        f" lives in {animal.home}. It likes {animal.food} and can {animal.skill}."
        f" Today it wants to {MOODS[mood].wish}."
    )
    return f"tell: the {mood} {name}", answer


def story(mood: str, name: str, other_mood: str, other_name: str) -> tuple[str, str]:
    """A story of six sentences about two animals, long enough to be interrupted."""
    animal, other = ANIMALS[name], ANIMALS[other_name]
    answer = (
        f" met near {animal.home}. The {name} wanted to {MOODS[mood].wish}."
        f" The {other_name} wanted to {MOODS[other_mood].wish}."
        f" So the {name} gave the {other_name} some {other.food},"
        f" and the {other_name} showed the {name} how to {other.skill}."
        f" Then they went to {other.home} and ate {animal.food}."
        f" In the end they {MOODS[mood].ending}."
    )
    return f"story: the {mood} {name} and the {other_mood} {other_name}", answer


def english(chance: random.Random) -> tuple[str, str]:
    """A short description or a longer story, in whole sentences."""
    names, moods = chance.sample(list(ANIMALS), 2), chance.sample(list(MOODS), 2)
    if chance.random() < 0.5:
        return tell(moods[0], names[0])
    return story(moods[0], names[0], moods[1], names[1])


def listing(chance: random.Random) -> tuple[str, str]:
    """Every number from one to another: a long answer with one right form."""
    length = chance.randint(LISTED_NUMBERS_MIN, LISTED_NUMBERS_MAX)
    first = chance.randint(1, 100 - length)
    last = first + length - 1
    numbers = " ".join(str(number) for number in range(first, last + 1))
    return f"count from {first} to {last} =", f" {numbers}"


FAMILIES: Mapping[str, Callable[[random.Random], tuple[str, str]]] = {
    "addition": addition,
    "sorting": sorting,
    "reversing": reversing,
    "counting": counting,
    "look-up": look_up,
    "english": english,
    "listing": listing,
}


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is kept for measuring.

    The order of its words is ignored, so that no twin of a held-out prompt (58 23 for 23 58,
    the same letters to sort in another order) is trained on either.
    """
    words = " ".join(sorted(prompt.split()))
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def examples(family: str, chance: random.Random, *, held_out: bool) -> Iterator[Example]:
    """Endless examples of one family, from one side of the split only."""
    make = FAMILIES[family]
    while True:
        prompt, answer = make(chance)
        if is_held_out(prompt) == held_out:
            yield Example(family, prompt, answer)


def held_out_examples(family: str, seed: int, count: int) -> list[Example]:
    """Distinct held-out examples; fewer than `count` where a family does not have as many."""
    source = examples(family, random.Random(seed), held_out=True)
    found: dict[str, Example] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        example = next(source)
        found.setdefault(example.prompt, example)
    return list(found.values())
