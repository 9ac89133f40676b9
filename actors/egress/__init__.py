"""The host's half of a sandbox's way out: it decides, resolves, connects, looks at the first bytes, and carries."""
