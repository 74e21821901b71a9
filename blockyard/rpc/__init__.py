"""The typed calls between daemon and worker: ``channel`` moves them, ``calls`` declares them."""
