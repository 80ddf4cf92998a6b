"""Prompts in words, as in "3 frogs, 1 ship", as the classes of pictures. It knows no requests and no models."""

import re
from collections.abc import Sequence

from ..errors import BadInput, named, whole_number

PART = re.compile(r"(?:(\d{1,18})\s*(?:x\s+|×\s*|\s))?(?:an?\s+|the\s+)?(.+)", re.IGNORECASE)
ALL = "all"


def classes_of(prompt: str, n: int | None, known: Sequence[str], most: int) -> list[str]:
    """The class of each picture that a prompt asks for.

    Args:
        prompt: names of classes between commas or "and", in any case, singular or plural; "all" is every class. Each
            may have a number before it.
        n: the number of pictures, which go round the names; None: one, or as many as the prompt counts.
        known: the classes of the model.
        most: the most pictures.

    Raises:
        BadInput: an unknown name, with the nearest one; `n` differs from what the prompt counts; too many.
    """
    counts = [(count, name) for text in _parts(prompt, known) for count, name in [_counted(text, known)]]
    numbers = [count for count, _ in counts if count is not None]
    if not numbers:
        names = [name for _, several in counts for name in several]
        n = whole_number("n", 1 if n is None else n, most=most)
        return [names[i % len(names)] for i in range(n)]
    total = sum((1 if count is None else count) * len(names) for count, names in counts)
    if n not in (None, total):
        raise BadInput(f"n: the prompt counts {total} pictures, found {n}; leave `n` out, or the numbers")
    whole_number("prompt", total, most=most)
    return [name for count, names in counts for name in names for _ in range(1 if count is None else count)]


def _parts(prompt: str, known: Sequence[str]) -> list[str]:
    """The prompt at its commas. One that is a name is not split."""
    text = prompt.strip()
    if not text:
        raise BadInput(f"prompt: expected a class as in '{known[0]}', found ''; choose from {', '.join(known)}")
    if text.casefold() in _forms(known):
        return [text]
    return [part.strip() for part in re.split(r"[,;\n]|\band\b", text, flags=re.IGNORECASE) if part.strip()] or [text]


def _counted(text: str, known: Sequence[str]) -> tuple[int | None, list[str]]:
    """The number in a part of a prompt, and the classes that it names."""
    forms = _forms(known)
    if text.casefold() in forms:
        return None, [forms[text.casefold()]]
    match = PART.fullmatch(text)
    count, name = match.groups() if match else (None, text)
    if name.casefold() == ALL:
        names = list(known)
    else:
        names = [forms.get(name.casefold()) or named("prompt", "class", name[:60], known)]
    return (None if count is None else whole_number("prompt", int(count))), names


def _forms(known: Sequence[str]) -> dict[str, str]:
    """Each class by its name and its plurals, all in lower case. A name goes before another's plural."""
    forms: dict[str, str] = {}
    for name in known:
        lower = name.casefold()
        forms |= {lower + "s": name, lower + "es": name}
        if lower.endswith("y"):
            forms[lower[:-1] + "ies"] = name
    return forms | {name.casefold(): name for name in known}
