"""The pure half of looking back: what a stream's versions were, with no machine started and no driver imported.

    with SqliteLog(path, read_only=True) as log:
        state_at(log, "sandbox-sbx-01", version=17)

`states` folds a stream up to a moment, `target` reads `STREAM@VERSION[:PATH]`.
"""
