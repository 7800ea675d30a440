"""The image of mover servers (docs/openstack.md): made on the operator's machine, from Debian's own programs."""
