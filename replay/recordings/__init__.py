"""The recordings that ship with Hourglass, as `*.jsonl` files."""
