"""robench cache: where corrupted images are kept, how much room they take, and how to have it back."""

import click

from robench.cli import common
from robench.core.formatting import size
from robench.corruption.cache import Cache


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove all corrupted images.")
def command(clear: bool) -> None:
    """Show the corrupted images that are kept for the next defense, or remove them.

    The variables ROBENCH_CACHE and ROBENCH_CACHE_LIMIT set the folder and its limit, such as 20G; 0 keeps none.
    """
    cache = Cache()
    files, used = cache.clear() if clear else cache.usage()
    content = f"{files:,} chunks of corrupted images, {size(used)}"
    if clear:
        common.say(f"removed {content} from {cache.folder}")
    else:
        common.say(f"{content} of at most {size(cache.limit)}: {cache.folder}")
