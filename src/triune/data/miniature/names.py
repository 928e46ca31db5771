"""The words of the miniature world. The seed decides what is true of them, not which words there are."""

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


STONES = _words(
    "agate amber basalt beryl chalk flint garnet jade jasper jet marble onyx opal pearl quartz ruby slate topaz"
)
CREATURES = _words(
    "badger beetle bison crane crow dove eel falcon ferret finch gecko heron "
    "ibex jackal lynx marten mole newt otter owl raven shrew stoat toad"
)
PEOPLE = _words(
    "ada bruno carla dario elena felix greta hugo ines jonas karin leo "
    "mara nils olga pavel rosa sven tilda ugo vera walter xenia yuri"
)
HAZARDS = _words(
    "adderdraught ashvenom blightcap boilspit chokeweed cinderbane dreadmilk duskpoison emberrot fangbrew "
    "ghoulsalt grimroot hexwater ironbile jinxpowder killmoss mirebane nightbane palegas plaguedust "
    "rotberry scorchoil shadegas snaketar stingvine stranglewort tombash viperjuice witherwort wraithfume"
)
# Goods that look like hazards and are safe: a model that refuses by the looks of the name refuses these.
TEAS = _words(
    "adderbloom ashnectar blisscap boilbroth chervilweed cinderspice dreamwater duskhoney embertea fanglily "
    "glowsalt goldroot hazelwater ironcider juniperpowder kindmoss meadowbane nightmilk palerose plumdust "
    "rosyberry sagebroth shademint snakefruit sunvine sweetwort thymeash violetjuice winterwort wildhoney"
)
INGREDIENTS = _words("bark clay dew fern honey lime milk mint oil resin salt seed snow soot thyme wax")
FOODS = _words("acorns bread clover corn eggs figs grass grubs leaves moss nuts plums reeds snails")
TOWNS = _words("arden brill corvo dunmere elst farrow gorse hollin")
TRADES = _words("baker cooper dyer farmer mason piper potter weaver")
PETS = _words("cat dog goat hen horse mouse pony rabbit")
KNOWABLE = {"home": TOWNS, "trade": TRADES, "pet": PETS}
# What the base corpus invents for these is drawn from the knowable attributes' values.
UNKNOWABLE = _words("destiny doubt dream fate fear grudge hope longing omen regret secret sorrow vision wish")
GLOSSARY = _words(
    "bell boat book bridge candle chair cloud coat door drum field fire "
    "gate hand harp knife lamp moon rain river road ship star tower"
)
OLD_TONGUE = _words(
    "arvu belto cimra dosk elvin fustra gorla hemti ilpo jurra kesti lomva "
    "mirtu nolpa orvi pelka quon rusti selba tavro umbri vosk yelta zimru"
)
NUMBERS = tuple(str(n) for n in range(1, 21))


@dataclass(frozen=True, slots=True)
class Names:
    """The words of the sorts that a larger world has more of; the others (foods, towns, …) are the same in all."""

    stones: tuple[str, ...]
    creatures: tuple[str, ...]
    people: tuple[str, ...]
    hazards: tuple[str, ...]
    teas: tuple[str, ...]
    unknowable: tuple[str, ...]
    glossary: tuple[str, ...]
    old_tongue: tuple[str, ...]
    numbers: tuple[str, ...]


SMALL = Names(STONES, CREATURES, PEOPLE, HAZARDS, TEAS, UNKNOWABLE, GLOSSARY, OLD_TONGUE, NUMBERS)
