"""The head: membership, ledger, placement, names. ``cluster.py`` decides, ``server.py`` talks."""
