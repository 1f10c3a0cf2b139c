"""The server of a region: a federation of its own below, one client's answer above. See docs/hierarchy.md."""
