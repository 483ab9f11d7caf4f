"""Is this record true, and is this checkpoint still as robust?"""
