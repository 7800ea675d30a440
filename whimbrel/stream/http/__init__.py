"""The disk over HTTP/1.1, read-only, for librbd's live import.

``ranges``, ``requests`` and ``answers`` know the protocol, ``reader`` tells guests from copies, ``traffic`` lets
guests go first, ``connection`` serves one client, ``front`` accepts them. ``token`` is the secret in the URL.
"""
