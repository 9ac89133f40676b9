"""A log in a notebook: DataFrames with Arrow underneath, pictures, and the commands that look back, as methods.

    from replay import History

    history = History("/var/lib/hourglass")
    history.tool_calls(session="sesn_01").groupby("tool")["duration"].sum()
    history.plot.timeline("sesn_01")

`history` is what a user has. `reading` reads rows of the log a page at a time, `columns` and `calls` make columns of
them, `tables` makes Arrow tables of those; `lanes` says what an agent and its sandboxes did when, and `plots` draws it.
`display` shows plans, diffs and timelines in Jupyter; the modules that compute know nothing of it. pandas, pyarrow and
matplotlib are the extra `notebook` and are imported where they are needed (`extra`).
"""
