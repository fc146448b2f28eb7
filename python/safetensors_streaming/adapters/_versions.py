"""Version numbers, as far as ranges of releases need them."""

import re


def release(version: str) -> tuple[int, ...]:
    """The numbers of a release, such as (5, 23, 0); what follows them (rc1, +cu130) is left out."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else ()
