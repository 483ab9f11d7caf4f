"""Write `robench/engine/passes.json`: the cost of every shipped suite and built-in attack, counted by running it.

    python perf/count_passes.py

Takes minutes on one core. Run it after changing an attack or a suite.
"""

import json
import time

from robench.attacks.build import build_attacks
from robench.core.errors import UsageError
from robench.engine.counts import CLASSES, FILE, countable
from robench.engine.query_cost import passes


def count() -> dict[str, dict[str, list[int] | None]]:
    """Norm or transformation -> canonical spec -> forward and backward passes, or null if not counted."""
    counts: dict[str, dict[str, list[int] | None]] = {}
    for attacks, threats in countable():
        for threat in threats:
            try:
                for spec, _ in build_attacks(list(attacks), threat):
                    if spec in counts.get(threat.kind, {}):
                        continue
                    started = time.monotonic()
                    counted = passes((spec,), threat, CLASSES)
                    cost = [counted[0].forward, counted[0].backward] if counted else None
                    counts.setdefault(threat.kind, {})[spec] = cost
                    print(f"{threat.kind} {spec}: {cost} ({time.monotonic() - started:.1f} s)", flush=True)
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
