"""What an attacker knows: full, bpda, oblivious, known-noise, transfer:NAME or surrogate:NAME."""

from dataclasses import dataclass

from robench.core.errors import UsageError, unknown_name
from robench.core.trust import like


@dataclass(frozen=True)
class Level:
    """A level of attacker knowledge.

    Attributes:
        description: one clause, for tables.
        feedback: whether the attacker receives a verdict at every step; otherwise the judge is queried at the end.
        adaptive: whether the attack is adapted to the whole defense.
        needs_purifier: whether it only applies to defenses with a purifier.
        needs_name: whether it names another defense.
        knows_noise: whether the attacker knows the noise draws of the verdict, which only a randomized defense has.
    """

    description: str
    feedback: bool = False
    adaptive: bool = False
    needs_purifier: bool = False
    needs_name: bool = False
    knows_noise: bool = False


LEVELS = {
    "full": Level("the attacker knows the whole defense", feedback=True, adaptive=True),
    "bpda": Level(
        "the attacker knows the defense and replaces the purifier's gradient by the identity (BPDA)",
        feedback=True, adaptive=True, needs_purifier=True,
    ),
    "known-noise": Level(
        "the attacker knows the whole defense and the noise draws of the verdict",
        feedback=True, adaptive=True, knows_noise=True,
    ),
    "oblivious": Level("the attacker does not know the purifier", needs_purifier=True),
    "transfer": Level("the adversarial examples are computed on another network", needs_name=True),
    "surrogate": Level(
        "the attacker takes gradients from another network and queries the defense", feedback=True, needs_name=True
    ),
}  # fmt: skip
# As options spell them.
SPELLINGS = tuple(f"{name}:NAME" if level.needs_name else name for name, level in LEVELS.items())
_UNKNOWN = Level("")


@dataclass(frozen=True)
class Knowledge:
    """The name of a level and the defense that it names, as in "transfer:standard"; empty for none."""

    name: str
    defense: str = ""

    @classmethod
    def of(cls, text: str) -> "Knowledge":
        """The knowledge in a record or an option, which may be of a level that this release does not have."""
        name, _, defense = (part.strip() for part in like(text, text.partition(":")))
        return cls(name, defense)

    def __str__(self) -> str:
        return like(self.name, f"{self.name}:{self.defense}" if self.defense else self.name)

    @property
    def level(self) -> Level:
        return LEVELS.get(self.name, _UNKNOWN)

    @property
    def description(self) -> str:
        """What the attacker knows, in one clause."""
        return (self.level.description or self.name) + (f" ({self.defense})" if self.defense else "")


def check_knowledge(text: str) -> Knowledge:
    """The knowledge in a text; whether there is a defense of that name is not checked.

    Raises:
        UsageError: for an unknown level, or one that lacks the name of a defense.
    """
    knowledge = Knowledge.of(text)
    if knowledge.level.needs_name and not knowledge.defense:
        raise UsageError(
            f"knowledge {knowledge.name} needs a defense to search on: write {knowledge.name}:NAME"
        )
    if knowledge.name not in LEVELS or (":" in text and not knowledge.level.needs_name):
        raise unknown_name("knowledge level", text, SPELLINGS)
    return knowledge
