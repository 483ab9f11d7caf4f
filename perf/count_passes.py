"""Write `robench/engine/passes.json`: what every shipped suite and built-in attack costs, counted by playing it.

    python perf/count_passes.py

Minutes on one core; to be run after a change of an attack or a suite.
"""

import json
import time

import robench.threats.transformations  # noqa: F401  (registers those built in)
from robench.attacks.build import build_attacks
from robench.cli.costs import CLASSES, countable
from robench.core.errors import UsageError
from robench.engine.counts import FILE
from robench.engine.query_cost import passes


def count() -> dict[str, dict[str, list[int] | None]]:
    """Norm or transformation -> canonical spec -> forward and backward passes, or null where they are not counted."""
    counts: dict[str, dict[str, list[int] | None]] = {}
    for attacks, threats in countable():
        for threat in threats:
            try:
                for spec, _ in build_attacks(list(attacks), threat):
                    if spec in counts.get(threat.kind, {}):
                        continue
                    started = time.monotonic()
                    played = passes((spec,), threat, CLASSES)
                    found = [played[0].forward, played[0].backward] if played else None
                    counts.setdefault(threat.kind, {})[spec] = found
                    print(f"{threat.kind} {spec}: {found} ({time.monotonic() - started:.1f} s)", flush=True)
            except UsageError:
                continue
            break
    return counts


def main() -> None:
    counts = count()
    rows = (
        f"    {json.dumps(kind)}: {{\n"
        + ",\n".join(f"      {json.dumps(spec)}: {json.dumps(table[spec])}" for spec in sorted(table))
        + "\n    }"
        for kind, table in sorted(counts.items())
    )
    text = f'{{\n  "classes": {CLASSES},\n  "counts": {{\n' + ",\n".join(rows) + "\n  }\n}\n"
    FILE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
