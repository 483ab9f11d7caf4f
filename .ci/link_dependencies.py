"""Link the packages that robench depends on, without its extras, from this environment into a folder."""

import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

place = Path(sys.argv[1])
open_, done = [Requirement("robench")], set()
while open_:
    wanted = open_.pop()
    for extra in ("", *wanted.extras):
        if (key := (canonicalize_name(wanted.name), extra)) in done:
            continue
        done.add(key)
        package = distribution(wanted.name)
        requirements = map(Requirement, package.requires or ())
        open_ += [each for each in requirements if not each.marker or each.marker.evaluate({"extra": extra})]
        for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if wanted.name != "robench" and not (place / name).exists():
                (place / name).symlink_to(package.locate_file(name))
