"""The pure half of looking back: what a stream's versions were, with no machine started and no driver imported.

    with SqliteLog(path, read_only=True) as log:
        state_at(log, "sandbox-sbx-01", version=17)
        plan(log, "sandbox-sbx-01", 17, Snapshots.of(home).where)

`states` folds a stream up to a moment, `target` reads `SANDBOX@VERSION[:PATH]`. `lineage` is the line of parents that
leads to a version, `presence` knows which snapshots exist, `walk` says what became of what was done in between, and
`planning` makes a plan of that. `trees` reads the files of a version from the snapshot store, and `comparing`
compares two versions.
"""
