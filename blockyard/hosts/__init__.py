"""On the container host: a volume group becomes a mounted file system, and nothing of it is left behind afterwards.

``commands`` is the only door to the machine, ``initiator`` speaks to open-iscsi, ``disks`` finds a session's disk and
proves what it is, ``mounts`` reads who has what mounted, ``filesystems`` makes, mounts and grows, ``attach`` puts them
together. Nothing here keeps state of its own: what is there is read from the kernel each time.
"""
