"""A worker: the process that serves one pool, its targets and their sessions.

``process`` is its life, ``verbs`` what it does when the daemon asks, ``records`` the border between the store's
records and the product's model, ``offline`` the check of a pool that no worker has open.
"""
