"""Looking back: timelines of a log, and the server that plays recorded sessions over the real HTTP API."""
