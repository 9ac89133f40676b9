"""The endpoints of contract §3, one module for each group, and the server's own under `/_replay`."""
