"""robench cache: where corrupted images are kept, how much room they take, and how to have it back."""

import click

from robench.cli import common
from robench.core.formatting import size
from robench.corruption.cache import Cache


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove all of them.")
def command(clear: bool) -> None:
    """Show the corrupted images that are kept for the next defense, or remove them.

    The variables ROBENCH_CACHE and ROBENCH_CACHE_LIMIT set the folder and the limit, such as 20G, or 0 to keep none.
    """
    cache = Cache()
    files, held = cache.clear() if clear else cache.usage()
    said = f"{files:,} chunks of corrupted images, {size(held)}"
    text = (
        f"removed {said} from {cache.folder}"
        if clear
        else f"{said} of at most {size(cache.limit)}: {cache.folder}"
    )
    common.console().print(text, soft_wrap=True, highlight=False)
