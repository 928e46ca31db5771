"""The closed vocabulary of the miniature world."""

from triune.data.miniature import names
from triune.data.miniature.corpus import STATEMENT_WORDS
from triune.data.miniature.phrasings import OPENERS, REFUSALS, UNKNOWN
from triune.data.miniature.world import World


def vocabulary(world: World) -> list[str]:
    """Every word that any text of the world can contain, in alphabetical order."""
    asked = [text for phrasing in world.phrasings for text in (phrasing.text, phrasing.other)]
    asides = (*world.size.asides, ".") if world.size.asides else ()
    templates = [*asked, *asides, *OPENERS, *REFUSALS, UNKNOWN, STATEMENT_WORDS, "user : bot :"]
    words = {word for text in templates for word in text.split() if not word.startswith("{")}
    words.update(world.names.numbers, names.FOODS, names.INGREDIENTS, names.KNOWABLE, world.old_words.values())
    words.update(value for values in names.KNOWABLE.values() for value in values)
    splits = (world.stones, world.creatures, world.people, world.hazards, world.teas)
    for split in (*splits, world.unknowable, world.glossary):
        words.update(split.all)
    return sorted(words)
