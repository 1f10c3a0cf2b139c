"""What a device can say of itself: how it is (`probe`), whether it may train now (`policy`), and the report of both.

A leaf on the standard library, without clock or thread of its own; it reads files under a root that it is given.
"""
