"""robench: find out whether an image classifier's defense really holds.

>>> import robench
>>> defense = robench.load_defense("mimir", dataset="digits")
>>> result = robench.attack("autoattack", defense, x, y, threat="Linf:0.1")
>>> record = robench.run(defense="mimir", attack="autoattack", dataset="digits", samples=100)
"""

from robench.defenses import Defense, load_defense
from robench.direct import attack
from robench.evaluate import run

__all__ = ["Defense", "attack", "load_defense", "run"]
