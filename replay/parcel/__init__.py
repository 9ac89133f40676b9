"""A session as one file, to look at it and rebuild it elsewhere: `hourglass export` and `hourglass import`.

The file is a tar of members that each lie as they are, in this order:

| member | what |
| --- | --- |
| `hourglass.json` | a `Header`: format, streams, how much of the rest there is |
| `events.jsonl.zst` | the rows of these streams as they were stored, in the log's order, each with the hash before it |
| `blobs/<sha256>` | data above 64 KiB |
| `manifests/<snapshot id>.json` | snapshots, and the templates that their trees are made from |
| `chunks/<blake3>` | all that these consist of, compressed as in the store |

Each row is proved by its hash, as the log that it is from has it: with the hash before it, that covers every field.
`layout` is the format and its bounds, `packing` writes a file, `checking` reads one and believes nothing of it, and
`unpacking` takes it into a home: first all of it is checked, then rows, chunks and manifests are written, and the rows
become part of the log last, at once.
"""
