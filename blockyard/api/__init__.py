"""REST over a Unix socket: one router a noun, each as thin over ``operations`` as it can be."""
