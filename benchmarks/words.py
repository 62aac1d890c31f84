"""Text of realistic lengths, the same for the same number in every process and every Python."""

import itertools
import random
from collections.abc import Sequence
from functools import cache

_SEED = 7
_VOCABULARY = 4_000
# Of a language's words the commonest are stop words, which to_tsvector drops; ours begin after them.
_STOPPED = 50
# Words of one memory: most are a sentence or two, a few are long.
_SHORTEST, _LONGEST = 5, 120


@cache
def vocabulary() -> tuple[Sequence[str], Sequence[float]]:
    """Return words and their cumulative weights: Zipf's, without the fifty or so that a text search leaves out."""
    draw = random.Random(_SEED)
    syllables = [onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou"]
    words: dict[str, None] = {}
    while len(words) < _VOCABULARY:
        words["".join(draw.choices(syllables, k=draw.randint(2, 4))) + draw.choice("bdgklmnrt")] = None
    return tuple(words), tuple(itertools.accumulate(1 / (_STOPPED + place) for place in range(1, _VOCABULARY + 1)))


def content(number: int) -> str:
    """Return the words of one memory; no two are alike, for the number is among them."""
    draw = random.Random(_SEED * 1_000_003 + number)
    count = min(max(int(draw.lognormvariate(2.9, 0.6)), _SHORTEST), _LONGEST)
    words, weights = vocabulary()
    return f"{' '.join(draw.choices(words, cum_weights=weights, k=count))} no{number}.".capitalize()


def question(number: int) -> str:
    """Return four words that the memory of that number says."""
    said = content(number).rstrip(".").lower().split()[:-1]
    return " ".join(random.Random(number).sample(said, 4))
