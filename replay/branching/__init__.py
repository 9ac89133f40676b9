"""Branches: a past version that goes on as a sandbox of its own, as it was or with other calls, and their tree."""
