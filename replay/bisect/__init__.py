"""Bisect: the first version of a sandbox at which a command fails, probed in throw-away rebuilds."""
