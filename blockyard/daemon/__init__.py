"""The daemon: portals, REST API, and the workers it keeps alive.

``yard`` composes it, ``pool_worker`` keeps one worker process alive, ``backoff`` says when to try again, ``directory``
tells the front door whose a login is, ``store`` owns the store directory, ``api_server`` the API socket.
"""
