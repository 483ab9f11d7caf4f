"""Print, for a shell, pip's settings of where packages come from as those of uv, which reads none of pip's."""

import ast
import shlex
import subprocess
import sys

NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
}

pip = [sys.executable, "-m", "pip", "config", "list"]
lines = subprocess.run(pip, capture_output=True, text=True, check=True).stdout.splitlines()
# The environment decides over files, and is listed first.
for line in reversed(lines):
    key, _, value = line.partition("=")
    name = NAMES.get(key.rpartition(".")[2])
    if name:
        separator = "," if name == "UV_FIND_LINKS" else " "
        print(f"export {name}={shlex.quote(separator.join(ast.literal_eval(value).split()))}")
# As pip, which takes the newest release of any index.
print("export UV_INDEX_STRATEGY=unsafe-best-match")
