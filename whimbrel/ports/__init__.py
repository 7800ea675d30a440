"""What the steps of a migration need from a cloud or a storage, as small protocols by role.

A driver implements the roles it can play and says so in its ``Capabilities``; vendor exceptions never cross a port.
"""
