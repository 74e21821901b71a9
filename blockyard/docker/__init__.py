"""The Docker volume plugin: a volume of Docker is a volume group of the target, mounted on the host that uses it.

``options`` is what ``docker volume create`` may say, ``catalogue`` what the target has (from memory), ``book`` who on
this host has what mounted, ``driver`` the verbs, ``upkeep`` what happens between them, ``server`` the protocol.
"""
