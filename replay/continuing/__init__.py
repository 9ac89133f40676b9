"""Going on from the past: what led to a version, told so that a model reads it, and a session that begins with it."""

MOST = 200_000
"""Characters of a whole transcript by default: some 50,000 tokens, which leaves a model room to work."""
LEAST = 4_000
"""Fewer hold not even what must be said of a transcript that was cut."""
